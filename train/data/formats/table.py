"""A plain folder of pictures with a table: captions.csv, or train.csv, val.csv and test.csv; .tsv too."""

from pathlib import Path
from typing import Any

from hw.errors import UserError
from train.data.base import SPLITS
from train.data.formats.base import Found, Pictures, Problem, RecordError, Text, only, table_rows

COLUMNS = ("image", "image2", "caption", "question", "answer", "split", "image_id", "id")
TABLES = ("captions", "questions", "data")


def table_files(root: Path, split: str) -> list[Path]:
    """SPLIT.csv, or one table of all splits where there is none of any."""

    def those(*names: str) -> list[Path]:
        return [path for name in names for end in (".csv", ".tsv") if (path := root / (name + end)).is_file()]

    return only(those(split) if those(*SPLITS) else those(*TABLES), "table")


def read_table(root: Path, split: str) -> Found:
    """Columns `image` and `caption`, or `image`, `question` and `answer`, with `image2` for pairs. `split` tells train,
    val and test apart in a table of all; `image_id` is equal for pictures of the same thing, by default the file's
    name; `id` names a row. Other columns are left alone."""
    found, pictures, unanswered = Found(), Pictures(root), list[str]()
    for path in table_files(root, split):
        header, rows = table_rows(path)
        text = "question" if "question" in header else "caption"
        needed = ["image", text, *(["answer"] if text == "question" else [])]
        needed += ["split"] if path.stem in TABLES else []
        if missing := [column for column in needed if column not in header]:
            raise UserError(
                f"{path}: there is no column '{missing[0]}' among {', '.join(header)}; known columns: "
                f"{', '.join(COLUMNS)}"
            )
        if twice := [column for column in COLUMNS if header.count(column) > 1]:
            raise UserError(f"{path}: column '{twice[0]}' is there {header.count(twice[0])} times; keep one")

        def take(line: Any, where: str, path: Path = path, text: str = text, header: list = header) -> None:
            number, fields = line
            if len(fields) != len(header):
                raise RecordError(
                    f"has {len(fields)} fields on line {number}, the header {len(header)}; quote a field that holds "
                    "commas or tabs"
                )
            row = dict(zip(header, fields, strict=True))
            its = row.get("split", split) if path.stem in TABLES else split
            if its not in SPLITS:
                raise RecordError(f"split is '{its}', expected one of {', '.join(SPLITS)}")
            if its != split:
                return
            names = [row["image"], *([row["image2"]] if row.get("image2") else [])]
            answer = row["answer"].strip() if text == "question" else ""
            said = Text(text=row[text], name=row.get("id", ""), answer=answer, votes=(answer,) if answer else ())
            paths = tuple(pictures.find(name) for name in names)
            image = row.get("image_id") or "+".join(names)
            found.add(image, paths, said, where, key="\0".join([image, *map(str, paths)]))
            if text == "question" and not answer:
                unanswered.append(where)

        found.each(path, rows, take, "row")
    if any(text.answer for record in found.records.values() for text in record.texts):
        what = "has no answer, and other rows of its split have; write one, or leave the row out"
        found.problems += [Problem(where, what, "missing") for where in unanswered]
    return found
