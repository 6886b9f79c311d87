"""Sentences about pairs of easy-VQA's pictures, in the files of NLVR2 (Suhr et al. 2019; github.com/lil-lab/nlvr).

Each sentence stands over four pairs, two of which make it true: whoever looks at the sentence alone is right half of
the time. A false pair is near to a true one: one picture of it is another, or the two have changed places. In the test
split every pair shows one of the combinations that training never showed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

from train.data.base import ArrayData, check_split
from train.data.cache import Progress
from train.data.derived import COLOURS, HELD_OUT, SHAPES, Look, Picture, pictures
from train.data.easy_vqa import part_pixels

SENTENCES = {"train": 3000, "val": 150, "test": 250}
PAIRS = 4
FILES = {"train": "train", "val": "dev", "test": "test1"}


@dataclass(frozen=True, kw_only=True)
class Sentence:
    text: str
    true_of: Callable[[Look, Look], bool]


def sentences() -> list[list[Sentence]]:
    """Every sentence, by the kind of question that it asks."""
    kinds: list[list[Sentence]] = []

    def kind(*made: tuple[str, Callable[[Look, Look], bool]]) -> None:
        kinds.append([Sentence(text=text, true_of=true_of) for text, true_of in made])

    every = [Look(*both) for both in product(SHAPES, COLOURS)]
    kind(*((f"the left image shows a {k.colour} {k.shape}", lambda a, b, k=k: a == k) for k in every))
    kind(*((f"the right image shows a {k.colour} {k.shape}", lambda a, b, k=k: b == k) for k in every))
    kind(*((f"both images show a {s}", lambda a, b, s=s: a.shape == b.shape == s) for s in SHAPES))
    kind(*((f"both shapes are {c}", lambda a, b, c=c: a.colour == b.colour == c) for c in COLOURS))
    kind(*((f"exactly one image shows a {s}", lambda a, b, s=s: (a.shape == s) != (b.shape == s)) for s in SHAPES))
    kind(
        *((f"exactly one of the shapes is {c}", lambda a, b, c=c: (a.colour == c) != (b.colour == c)) for c in COLOURS)
    )
    kind(*((f"at least one image shows a {k.colour} {k.shape}", lambda a, b, k=k: k in (a, b)) for k in every))
    kind(
        *((f"there is no {c} shape in either image", lambda a, b, c=c: c not in (a.colour, b.colour)) for c in COLOURS)
    )
    kind(
        ("the two shapes have the same color", lambda a, b: a.colour == b.colour),
        ("the two shapes have different colors", lambda a, b: a.colour != b.colour),
        ("the two images show the same shape", lambda a, b: a.shape == b.shape),
        ("the two images show different shapes", lambda a, b: a.shape != b.shape),
    )
    kind(
        *(
            (
                f"there is a {s} to the left of a {other}",
                lambda a, b, s=s, other=other: (a.shape, b.shape) == (s, other),
            )
            for s, other in product(SHAPES, SHAPES)
            if s != other
        )
    )
    return kinds


def write_easy_nlvr2(root: Path, seed: int = 0) -> None:
    """Write `root` as NLVR2 is laid out: SPLIT.json of one example a line, and images/SPLIT/."""
    for split, count in SENTENCES.items():
        name = FILES[split]
        folder = root / "images" / name
        folder.mkdir(parents=True)
        with (root / f"{name}.json").open("w", encoding="utf-8") as file:
            for number, (sentence, pairs) in enumerate(examples(split, count, seed)):
                for k, (pair, label) in enumerate(pairs):
                    base = f"{name}-{number}-{k}"
                    for side, picture in enumerate(pair):
                        (folder / f"{base}-img{side}.png").write_bytes(picture.path.read_bytes())
                    record = {"identifier": f"{base}-0", "sentence": sentence, "label": str(label)}
                    file.write(json.dumps(record) + "\n")


def easy_nlvr2(split: str, image_size: int, folder: Path | None = None, progress: Progress | None = None) -> ArrayData:
    """The examples of a split: pairs with one sentence each, which is "True" or "False" of them."""
    check_split("easy_nlvr2", split, image_size)
    made = [
        (f"{FILES[split]}-{number}-{k}-0", sentence, pair, str(label))
        for number, (sentence, pairs) in enumerate(examples(split, SENTENCES[split], 0))
        for k, (pair, label) in enumerate(pairs)
    ]
    pixels, numbers = part_pixels("test" if split == "test" else "train", image_size, folder, progress)
    row = {number: i for i, number in enumerate(numbers)}
    return ArrayData(
        name="easy_nlvr2",
        split=split,
        image_size=image_size,
        pixels=pixels,
        rows=tuple((row[a.number], row[b.number]) for _, _, (a, b), _ in made),
        image_ids=tuple(f"{a.part}/{a.number}+{b.number}" for _, _, (a, b), _ in made),
        all_texts=tuple((sentence,) for _, sentence, _, _ in made),
        all_answers=tuple((label,) for _, _, _, label in made),
        all_ids=tuple((identifier,) for identifier, _, _, _ in made),
    )


@cache  # seconds for the training split
def examples(split: str, count: int, seed: int) -> list[tuple[str, list[tuple[tuple[Picture, Picture], bool]]]]:
    """`count` sentences, each with its pairs and whether they make it true."""
    rng = np.random.default_rng([seed, sorted(SENTENCES).index(split)])
    shown = pictures(split)
    new = [p for p in shown if p.look in HELD_OUT]
    kinds = sentences()
    made = []
    while len(made) < count:
        kind = kinds[len(made) % len(kinds)]
        sentence = kind[rng.integers(len(kind))]
        if pairs := _pairs(sentence, shown, new, rng):
            made.append((sentence.text, pairs))
    return made


def _pairs(
    sentence: Sentence, shown: list[Picture], new: list[Picture], rng: np.random.Generator
) -> list[tuple[tuple[Picture, Picture], bool]] | None:
    """Two pairs that make the sentence true and two that do not, mixed; None where chance finds none. new: pictures of
    which each pair must hold one, if there are any."""

    def draw(known: list[Picture]) -> Picture:
        return known[rng.integers(len(known))]

    def allowed(a: Picture, b: Picture) -> bool:
        return a != b and (not new or a.look in HELD_OUT or b.look in HELD_OUT)

    found: list[tuple[tuple[Picture, Picture], bool]] = []
    for _ in range(4000):
        a, b = draw(shown), draw(shown)
        if not (allowed(a, b) and sentence.true_of(a.look, b.look)):
            continue
        near = [(b, a), (draw(shown), b), (a, draw(shown))]
        rng.shuffle(near)
        wrong = [(c, d) for c, d in near if allowed(c, d) and not sentence.true_of(c.look, d.look)]
        if wrong:
            found += [((a, b), True), (wrong[0], False)]
        if len(found) == PAIRS:
            return [found[i] for i in rng.permutation(PAIRS)]
    return None
