"""easy-VQA: 5,000 pictures of one coloured shape, 48,248 questions, 13 answers.

Source: the package `easy-vqa` 1.0 by Victor Zhou (MIT). "test" is the package's whole test set, "val" is 400 of its
4,000 training images, "train" the rest. No two of the pictures are equal. Answering from the question alone already
scores 67%, so compare with that.
"""

import hashlib
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from hw.images import decode_image
from train.data.base import ArrayData, check_split, require
from train.data.cache import Progress, cached_images

VAL_IMAGES = 400


def easy_vqa(split: str, image_size: int, cache: Path | None = None, progress: Progress | None = None) -> ArrayData:
    """The questions and answers about each picture; the originals have 64 px.

    >>> from train.data import load
    >>> len(load("easy_vqa", "test", image_size=64))  # doctest: +SKIP
    1000
    """
    check_split("easy_vqa", split, image_size)
    part = "test" if split == "test" else "train"
    questions = package_part(part)[0]
    pixels, numbers = part_pixels(part, image_size, cache, progress)
    asked: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in zip(*questions, strict=True):
        asked[number].append((question, answer))
    val = set(sorted(numbers, key=_rank)[:VAL_IMAGES])
    rows = [row for row, number in enumerate(numbers) if part == "test" or (number in val) == (split == "val")]
    return ArrayData(
        name="easy_vqa",
        split=split,
        image_size=image_size,
        pixels=pixels,
        rows=tuple(rows),
        image_ids=tuple(f"{part}/{numbers[row]}" for row in rows),
        all_texts=tuple(tuple(question for question, _ in asked[numbers[row]]) for row in rows),
        all_answers=tuple(tuple(answer for _, answer in asked[numbers[row]]) for row in rows),
        all_kinds=tuple(tuple(_kind(*pair) for pair in asked[numbers[row]]) for row in rows),
    )


def part_pixels(
    part: str, image_size: int, cache: Path | None = None, progress: Progress | None = None
) -> tuple[np.ndarray, list[int]]:
    """The pictures of the package's part "train" or "test", and their numbers in the order of the rows."""
    paths = package_part(part)[1]
    numbers = sorted(paths)
    pixels = cached_images(
        name=f"easy_vqa-{part}",
        key={"easy-vqa": metadata.version("easy-vqa"), "recipe": 1},
        count=len(numbers),
        image_size=image_size,
        draw=lambda row: decode_image(paths[numbers[row]], image_size),
        folder=cache,
        progress=progress,
    )
    return pixels, numbers


def package_part(part: str) -> tuple[Any, dict[int, str]]:
    """((questions, answers, numbers of the pictures), paths of the pictures)."""
    package = require("easy_vqa", "easy-vqa")
    if part == "test":
        return package.get_test_questions(), package.get_test_image_paths()
    return package.get_train_questions(), package.get_train_image_paths()


def _kind(question: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "color" if "color" in question else "shape"


def _rank(number: int) -> str:
    """A hash, not a generator: the choice stays the same whatever numpy or Python does."""
    return hashlib.sha256(f"easy_vqa train/{number}".encode()).hexdigest()
