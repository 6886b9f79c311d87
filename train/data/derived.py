"""What each picture of easy-VQA shows, told from its annotations alone, and pictures set aside to test composition.

Most questions about a picture settle its one shape and its one colour: "what shape is present?" by its answer, "is
there not a red shape?" by yes or no, "what color is the circle?" by what it takes for granted. Pictures of which the
questions leave a doubt are not used by data sets that are derived from it. Of the 24 combinations four are held out:
training never shows them, though it shows each of their shapes and each of their colours in other company.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from train.data.base import ImageTextData, check_split
from train.data.cache import Progress
from train.data.easy_vqa import easy_vqa, package_part

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
    asked, paths = package_part(part)
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


def easy_vqa_new(
    split: str, image_size: int, cache: Path | None = None, progress: Progress | None = None
) -> ImageTextData:
    """easy-VQA with the held-out combinations kept from training and validation, and nothing else in the test."""
    check_split("easy_vqa_new", split, image_size)
    whole = easy_vqa(split, image_size, cache, progress)
    chosen = {
        f"{p.part}/{p.number}" for p in known_pictures("test" if split == "test" else "train") if wanted(p, split)
    }
    kept = [i for i, image_id in enumerate(whole.image_ids) if image_id in chosen]
    return replace(
        whole,
        name="easy_vqa_new",
        rows=tuple(whole.rows[i] for i in kept),
        image_ids=tuple(whole.image_ids[i] for i in kept),
        all_texts=tuple(whole.all_texts[i] for i in kept),
        all_answers=tuple(whole.all_answers[i] for i in kept),
        all_kinds=tuple(whole.all_kinds[i] for i in kept),
    )


def wanted(picture: Picture, split: str) -> bool:
    """Whether a picture's combination belongs to a split: the held-out ones to the test alone, and to it nothing
    else."""
    return (picture.look in HELD_OUT) == (split == "test")
