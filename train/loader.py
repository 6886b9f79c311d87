"""The batches of a run, made ahead of the step that needs them, in processes beside it.

The batch of step k is a function of the config, the seed and k alone: how many processes make batches changes nothing.
"""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ashnets.model import Inputs
from ashnets.objectives import OBJECTIVES
from hw.errors import UserError
from train.augment import augment, recolour
from train.data import Batch, ImageTextData, batches, collate
from train.metrics.vqa import soft_scores
from train.run import Run

AHEAD = 2  # batches that each process has ready
MOST_WORKERS = 8


class Batches(Dataset[Inputs | UserError]):
    """`Batches(run, data)[k]`: the inputs of step k, their images uint8 still.

    Distinct ids, one image of each, so that ids with many images weigh no more.
    """

    def __init__(self, run: Run, data: ImageTextData) -> None:
        self.config, self.codec, self.data = run.config.train, run.codec, data
        self.answer_index = {answer: i for i, answer in enumerate(run.answers)}
        by_id: dict[str, list[int]] = {}
        for i in range(len(data)):
            by_id.setdefault(data.image_id(i), []).append(i)
        self.groups = list(by_id.values())
        self.needs_view = any(OBJECTIVES[name].needs_view for name in self.config.objectives)

    def __getitem__(self, step: int) -> Inputs:
        c = self.config
        rng = np.random.default_rng([c.seed, step, 1])  # 1: apart from the permutations of epochs
        ids = batches(len(self.groups), c.batch, c.seed, step)
        batch = collate(self.data, [rng.choice(self.groups[i]) for i in ids], rng, c.texts_per_image)
        pictures = torch.from_numpy(batch.images)
        return Inputs(
            images=augment(pictures, c, rng),
            view=recolour(augment(pictures, c, rng), c, rng) if self.needs_view else None,
            tokens=self.codec.encode(batch.texts),
            text_image=torch.from_numpy(batch.text_image),
            image_ids=torch.from_numpy(ids),
            picture_ids=torch.from_numpy(picture_ids(batch, ids)) if self.needs_view else None,
            answers=torch.tensor([self.answer_index.get(a, -1) for a in batch.answers]) if batch.answers else None,
            scores=self._scores(batch) if "vqa_soft" in c.objectives else None,
        )

    def _scores(self, batch: Batch) -> Tensor:
        scores = torch.zeros(len(batch.texts), len(self.answer_index))
        for row, votes in zip(scores, batch.votes, strict=True):
            for answer, worth in soft_scores(votes).items():
                if answer in self.answer_index:
                    row[self.answer_index[answer]] = worth
        return scores


class _Answering(Dataset[Inputs | UserError]):
    """`Batches` whose user errors come back as values: a `DataLoader` would wrap them in the text of a traceback."""

    def __init__(self, made: Batches) -> None:
        self.made = made

    def __getitem__(self, step: int) -> Inputs | UserError:
        try:
            return self.made[step]
        except UserError as error:
            return error


def load_ahead(made: Batches, steps: range, device: torch.device, workers: int) -> Generator[Inputs, None, None]:
    """The inputs of `steps`, on `device`. workers: processes that make them ahead; 0 makes each when it is asked for.

    Raises the user errors of the data. What is said of dead processes is up to `deaths_told`.
    """
    loader = DataLoader(
        _Answering(made),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_begin_worker,
    )
    for inputs in loader:
        if isinstance(inputs, UserError):
            raise inputs
        yield inputs.to(device)


@contextmanager
def deaths_told() -> Generator[None, None, None]:
    """`UserError` where a process that makes batches dies while the block runs: torch tells it wherever the block is,
    in the middle of a step too."""
    try:
        yield
    except RuntimeError as error:
        if not re.match(r"DataLoader worker \(pid", str(error)):
            raise
        told = str(error).splitlines()[0].rstrip(". ")
        raise UserError(
            f"a process that makes batches died ({told}); the last checkpoint is whole: resume, with fewer --workers "
            "if memory (or /dev/shm) ran out, or with none"
        ) from error


def workers_for(device: torch.device) -> int:
    """How many processes make batches where nobody says: on a GPU one for each core but one, at most 8."""
    return min(MOST_WORKERS, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0


def _begin_worker(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # whose threads do not live on in a forked process


def picture_ids(batch: Batch, ids: np.ndarray) -> np.ndarray:
    """int64, one for each picture of a batch: the record's, or of pairs, which share pictures, by what it shows."""
    if len(batch.images) == len(ids):
        return ids
    return np.unique([picture.tobytes() for picture in batch.images], return_inverse=True)[1]
