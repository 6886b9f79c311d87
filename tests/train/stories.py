"""A small story for a report, with figures that appear nowhere else."""

import numpy as np

from quantize.verify import Joint
from train.report.story import AnswerExample, RetrievalExample, RunSummary, SpikeExample, Story


def picture(value: int = 90, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def joint(mismatches: int = 0, compared: int = 4096) -> Joint:
    return Joint(
        left="lava",
        right="reference",
        samples=23,
        mismatches={"conv1": 0, "dense1": mismatches},
        compared={"conv1": compared, "dense1": compared // 8},
    )


def run_summary() -> RunSummary:
    log = [
        {"step": step, "split": "train", "loss": 3.0 / step, "itc": 2.0 / step, "scl": 0.1, "rate_in": 0.2, "rate": 0.1}
        for step in (10, 20, 30)
    ]
    return RunSummary(
        name="pretrain",
        config={
            "model": {"abstract": {"steps": 4, "convs": [[64, 2]], "dense": [128]}, "concrete": {"image_size": 48}},
            "train": {
                "task": "retrieval",
                "objectives": {"itc": 1.0, "scl": 0.2},
                "steps": 731,
                "batch": 37,
                "lr": 3e-4,
                "seed": 917,
            },
            "quantizer": "int8",
        },
        data={"name": "openmoji", "images": 3456, "texts": 7654, "fingerprint": "c0ffee"},
        log=log,
        history=[{"step": 0, "score": 1.5, "mean_recall": 1.5}, {"step": 30, "score": 27.25, "mean_recall": 27.25}],
        best_step=30,
    )


def story(**changes) -> Story:
    rng = np.random.default_rng(0)
    fields = {
        "title": "A story",
        "environment": {"torch": "2.10.9", "machine": "an abacus"},
        "runs": [run_summary()],
        "accuracies": [
            ("float", 96.84, "before"),
            ("QAT", 95.73, "int8 weights"),
            ("program", 94.62, "integers"),
            ("question only", 67.0, "no picture"),
            ("shuffled images", 61.51, "another picture"),
        ],
        "questions": 9673,
        "retrieval": {"tr@1": 9.1, "tr@10": 38.2, "ir@10": 36.4, "mean_recall": 23.9, "firing_rate": 0.1134},
        "concepts": 250,
        "joints": [joint()],
        "rates": {"input": 0.2213, "dense1": 0.0961},
        "spikes": [
            SpikeExample(
                image=picture(), caption="a blue circle", layers={"conv1": rng.integers(0, 2, (4, 50), np.uint8)}
            )
        ],
        "answers": [
            AnswerExample(
                image=picture(), question="which shape?", right="circle", top=[("circle", 0.831), ("blue", 0.112)]
            ),
            AnswerExample(
                image=picture(), question="which colour?", right="teal", top=[("red", 0.527), ("blue", 0.244)]
            ),
        ],
        "retrievals": [
            RetrievalExample(query=picture(), found=[("a fish", False), ("a hat", True)]),
            RetrievalExample(query="a watermelon", found=[(picture(1), False), (picture(2), False)]),
        ],
    }
    return Story(**(fields | changes))


EMPTY = Story(
    title="Nothing yet",
    environment={},
    runs=[],
    accuracies=[],
    questions=0,
    retrieval={},
    concepts=0,
    joints=[],
    rates={},
)
