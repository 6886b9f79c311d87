"""What each picture of easy-VQA shows, told from its annotations alone, and pictures set aside to test composition.

Most questions about a picture settle its one shape and its one colour: "what shape is present?" by its answer, "is
there not a red shape?" by yes or no, "what color is the circle?" by what it takes for granted. Pictures of which the
questions leave a doubt are not used by data sets that are derived from it. Of the 24 combinations four are held out:
training never shows them, though it shows each of their shapes and each of their colours in other company.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from train.data.base import require

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "gray", "teal", "green", "yellow", "red", "blue", "brown")


class Look(NamedTuple):
    """The one shape of a picture, and its colour."""

    shape: str
    colour: str


HELD_OUT = frozenset(
    {Look("circle", "red"), Look("rectangle", "green"), Look("triangle", "blue"), Look("circle", "gray")}
)


class Picture(NamedTuple):
    """part: the package's "train" or "test". number: its own within it."""

    part: str
    number: int
    path: Path
    look: Look


def known_pictures(part: str) -> list[Picture]:
    """The pictures of a part whose look the annotations tell, by number."""
    package = require("easy_vqa", "easy-vqa")
    if part == "train":
        asked, paths = package.get_train_questions(), package.get_train_image_paths()
    else:
        asked, paths = package.get_test_questions(), package.get_test_image_paths()
    found = looks(zip(*asked, strict=True))
    return [Picture(part, number, Path(paths[number]), found[number]) for number in sorted(found)]


def pictures(split: str) -> list[Picture]:
    """What derived data sets show: "train" and "val" are the package's training pictures without the held-out
    combinations, "test" its test pictures with all of them."""
    known = known_pictures("test" if split == "test" else "train")
    if split == "test":
        return known
    return [p for p in known if p.look not in HELD_OUT and (p.number % 10 == 0) == (split == "val")]


def looks(asked: Iterable[tuple[str, str, int]]) -> dict[int, Look]:
    """The look of each picture about which (question, answer, picture) leave no doubt."""
    possible: dict[int, tuple[set[str], set[str]]] = {}
    for question, answer, number in asked:
        words = question.rstrip("?").split()
        negated = "not" in words or "no" in words
        for left, names in zip(
            possible.setdefault(number, (set(SHAPES), set(COLOURS))), (SHAPES, COLOURS), strict=True
        ):
            for name in names:
                named = name in words
                if (
                    answer == name
                    or (named and answer not in ("yes", "no"))
                    or (named and (answer == "yes") != negated)
                ):
                    left &= {name}
                elif named:
                    left -= {name}
    return {n: Look(*(one.pop() for one in both)) for n, both in possible.items() if all(len(one) == 1 for one in both)}
