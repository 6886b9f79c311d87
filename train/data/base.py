"""What a data set of images and texts is, and how batches are cut from it.

Shapes: `B` images of a batch, `N` texts of a batch, `H = W = image_size` pixels.
"""

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Protocol

import numpy as np

from hw.errors import UserError

SPLITS = ("train", "val", "test")


class MissingPackageError(UserError):
    """A package that holds the data, or draws it, is not installed."""


class ImageTextData(Protocol):
    """Images, or pairs of them, with captions, or with questions and their answers.

    Records with one `image_id` show the same thing: a loss must never take them as negatives of each other.
    """

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def image_size(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over ids, texts, answers and pixels, or, where those are large, what stands for them: equal
        if the records are."""
        ...

    def __len__(self) -> int:
        """The number of images, or of pairs."""
        ...

    def image(self, i: int) -> np.ndarray:
        """uint8 [H, W, 3], RGB; [2, H, W, 3] for a pair."""
        ...

    def image_id(self, i: int) -> str: ...

    def texts(self, i: int) -> tuple[str, ...]:
        """The captions of image `i`, or the questions about it."""
        ...

    def answers(self, i: int) -> tuple[str, ...]:
        """One answer for each question, to learn from; () for caption data."""
        ...

    def votes(self, i: int) -> tuple[tuple[str, ...], ...]:
        """What every annotator answered to each question, () for one that nobody was asked; () for caption data."""
        ...

    def text_ids(self, i: int) -> tuple[str, ...]:
        """What the data set calls each text: question_id, identifier, pairID."""
        ...

    def kinds(self, i: int) -> tuple[str, ...]:
        """The type of answer that each question asks for, as VQA v2's yes/no, number, other; () where nothing tells."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArrayData:
    """`ImageTextData` over an array of pixels, usually mapped from the cache, and the rows that the split uses."""

    name: str
    split: str
    image_size: int
    pixels: np.ndarray = field(repr=False)  # uint8 [M, H, W, 3]; M >= the number of records
    rows: tuple[int | tuple[int, int], ...] = field(repr=False)  # of `pixels`, one or two for each record
    image_ids: tuple[str, ...] = field(repr=False)
    all_texts: tuple[tuple[str, ...], ...] = field(repr=False)
    all_answers: tuple[tuple[str, ...], ...] = field(repr=False, default=())  # () for caption data
    all_votes: tuple[tuple[tuple[str, ...], ...], ...] = field(repr=False, default=())  # () for one vote each
    all_ids: tuple[tuple[str, ...], ...] = field(repr=False, default=())  # () for IMAGE_ID#NUMBER
    all_kinds: tuple[tuple[str, ...], ...] = field(repr=False, default=())  # () where nothing tells

    def __post_init__(self) -> None:
        n, size = len(self.rows), self.image_size
        if self.pixels.dtype != np.uint8 or self.pixels.shape[1:] != (size, size, 3):
            found = f"{self.pixels.dtype} {self.pixels.shape}"
            raise ValueError(f"{self.name}: pixels are {found}, expected uint8 [M, {size}, {size}, 3]")
        if len(self.image_ids) != n or len(self.all_texts) != n:
            raise ValueError(f"{self.name}: {n} rows, {len(self.image_ids)} image ids, {len(self.all_texts)} texts")
        if self.all_answers and [len(a) for a in self.all_answers] != [len(t) for t in self.all_texts]:
            raise ValueError(f"{self.name}: every question needs one answer")
        for what, given in (("id", self.all_ids), ("set of votes", self.all_votes), ("kind", self.all_kinds)):
            if given and [len(a) for a in given] != [len(t) for t in self.all_texts]:
                raise ValueError(f"{self.name}: every text needs one {what}")

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, i: int) -> np.ndarray:
        # A copy: the map is read-only, and torch warns about arrays that it may not write.
        row = self.rows[i]
        return np.array(self.pixels[row if isinstance(row, int) else list(row)])

    def image_id(self, i: int) -> str:
        return self.image_ids[i]

    def texts(self, i: int) -> tuple[str, ...]:
        return self.all_texts[i]

    def answers(self, i: int) -> tuple[str, ...]:
        return self.all_answers[i] if self.all_answers else ()

    def votes(self, i: int) -> tuple[tuple[str, ...], ...]:
        return self.all_votes[i] if self.all_votes else tuple((answer,) for answer in self.answers(i))

    def text_ids(self, i: int) -> tuple[str, ...]:
        if self.all_ids:
            return self.all_ids[i]
        return tuple(f"{self.image_id(i)}#{k}" for k in range(len(self.texts(i))))

    def kinds(self, i: int) -> tuple[str, ...]:
        return self.all_kinds[i] if self.all_kinds else ()

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for i in range(len(self)):
            record = [self.image_id(i), self.image_size, self.texts(i), self.answers(i)]
            record += [self.all_votes[i]] if self.all_votes else []
            digest.update(json.dumps(record).encode())
            digest.update(self.image(i).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """B images and their N texts; `text_image[n]` is the position in the batch of the image that text `n` is about. Of
    B pairs the two images follow each other."""

    images: np.ndarray  # uint8 [B, 3, H, W], or [2 B, 3, H, W]
    texts: list[str]  # N
    text_image: np.ndarray  # int64 [N]
    image_ids: list[str]  # B
    answers: list[str]  # N, or empty for caption data
    votes: list[tuple[str, ...]] = field(default_factory=list)  # N, or empty for caption data

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images are {self.images.dtype} {self.images.shape}, expected uint8 [B, 3, H, W]")
        if len(self.images) not in (len(self.image_ids), 2 * len(self.image_ids)):
            raise ValueError(f"{len(self.images)} images, but {len(self.image_ids)} image ids")
        if self.text_image.dtype != np.int64 or self.text_image.shape != (len(self.texts),):
            raise ValueError(
                f"text_image is {self.text_image.dtype} {self.text_image.shape}, expected int64 [{len(self.texts)}]"
            )
        if self.answers and len(self.answers) != len(self.texts):
            raise ValueError(f"{len(self.texts)} texts, but {len(self.answers)} answers")
        if len(self.votes) != len(self.answers):
            raise ValueError(f"{len(self.answers)} answers, but {len(self.votes)} sets of votes")


def pictures_each(data: ImageTextData) -> int:
    """How many pictures a text is about: one, or a pair."""
    return data.image(0).size // (3 * data.image_size**2)


def collate(
    data: ImageTextData, indices: Sequence[int] | np.ndarray, rng: np.random.Generator, texts_per_image: int | None
) -> Batch:
    """The batch of the images `indices`, with at most `texts_per_image` texts of each, drawn without replacement.

    None takes all texts, in order, and draws nothing from `rng`.
    """
    return batch_of(data, indices, drawn_texts(data, indices, rng, texts_per_image))


def drawn_texts(
    data: ImageTextData, indices: Sequence[int] | np.ndarray, rng: np.random.Generator, texts_per_image: int | None
) -> list[Sequence[int]]:
    """Which of its texts each of the images `indices` comes with, see `collate`."""
    if texts_per_image is not None and texts_per_image < 1:
        raise ValueError(f"texts_per_image is {texts_per_image}; give 1 or more, or None for all texts")
    counts = [len(data.texts(i)) for i in indices]
    if texts_per_image is None:
        return [range(count) for count in counts]
    return [rng.permutation(count)[:texts_per_image].tolist() for count in counts]


def batch_of(data: ImageTextData, indices: Sequence[int] | np.ndarray, chosen: Sequence[Sequence[int]]) -> Batch:
    """The batch of the images `indices`, each with its `chosen` texts."""
    texts: list[str] = []
    answers: list[str] = []
    votes: list[tuple[str, ...]] = []
    text_image: list[int] = []
    for position, (i, of) in enumerate(zip(indices, chosen, strict=True)):
        image_texts, image_answers = data.texts(i), data.answers(i)
        texts += [image_texts[k] for k in of]
        if image_answers:
            said = data.votes(i)
            answers += [image_answers[k] for k in of]
            votes += [said[k] for k in of]
        text_image += [position] * len(of)
    return Batch(
        images=image_array(data, indices),
        texts=texts,
        text_image=np.array(text_image, dtype=np.int64),
        image_ids=[data.image_id(i) for i in indices],
        answers=answers,
        votes=votes,
    )


def image_array(data: ImageTextData, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """uint8 [B, 3, H, W] of the images `indices`, or [2 B, 3, H, W] of pairs, the two of one after each other."""
    size = data.image_size
    images = np.concatenate([data.image(i).reshape(-1, size, size, 3) for i in indices])
    return images.transpose(0, 3, 1, 2)


@lru_cache(maxsize=2)  # the steps of one epoch ask for the same permutation
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    permutation = np.random.default_rng([seed, epoch]).permutation(n)
    permutation.setflags(write=False)
    return permutation


def batches(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The images of global step `step`: int64 [batch_size], indices below `n`.

    Each epoch is a permutation of its own, drawn from (seed, epoch); its last `n % batch_size` indices are dropped.
    Nothing is remembered between steps, so that a resumed run needs only its step number.

    >>> [batches(5, 2, seed=0, step=s).shape for s in (0, 1, 10**9)]
    [(2,), (2,), (2,)]
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size is {batch_size}, but the data holds {n} images; choose from 1 to {n}")
    if step < 0 or seed < 0:
        raise ValueError(f"step is {step} and seed is {seed}; both must be 0 or more")
    epoch, position = divmod(step, n // batch_size)
    start = position * batch_size
    return _permutation(n, seed, epoch)[start : start + batch_size].copy()


def answer_vocabulary(*sources: ImageTextData, least: int = 1) -> list[str]:
    """The answers that are given at least so often, in alphabetical order; empty for caption data. Of VQA v2's training
    and validation questions 3,129 are given nine times."""
    counts = Counter(answer for data in sources for i in range(len(data)) for answer in data.answers(i) if answer)
    return sorted(answer for answer, count in counts.items() if count >= least)


def check_split(name: str, split: str, image_size: int) -> None:
    """Refuse a split or an image size that no data set has."""
    if split not in SPLITS:
        raise UserError(f"{name}: there is no split '{split}'; choose one of {', '.join(SPLITS)}")
    if image_size < 1:
        raise UserError(f"{name}: image_size is {image_size} px; give 1 or more")


def require(module: str, package: str) -> ModuleType:
    """Import `module`, or say in one line which package brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"the package '{package}' is not installed; install it with: pip install {package}"
        ) from error
