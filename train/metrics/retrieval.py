"""Recall at K for image-text retrieval, with ties counted against the model, a block of images at a time: memory grows
with images + texts and never with their product.

Letters: `I` images, `M` texts, `K` numbers of an embedding, `k` how many are ranked anew.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BLOCK = 8_000_000  # similarities at a time
FIRST = 10

Match = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(images int64 [P], texts int64 [P]) -> scores [P] of those pairs, which are sorted by image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Similarities:
    """s(i, t) = images_i . texts_t for embeddings [I, K] and [M, K]; with hubs 2 s(i, t) - r(i) - r(t), so that a
    caption that is near to all pictures ranks no higher than others: CSLS (Conneau et al. 2018, "Word Translation
    Without Parallel Data"; for retrieval Bogolin et al. 2022).

    image_hub [I] and text_hub [M]: `hubness`.
    """

    images: np.ndarray
    texts: np.ndarray
    image_hub: np.ndarray | None = None
    text_hub: np.ndarray | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Similarities [stop - start, M]."""
        found = self.images[start:stop] @ self.texts.T
        if self.image_hub is None or self.text_hub is None:
            return found
        return 2 * found - self.image_hub[start:stop, None] - self.text_hub[None, :]

    def of_text(self, text: np.ndarray) -> np.ndarray:
        """Similarities [I] of all images to another text [K], up to what is the same for all of them."""
        found = self.images @ text
        return found if self.image_hub is None else 2 * found - self.image_hub

    def of_image(self, image: np.ndarray) -> np.ndarray:
        """Similarities [M] of all texts to another image [K], up to what is the same for all of them."""
        found = self.texts @ image
        return found if self.text_hub is None else 2 * found - self.text_hub

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first image, rows) over all images; the same every time, to the last bit."""
        for start, stop in _ranges(len(self.images), len(self.texts)):
            yield start, self.rows(start, stop)

    def matrix(self) -> np.ndarray:
        """All of them [I, M]: for small data."""
        return np.concatenate([rows for _, rows in self.blocks()])


class Ranked(NamedTuple):
    """Rank (0 is first) of the best text for each image [I] and of the best image for each text [M]; the first texts of
    each image [I, <= FIRST]."""

    tr: np.ndarray
    ir: np.ndarray
    first: np.ndarray

    def recalls(self, ks: Sequence[int] = (1, 5, 10), prefix: str = "") -> dict[str, float]:
        """'tr@K' (texts for an image: any of its captions in the first K) and 'ir@K' (images for a text), in
        percent."""
        found = {"tr": self.tr, "ir": self.ir}
        return {f"{prefix}{way}@{k}": float(100 * np.mean(found[way] < k)) for way in found for k in ks}


def ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Rank of each query's best relevant item: scores [Q, I], relevant bool [Q, I] -> int64 [Q].

    An irrelevant item with an equal score ranks before it, so that a constant score finds nothing, and neither
    does one that is not a number. Every query needs a relevant item.
    """
    best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
    return (~(scores < best) & ~relevant).sum(1)


def rank(similarities: Similarities, image_ids: Sequence[str], text_image: np.ndarray) -> Ranked:
    """Ranks by similarity. text_image: int64 [M], the image of each text. Images with one id count as the same."""
    ids, of_text = _codes(image_ids, text_image)
    tr, first = [], []
    best = np.full(len(of_text), -np.inf)
    for start, rows in similarities.blocks():
        relevant = ids[start : start + len(rows), None] == of_text
        tr.append(ranks(rows, relevant))
        first.append(_first(rows, min(FIRST, rows.shape[1])))
        np.maximum(best, np.where(relevant, rows, -np.inf).max(0), out=best)
    ir = np.zeros(len(of_text), np.int64)
    for start, rows in similarities.blocks():
        ir += (~(rows < best) & (ids[start : start + len(rows), None] != of_text)).sum(0)
    return Ranked(np.concatenate(tr), ir, np.concatenate(first))


def rank_again(
    similarities: Similarities, image_ids: Sequence[str], text_image: np.ndarray, k: int, match: Match
) -> tuple[Ranked, Ranked]:
    """Ranks by similarity, and by `match` among the first k of each query: those stay before the others, which keep
    their order. Similarity says who is among the k and nothing else, so that the two scores never meet."""
    plain = rank(similarities, image_ids, text_image)
    ids, of_text = _codes(image_ids, text_image)
    texts, images = _nearest(similarities, k)
    every = len(of_text)
    by_image = (np.arange(len(ids))[:, None] * every + texts).ravel()
    by_text = (images * every + np.arange(every)[:, None]).ravel()
    wanted = np.concatenate([by_image, by_text])
    order = np.argsort(wanted)  # several times as fast as np.unique
    new = np.diff(wanted[order], prepend=-1) > 0
    pairs = wanted[order[new]]
    place = np.empty_like(order)
    place[order] = np.cumsum(new) - 1
    scores = match(pairs // every, pairs % every)[place]
    of_texts, of_images = scores[: texts.size].reshape(texts.shape), scores[texts.size :].reshape(images.shape)
    tr = _among(of_texts, of_text[texts] == ids[:, None], plain.tr)
    ir = _among(of_images, ids[images] == of_text[:, None], plain.ir)
    order = np.argsort(-of_texts, axis=1, kind="stable")[:, :FIRST]
    return plain, Ranked(tr, ir, np.take_along_axis(texts, order, 1))


def hubness(items: np.ndarray, known: np.ndarray, neighbours: int) -> np.ndarray:
    """Mean similarity of each item [M, K] to its `neighbours` nearest of the other side's training items [N, K]."""
    k = min(neighbours, len(known))
    return np.concatenate(
        [
            np.partition(items[start:stop] @ known.T, -k, axis=1)[:, -k:].mean(1)
            for start, stop in _ranges(len(items), len(known))
        ]
    )


def _ranges(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _codes(image_ids: Sequence[str], text_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The id of each image, and of each text's image, as numbers."""
    ids = np.unique(np.asarray(image_ids), return_inverse=True)[1]
    return ids, ids[text_image]


def _first(rows: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, the largest first."""
    kept = np.argpartition(-rows, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(rows, kept, 1), axis=1, kind="stable")
    return np.take_along_axis(kept, order, 1)


def _nearest(similarities: Similarities, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest texts of each image [I, k], and the k nearest images of each text [M, k]."""
    texts: list[np.ndarray] = []
    images = np.zeros((len(similarities.texts), 0), np.int64)
    scores = np.zeros((len(similarities.texts), 0), similarities.images.dtype)
    for start, rows in similarities.blocks():
        texts.append(np.argpartition(-rows, min(k, rows.shape[1]) - 1, axis=1)[:, :k])
        scores = np.concatenate([scores, rows.T], 1)
        numbers = np.broadcast_to(np.arange(start, start + len(rows)), (len(scores), len(rows)))
        images = np.concatenate([images, numbers], 1)
        if scores.shape[1] > k:
            kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            images, scores = np.take_along_axis(images, kept, 1), np.take_along_axis(scores, kept, 1)
    return np.concatenate(texts), images


def _among(scores: np.ndarray, relevant: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Ranks among the first k, or, where nothing relevant is there, as before."""
    return np.where(relevant.any(1), ranks(scores, relevant), before)
