"""The batches of a run, made ahead of the step that needs them, in processes beside it.

The batch of step k is a function of the config, the seed and k alone: how many processes make batches changes nothing.
"""

import hashlib
import os
import re
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ashnets.model import Inputs
from ashnets.objectives import OBJECTIVES
from ashnets.ranks import Split
from ashnets.text import Tokens
from hw.errors import UserError
from train import ranks
from train.augment import augment, recolour
from train.data import Batch, ImageTextData, batch_of, batches, drawn_texts
from train.metrics.vqa import soft_scores
from train.run import Run

AHEAD = 2  # batches that each process has ready
MOST_WORKERS = 8


class Batches(Dataset[Inputs | UserError]):
    """`Batches(run, data)[k]`: the inputs of step k, their images uint8 still.

    Distinct ids, one image of each, so that ids with many images weigh no more; where there are fewer ids than images
    in a batch, as with few classes, any images. rank, of: each of so many ranks has consecutive images of the one
    batch; what is drawn is drawn for all of them.
    """

    def __init__(self, run: Run, data: ImageTextData, rank: int = 0, of: int = 1) -> None:
        self.config, self.codec, self.data = run.config.train, run.codec, data
        self.rank, self.cuts = rank, [r * self.config.batch // of for r in range(of + 1)]
        if self.config.batch < of:
            raise UserError(
                f"--train.batch is {self.config.batch}, and {of} ranks share it; give at least an image to each"
            )
        self.answer_index = {answer: i for i, answer in enumerate(run.answers)}
        # Arrays: millions of small lists would be copied into each process, count by count.
        numbers: dict[str, int] = {}
        of_record = np.array([numbers.setdefault(data.image_id(i), len(numbers)) for i in range(len(data))], np.int64)
        self.records = np.argsort(of_record, kind="stable")  # those of one id side by side
        sizes = np.bincount(of_record)
        self.ids = np.arange(len(sizes))  # of each group
        if len(sizes) < self.config.batch:
            self.ids, sizes = of_record[self.records], np.ones(len(data), np.int64)
        self.ends = np.cumsum(sizes)
        self.needs_view = any(OBJECTIVES[name].needs_view for name in self.config.objectives)

    def __getitem__(self, step: int) -> Inputs:
        c = self.config
        rng = np.random.default_rng([c.seed, step, 1])  # 1: apart from the permutations of epochs
        groups = batches(len(self.ends), c.batch, c.seed, step)
        firsts = np.where(groups > 0, self.ends[groups - 1], 0)
        records = [rng.choice(self.records[a:b]) for a, b in zip(firsts, self.ends[groups], strict=True)]
        ids = self.ids[groups]
        texts = drawn_texts(self.data, records, rng, c.texts_per_image)
        part = slice(*self.cuts[self.rank : self.rank + 2])
        batch = batch_of(self.data, records[part], texts[part])
        tokens, split = self._shared_tokens(records, texts)
        each = len(batch.images) // len(batch.image_ids)
        draws: Any = rng if split is None else RowsOf(rng, each * len(ids), slice(each * part.start, each * part.stop))
        return self._inputs(batch, ids[part], tokens, split, draws)

    def _shared_tokens(self, records: list[int], texts: list[Sequence[int]]) -> tuple[Tokens, Split | None]:
        """Tokens of this rank's texts, as long as the longest of all ranks, and how the batch is split."""
        tokens = self.codec.encode([self.data.texts(i)[k] for i, of in zip(records, texts, strict=True) for k in of])
        if len(self.cuts) == 2:
            return tokens, None
        counts = tuple(sum(map(len, texts[a:b])) for a, b in pairwise(self.cuts))
        split = Split(rank=self.rank, images=tuple(b - a for a, b in pairwise(self.cuts)), texts=counts)
        return Tokens(*(values[split.own_texts] for values in tokens)), split

    def _inputs(self, batch: Batch, ids: np.ndarray, tokens: Tokens, split: Split | None, rng: Any) -> Inputs:
        c, pictures = self.config, torch.from_numpy(batch.images)
        return Inputs(
            images=augment(pictures, c, rng),
            view=recolour(augment(pictures, c, rng), c, rng) if self.needs_view else None,
            tokens=tokens,
            text_image=torch.from_numpy(batch.text_image),
            image_ids=torch.from_numpy(ids),
            picture_ids=torch.from_numpy(picture_ids(batch, ids)) if self.needs_view else None,
            answers=torch.tensor([self.answer_index.get(a, -1) for a in batch.answers]) if batch.answers else None,
            scores=self._scores(batch) if "vqa_soft" in c.objectives else None,
            split=split,
        )

    def _scores(self, batch: Batch) -> Tensor:
        scores = torch.zeros(len(batch.texts), len(self.answer_index))
        for row, votes in zip(scores, batch.votes, strict=True):
            for answer, worth in soft_scores(votes).items():
                if answer in self.answer_index:
                    row[self.answer_index[answer]] = worth
        return scores


class RowsOf:
    """Draws for some rows of a batch, as a generator makes them for all of its rows."""

    def __init__(self, rng: np.random.Generator, rows: int, part: slice) -> None:
        self.rng, self.rows, self.part = rng, rows, part

    def random(self, size: int) -> np.ndarray:
        return self.rng.random(self.rows)[self.part]

    def uniform(self, low: float, high: float, size: int | tuple[int, ...]) -> np.ndarray:
        rest = size[1:] if isinstance(size, tuple) else ()
        return self.rng.uniform(low, high, (self.rows, *rest))[self.part]


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
    """How many processes make batches where nobody says: on a GPU one for each core but one, at most 8; ranks on one
    host share its cores."""
    cores = (os.cpu_count() or 1) // ranks.on_this_host()
    return max(0, min(MOST_WORKERS, cores - 1)) if device.type == "cuda" else 0


def _begin_worker(_: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which all processes of a job get: training says when it is over
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # whose threads do not live on in a forked process


def picture_ids(batch: Batch, ids: np.ndarray) -> np.ndarray:
    """int64, one for each picture of a batch: the record's, or of pairs, which share pictures, by what it shows."""
    if len(batch.images) == len(ids):
        return ids
    digests = b"".join(hashlib.blake2b(picture.tobytes(), digest_size=8).digest() for picture in batch.images)
    return np.frombuffer(digests, np.int64).copy()
