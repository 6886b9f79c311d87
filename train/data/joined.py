"""Several data sets as one: what base-4m trains on is COCO, Visual Genome, SBU and CC3M."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from hw.errors import UserError
from train.data.base import ImageTextData


class JoinedData:
    """`ImageTextData` of the records of `parts`, one after the other. An image id starts with its part's number, so
    that ids of two sets never meet."""

    def __init__(self, name: str, parts: Sequence[ImageTextData]) -> None:
        if len({bool(part.answers(0)) for part in parts}) > 1:
            raise UserError(f"{name}: some of them have answers and some have none; join those of one task")
        if len({part.image(0).shape for part in parts}) > 1:
            raise UserError(f"{name}: some are of single images and some of pairs; join those of one task")
        self.name, self.parts = name, list(parts)
        self.split, self.image_size = parts[0].split, parts[0].image_size
        self.ends = list(accumulate(map(len, parts)))

    def _of(self, i: int) -> tuple[int, ImageTextData, int]:
        number = bisect_right(self.ends, i)
        return number, self.parts[number], int(i) - (self.ends[number - 1] if number else 0)

    def __len__(self) -> int:
        return self.ends[-1]

    def image(self, i: int) -> np.ndarray:
        _, part, k = self._of(i)
        return part.image(k)

    def image_id(self, i: int) -> str:
        number, part, k = self._of(i)
        return f"{number}/{part.image_id(k)}"

    def texts(self, i: int) -> tuple[str, ...]:
        _, part, k = self._of(i)
        return part.texts(k)

    def answers(self, i: int) -> tuple[str, ...]:
        _, part, k = self._of(i)
        return part.answers(k)

    def votes(self, i: int) -> tuple[tuple[str, ...], ...]:
        _, part, k = self._of(i)
        return part.votes(k)

    def text_ids(self, i: int) -> tuple[str, ...]:
        _, part, k = self._of(i)
        return part.text_ids(k)

    def kinds(self, i: int) -> tuple[str, ...]:
        _, part, k = self._of(i)
        return part.kinds(k)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(part.fingerprint for part in self.parts).encode()).hexdigest()
