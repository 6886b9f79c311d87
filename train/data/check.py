"""`ashnets data check`: read all of a folder once, count what is there and what is wrong, and draw a sample sheet."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from hw.artifact import staged_file
from hw.images import ImageError
from train.data.base import SPLITS, ImageTextData
from train.data.cache import Progress
from train.data.formats import FORMATS, NoSplitError, open_folder
from train.data.formats.base import Problem

COLUMNS, ROWS, TILE, LINE = 6, 4, 160, 14


@dataclass(kw_only=True)
class Report:
    """What one split holds. answers: the most common ones and how often they are given."""

    split: str
    images: int
    texts: int
    most_texts: int
    answers: dict[str, int]
    problems: list[Problem] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        kinds = Counter(problem.kind for problem in self.problems)
        return {
            "split": self.split,
            "images": self.images,
            "texts": self.texts,
            "most_texts_of_an_image": self.most_texts,
            "answers": len(self.answers),
            **{kind: kinds[kind] for kind in ("missing", "broken", "duplicate", "record")},
        }


def check_folder(kind: str, root: Path, sheet: Path | None = None, progress: Progress | None = None) -> list[Report]:
    """A report on every split that the folder has; `NoSplitError` where it has none. Every picture is decoded. sheet:
    where to draw samples of the first split."""
    reports = []
    splits = [split for split in SPLITS if FORMATS[kind].files(root, split)]
    if not splits:
        raise NoSplitError(f"{root}: has no split in the format {kind}; expected {FORMATS[kind].about}")
    for split in splits:
        data, problems = open_folder(kind, root, split, TILE)
        reports.append(_report(data, list(problems), progress))
        if sheet is not None and len(reports) == 1:
            draw_sheet(data, sheet)
    return reports


def _report(data: ImageTextData, problems: list[Problem], progress: Progress | None) -> Report:
    answers: Counter[str] = Counter()
    texts = most = 0
    for i in range(len(data)):
        count = len(data.texts(i))
        texts, most = texts + count, max(most, count)
        answers.update(answer for answer in data.answers(i) if answer)
        try:
            data.image(i)
        except ImageError as error:
            problems.append(Problem(*str(error).split(": ", 1), kind="broken"))
        if progress:
            progress(i + 1, len(data))
    return Report(
        split=data.split,
        images=len(data),
        texts=texts,
        most_texts=most,
        answers=dict(answers.most_common()),
        problems=problems,
    )


def draw_sheet(data: ImageTextData, path: Path) -> None:
    """A picture of up to 24 samples, evenly spaced, each with the beginning of one of its texts."""
    chosen = np.unique(np.linspace(0, len(data) - 1, COLUMNS * ROWS).astype(int)) if len(data) else []
    height = TILE + 3 * LINE
    canvas = Image.new("RGB", (COLUMNS * TILE, ROWS * height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11)
    for place, i in enumerate(chosen):
        x, y = place % COLUMNS * TILE, place // COLUMNS * height
        try:
            pixels = data.image(int(i))
        except ImageError:
            pen.text((x + 4, y + 4), "does not decode", "red", font)
        else:
            pixels = np.concatenate(list(pixels), 1) if pixels.ndim == 4 else pixels
            tile = Image.fromarray(pixels)
            tile.thumbnail((TILE - 4, TILE - 4))
            canvas.paste(tile, (x + 2, y + 2))
        texts, answers = data.texts(int(i)), data.answers(int(i))
        words = texts[place % len(texts)] + (f" - {answers[place % len(texts)]}" if answers else "")
        for number, line in enumerate(_wrapped(" ".join(words.split()), pen, font)):
            pen.text((x + 4, y + TILE + number * LINE), line, "black", font)
    with staged_file(path) as temporary:
        canvas.save(temporary, format="PNG")


def _wrapped(text: str, pen: ImageDraw.ImageDraw, font: Any, most: int = 3) -> list[str]:
    """The first lines of a text that fit a tile, broken between words where there are any."""
    made = [""]
    for letter in text:
        if pen.textlength(made[-1] + letter, font) > TILE - 8:
            whole, _, begun = made[-1].rpartition(" ")
            made[-1:] = [whole, begun] if whole else [begun, ""]
        made[-1] += letter
    return made[:most]
