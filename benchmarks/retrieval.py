"""Retrieval at the size of COCO's test split: time and memory outside the matching head.

    python -m benchmarks.retrieval [--images 5000] [--texts 25010] [--again 128]

Embeddings are random, the matching head is a stub whose own time is taken off.
"""

import argparse
import json
import resource
import time

import numpy as np

from train.metrics.retrieval import Similarities, rank_again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--texts", type=int, default=25010)
    parser.add_argument("--again", type=int, default=128)
    given = parser.parse_args()
    rng = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        x = rng.standard_normal((count, 256), dtype=np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    owner = np.arange(given.texts) % given.images
    images = unit(given.images)
    texts = images[owner] + 0.5 * unit(given.texts)
    stub_seconds, pairs = 0.0, 0

    def stub(of_images: np.ndarray, of_texts: np.ndarray) -> np.ndarray:
        nonlocal stub_seconds, pairs
        start = time.perf_counter()
        scores = np.float32((of_images * 31 + of_texts * 17) % 101)
        stub_seconds, pairs = time.perf_counter() - start, len(of_images)
        return scores

    start = time.perf_counter()
    ids = [str(i) for i in range(given.images)]
    plain, again = rank_again(Similarities(images=images, texts=texts), ids, owner, given.again, stub)
    seconds = time.perf_counter() - start - stub_seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = {"seconds": round(seconds, 2), "peak_gib": round(peak, 3), "pairs": pairs}
    print(json.dumps({**vars(given), **row, "tr@1": plain.recalls()["tr@1"], "again_tr@1": again.recalls()["tr@1"]}))


if __name__ == "__main__":
    main()
