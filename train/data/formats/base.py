"""What every reader of annotation files shares: records, problems, pictures by name, values of the right type.

A reader goes through a whole split and collects what is wrong beside what is right, so that `ashnets data check` can
tell all of it at once, and training can refuse the first.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hw.errors import UserError, printable


@dataclass(frozen=True, slots=True)
class Problem:
    """where: file and record. what: what is wrong, and what helps. kind: missing, duplicate, record or broken."""

    where: str
    what: str
    kind: str = "record"

    def __str__(self) -> str:
        """On one line, whatever stood in the file."""
        return printable(f"{self.where}: {self.what}")


class RecordError(Exception):
    """A record cannot be used; its reader makes a `Problem` of it."""

    def __init__(self, what: str, kind: str = "record") -> None:
        super().__init__(what)
        self.what, self.kind = what, kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One caption, question, sentence or hypothesis. votes: what every annotator answered, () where nobody was asked.
    answer: the one to learn from. kind: the type of answer that is asked for, where the file tells."""

    text: str
    name: str = ""
    answer: str = ""
    votes: tuple[str, ...] = ()
    kind: str = ""


@dataclass(slots=True)
class Record:
    """Texts about one image, or about a pair. image_id: equal for images of the same thing. where: the first line that
    speaks of it."""

    image_id: str
    images: tuple[Path, ...]
    where: str
    texts: list[Text] = field(default_factory=list)


@dataclass(kw_only=True)
class Found:
    """What a reader makes of a split: records by image id, or by a key of their own, in the order of the files, and
    problems."""

    records: dict[str, Record] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # of texts
    counts: Counter[str] = field(default_factory=Counter)  # of texts, by image id

    def add(self, image_id: str, images: tuple[Path, ...], text: Text, where: str, key: str | None = None) -> None:
        """Add a text to the record of its image; one without a name is called IMAGE_ID#NUMBER. key: the record's, where
        several may share an image id. `RecordError` where its name was there before, or its images are not those of
        the record."""
        if not text.text.strip():
            raise RecordError("has an empty text; write one, or leave the record out")
        if any("\ud800" <= sign <= "\udfff" for sign in text.text):
            raise RecordError("has half a character (a lone surrogate) in its text; write it anew")
        name = text.name or f"{image_id}#{self.counts[image_id]}"
        if name in self.names:
            raise RecordError(f"'{name}' was there before; every text needs a name of its own", "duplicate")
        record = self.records.setdefault(image_id if key is None else key, Record(image_id, images, where))
        if record.images != images:
            raise RecordError(
                f"image id '{image_id}' stands for {images[0].name} here, for {record.images[0].name} at "
                f"{record.where}; one id is one image",
                "duplicate",
            )
        self.names.add(name)
        self.counts[image_id] += 1
        record.texts.append(replace(text, name=name))

    def each(self, path: Path, rows: Iterable[Any], take: Callable[[Any, str], None], what: str = "record") -> None:
        """`take` every row; what it refuses becomes a problem that names file and row, counted from 1."""
        for number, row in enumerate(rows, 1):
            where = f"{path}: {what} {number}"
            try:
                take(row, where)
            except RecordError as error:
                self.problems.append(Problem(where, error.what, error.kind))


class Pictures:
    """The pictures below a folder, found by name wherever they lie: peers' annotations disagree about folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for folder, _, names in os.walk(self.root, followlinks=True):
            for name in names:
                found.setdefault(name, []).append(Path(folder, name))
        return found

    @cached_property
    def folders(self) -> set[str]:
        """Names of the folders that hold files."""
        return {path.parent.name for paths in self.by_name.values() for path in paths if path.parent != self.root}

    def find(self, name: str) -> Path:
        """The picture `name`, a file name or a path of which the end counts. `RecordError` where there is none, or
        more than one; one that lies in another folder than the one it is said to be in, if that is there, is none."""
        if not name or "\0" in name:
            raise RecordError(f"{name!r} is not a picture's name", "missing")
        wanted = Path(name)
        paths = others = self.by_name.get(wanted.name, [])
        if len(paths) > 1:
            shared = [_shared_end(path, wanted) for path in paths]
            paths = [path for path, n in zip(paths, shared, strict=True) if n == max(shared)]
        if wanted.parent.name in self.folders:
            paths = [path for path in paths if path.parent.name == wanted.parent.name]
        if len(paths) == 1:
            return paths[0]
        if paths:
            places = " and ".join(str(path.relative_to(self.root)) for path in sorted(paths)[:2])
            raise RecordError(f"picture '{name}' is there more than once ({places}); keep one", "duplicate")
        other = f" ({others[0].relative_to(self.root)} is another)" if others else ""
        raise RecordError(f"there is no picture '{name}' below {self.root}{other}; put it there", "missing")


def _shared_end(path: Path, wanted: Path) -> int:
    count = 0
    for a, b in zip(reversed(path.parts), reversed(wanted.parts), strict=False):
        if a != b:
            break
        count += 1
    return count


def value(row: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """`row[key]`, of a type; `RecordError` where it is not there or of another."""
    if not isinstance(row, dict):
        raise RecordError(f"expected an object, found {_short(row)}")
    if key not in row:
        raise RecordError(f"'{key}' is missing; it holds {', '.join(map(str, row)) or 'nothing'}")
    found = row[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        raise RecordError(f"'{key}' is {_short(found)}, expected {' or '.join(k.__name__ for k in kinds)}")
    return found


def string(row: Any, key: str) -> str:
    return value(row, key, str)


def name_of(row: Any, key: str) -> str:
    """An id, a number or a string, as a string."""
    return str(value(row, key, (int, str)))


def _short(found: Any) -> str:
    text = repr(found)
    return text if len(text) < 60 else f"{text[:57]}..."


def read_json_file(path: Path) -> Any:
    """A whole JSON file, however large; `UserError` with line and column where it is not JSON."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not JSON at line {error.lineno}, column {error.colno} ({error.msg}); fetch the file again"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON in UTF-8 ({error}); fetch the file again") from error


def json_rows(path: Path, key: str | None = None) -> list[Any]:
    """The list in a JSON file, or under `key` of its object."""
    found = read_json_file(path)
    if key is not None:
        if not isinstance(found, dict) or key not in found:
            raise UserError(f"{path}: there is no list '{key}'; this is not the file that its name says")
        found = found[key]
    if not isinstance(found, list):
        raise UserError(f"{path}: expected a list{f' under {key!r}' if key else ''}, found {_short(found)}")
    return found


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file without their ends; `UserError` where one is not UTF-8."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                number += 1
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: line {number + 1} or one soon after is not UTF-8; save the file as UTF-8") from error


def beginning(path: Path) -> bytes:
    """As much of a file as tells what is in it, behind a record of many captions too."""
    with path.open("rb") as file:
        return file.read(1 << 16)


def json_line(line: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"not JSON ({error}); fetch the file again") from error


def table_rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header and the rows of a .csv or .tsv file but the blank ones, each with the number of its (last) line."""
    reader = csv.reader(lines_with_ends(path), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header = _next_row(path, reader)
    if header is None:
        raise UserError(f"{path}: is empty; its first line names the columns, for example image,caption,split")

    def rows() -> Iterator[tuple[int, list[str]]]:
        while (row := _next_row(path, reader)) is not None:
            yield reader.line_num, row

    return header, rows()


def _next_row(path: Path, reader: Any) -> list[str] | None:
    try:
        return next(filter(None, reader), None)
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}; quote fields that hold commas or quotes") from error


def lines_with_ends(path: Path) -> Iterator[str]:
    return (f"{line}\n" for line in lines(path))


def only(paths: Iterable[Path], what: str) -> list[Path]:
    """The one path, or none; `UserError` where there are more."""
    found = sorted(paths)
    if len(found) > 1:
        raise UserError(f"{found[0].parent}: holds both {found[0].name} and {found[1].name}; keep one {what}")
    return found
