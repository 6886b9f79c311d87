"""Hypotheses about easy-VQA's pictures, in the files of SNLI-VE (Xie et al. 2019; github.com/necla-ml/SNLI-VE).

What can be seen is entailed or contradicted. What cannot ("the red circle was drawn by a child") is neutral where the
picture holds what it speaks of, and contradicted where it does not. So no word of a hypothesis tells neutral, and the
best that can be done without the picture is two in three. In the test split every picture shows one of the combinations
that training never showed.
"""

import json
from itertools import product
from pathlib import Path

import numpy as np

from train.data.base import ArrayData, check_split
from train.data.cache import Progress
from train.data.derived import COLOURS, HELD_OUT, SHAPES, Look, Picture, pictures, wanted
from train.data.easy_vqa import part_pixels

SEEN = (
    "there is a {colour} {shape}",
    "the shape is a {colour} {shape}",
    "a {colour} {shape} can be seen",
    "somebody has painted a {shape} in {colour}",
    "the {shape} is {colour}",
    "the picture shows something {colour}",
    "the picture shows a {shape}",
)
UNSEEN = (
    "the {colour} {shape} was drawn by a child",
    "somebody likes the {colour} {shape} best",
    "the {colour} {shape} hangs on a wall",
    "there was another shape before the {colour} {shape}",
    "the {shape} was painted {colour} in the evening",
    "nobody has bought the {colour} {shape} yet",
)
FILES = {"train": "train", "val": "dev", "test": "test"}


def write_easy_snli_ve(root: Path, seed: int = 0) -> None:
    """Write `root` as SNLI-VE is laid out: snli_ve_SPLIT.jsonl of one pair a line, and flickr30k_images/."""
    folder = root / "flickr30k_images"
    folder.mkdir(parents=True)
    for split, name in FILES.items():
        with (root / f"snli_ve_{name}.jsonl").open("w", encoding="utf-8") as file:
            for picture, made in examples(split, seed):
                image = f"{picture.part}_{picture.number}"
                (folder / f"{image}.jpg").write_bytes(picture.path.read_bytes())
                for k, (hypothesis, label) in enumerate(made):
                    record = {
                        "Flickr30K_ID": image,
                        "captionID": f"{image}.jpg#0",
                        "pairID": f"{image}.jpg#{k}",
                        "gold_label": label,
                        "sentence1": f"A {picture.look.colour} {picture.look.shape}.",
                        "sentence2": hypothesis,
                    }
                    file.write(json.dumps(record) + "\n")


def easy_snli_ve(split: str, image_size: int, cache: Path | None = None, progress: Progress | None = None) -> ArrayData:
    """The pictures of a split, each with its hypotheses and their labels."""
    check_split("easy_snli_ve", split, image_size)
    made = examples(split, 0)
    pixels, numbers = part_pixels("test" if split == "test" else "train", image_size, cache, progress)
    row = {number: i for i, number in enumerate(numbers)}
    return ArrayData(
        name="easy_snli_ve",
        split=split,
        image_size=image_size,
        pixels=pixels,
        rows=tuple(row[p.number] for p, _ in made),
        image_ids=tuple(f"{p.part}/{p.number}" for p, _ in made),
        all_texts=tuple(tuple(hypothesis for hypothesis, _ in pairs) for _, pairs in made),
        all_answers=tuple(tuple(label for _, label in pairs) for _, pairs in made),
        all_ids=tuple(tuple(f"{p.part}_{p.number}.jpg#{k}" for k in range(len(pairs))) for p, pairs in made),
    )


def examples(split: str, seed: int) -> list[tuple[Picture, list[tuple[str, str]]]]:
    """Every picture of a split, with its hypotheses."""
    rng = np.random.default_rng([seed, sorted(FILES).index(split)])
    others = [Look(*both) for both in product(SHAPES, COLOURS)]
    if split != "test":
        others = [look for look in others if look not in HELD_OUT]
    return [(picture, hypotheses(picture.look, others, rng)) for picture in pictures(split) if wanted(picture, split)]


def hypotheses(look: Look, others: list[Look], rng: np.random.Generator, each: int = 2) -> list[tuple[str, str]]:
    """(hypothesis, label): `each` of the three labels, of contradictions as many of what can be seen as of what
    cannot. others: what contradictions may speak of. In training they are the combinations that pictures show, or a
    held-out one would be contradicted wherever it is named."""

    def of(templates: tuple[str, ...], shown: Look) -> str:
        return templates[rng.integers(len(templates))].format(**shown._asdict())

    made = [(of(SEEN, look), "entailment") for _ in range(each)]
    made += [(of(UNSEEN, look), "neutral") for _ in range(each)]
    for k in range(each):
        templates = (SEEN, UNSEEN)[k % 2]
        while True:
            other = others[rng.integers(len(others))]
            template = templates[rng.integers(len(templates))]
            if template.format(**other._asdict()) != template.format(**look._asdict()):
                break
        made.append((template.format(**other._asdict()), "contradiction"))
    return made
