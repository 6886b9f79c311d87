"""Is training kept waiting for its batches?"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch

from train.execution import Deterministic
from train.loader import Batches, load_ahead
from train.loop import Trainer
from train.run import Run
from train.stages import load_split


@dataclass(frozen=True, kw_only=True)
class LoaderSpeed:
    """images_per_second: by the number of processes that make batches, 0 being training itself. wanted: how many
    images a second training takes where its batches are at hand."""

    images_per_second: dict[int, float]
    wanted: float

    @property
    def enough(self) -> int | None:
        """The least number of processes that keep up with training; None where no number does."""
        return next((n for n, speed in self.images_per_second.items() if n and speed >= self.wanted), None)


def loader_speed(run: Run, device: torch.device, steps: int = 20) -> LoaderSpeed:
    """The speed of 0, 1, 2, 4 and so on processes, up to one for each core, and of training, each by itself."""
    trainer = trainer_of(run, device)
    images, trial = run.config.train.batch, [0, *(2**k for k in range(8) if 2**k <= (os.cpu_count() or 1))]
    made = {n: images * _batches_per_second(trainer.batches, device, n, steps * max(1, n)) for n in trial}
    return LoaderSpeed(images_per_second=made, wanted=images / step_seconds(trainer, steps))


def trainer_of(run: Run, device: torch.device) -> Trainer:
    """What trains a run, without what it has learned."""
    trainer = Trainer(run, load_split(run, "train"), load_split(run, "val"), device)
    trainer.start()
    return trainer


def step_seconds(trainer: Trainer, steps: int) -> float:
    """Median of a training step whose batch is at hand."""
    inputs = trainer.batches[0].to(trainer.device)
    with Deterministic(trainer.device):
        return statistics.median(seconds_of(lambda: trainer.train_step(inputs)) for _ in range(steps + 1))


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()  # which ends with a wait for the device
    return time.perf_counter() - start


def _batches_per_second(made: Batches, device: torch.device, workers: int, steps: int) -> float:
    given = load_ahead(made, range(steps + 1), device, workers)
    next(given)  # by which time all processes are at work
    seconds = seconds_of(lambda: [None for _ in islice(given, steps)])
    return steps / seconds
