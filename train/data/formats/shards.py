"""Shards of webdataset, the form of CC3M and SBU: .tar files in which KEY.jpg and KEY.txt follow each other.

Shards are never unpacked and never read whole: an index of where every picture and caption lies, 40 bytes a sample, is
made once and kept in the cache, and a sample is two reads of its shard. So any sample is at hand at any time: the order
of an epoch is the same as for other data, a function of seed and step, any number of shards serves any number of
readers, and a resumed run goes on with the very next sample.
"""

import hashlib
import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hw.artifact import staged_file
from hw.errors import UserError
from hw.images import ImageError, decode_image
from train.data.cache import cache_folder
from train.data.formats.base import Problem

PICTURES = ("jpg", "jpeg", "png", "webp")
COLUMNS = 5  # shard, picture's offset and size, caption's offset and size
INDEX = 2  # changes with what `_scan` finds, so that no older index is taken from the cache


def shard_files(root: Path, split: str) -> list[Path]:
    """Shards of a split: those in a folder SPLIT, or whose name holds it as a word; where no name tells, the last of
    several is for validation. `UserError` where some names tell and others do not, or one tells two."""
    every = sorted(root.glob("*.tar"))
    names = {"train": ("train",), "val": ("val", "dev", "validation"), "test": ("test",)}
    if not every:
        return sorted({path for name in names[split] for path in root.glob(f"{name}*/*.tar")})
    words = {path: set(re.split("[^a-z]+", path.name.lower())) for path in every}
    told = {path: [s for s, known in names.items() if words[path].intersection(known)] for path in every}
    if any(told.values()):
        for path, splits in told.items():
            if len(splits) != 1:
                raise UserError(
                    f"{path}: its name tells of {' and '.join(splits) or 'no split'}, and others tell; have one of "
                    "train, val and test in each name"
                )
        return [path for path, splits in told.items() if split in splits]
    of = {"train": every[:-1], "val": every[-1:], "test": []}
    return of[split] if len(every) > 1 else (every if split == "train" else [])


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardData:
    """`ImageTextData` over shards."""

    name: str
    split: str
    image_size: int
    root: Path
    shards: tuple[Path, ...]
    index: np.ndarray = field(repr=False)  # int64 [samples, COLUMNS]

    def __len__(self) -> int:
        return len(self.index)

    def picture(self, i: int) -> bytes:
        return self._read(i, 1)

    def where(self, i: int) -> str:
        shard, offset = self.index[i, :2]
        return f"{self.shards[shard]}: picture at byte {offset}"

    def image(self, i: int) -> np.ndarray:
        try:
            return decode_image(self.picture(i), self.image_size)
        except ImageError as error:
            raise ImageError(f"{self.where(i)}: {error}") from error

    def image_id(self, i: int) -> str:
        """SHARD@OFFSET, the shard with its folder below the root."""
        shard, offset = self.index[i, :2]
        return f"{self._below(self.shards[shard]).removesuffix('.tar')}@{offset}"

    def texts(self, i: int) -> tuple[str, ...]:
        try:
            return (self._read(i, 3).decode("utf-8").strip(),)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.where(i)}: its caption is not UTF-8; leave the sample out") from error

    def answers(self, i: int) -> tuple[str, ...]:
        return ()

    def votes(self, i: int) -> tuple[tuple[str, ...], ...]:
        return ()

    def text_ids(self, i: int) -> tuple[str, ...]:
        return (self.image_id(i),)

    def kinds(self, i: int) -> tuple[str, ...]:
        return ()

    @property
    def fingerprint(self) -> str:
        """Over the names of the shards, with their folders, and where their samples lie."""
        digest = hashlib.sha256(json.dumps([self.image_size, *map(self._below, self.shards)]).encode())
        digest.update(np.ascontiguousarray(self.index).tobytes())
        return digest.hexdigest()

    def _below(self, shard: Path) -> str:
        return shard.relative_to(self.root).as_posix()

    def _read(self, i: int, column: int) -> bytes:
        shard = self.shards[self.index[i, 0]]
        offset, size = map(int, self.index[i, column : column + 2])
        with shard.open("rb") as file:
            file.seek(offset)
            found = file.read(size)
        if len(found) < size:
            raise UserError(f"{shard}: ends before byte {offset + size}; it was changed or cut, fetch it again")
        return found


def open_shards(name: str, root: Path, split: str, image_size: int) -> tuple[ShardData, list[Problem]]:
    """The samples of a split, and what is wrong with others. `UserError` where a shard is no tar file."""
    shards = shard_files(root, split)
    rows: list[np.ndarray] = []
    problems: list[Problem] = []
    for number, shard in enumerate(shards):
        found, wrong = _index(shard)
        rows.append(np.concatenate([np.full((len(found), 1), number), found], 1).astype(np.int64))
        problems += wrong
    index = np.concatenate(rows) if rows else np.zeros((0, COLUMNS), np.int64)
    return ShardData(
        name=name, split=split, image_size=image_size, root=root, shards=tuple(shards), index=index
    ), problems


def _index(shard: Path) -> tuple[np.ndarray, list[Problem]]:
    """int64 [samples, 4] of one shard, from the cache where it is there."""
    state = shard.stat()
    key = hashlib.sha256(f"{INDEX} {shard.absolute()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:20]
    kept = cache_folder() / f"shard-{key}.json"
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
    else:
        found = _scan(shard)
        with staged_file(kept) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    samples = np.array(found["samples"], np.int64).reshape(-1, COLUMNS - 1)
    return samples, [Problem(f"{shard}: {name}", what, kind) for name, what, kind in found["problems"]]


def _scan(shard: Path) -> dict[str, list]:
    """Where every sample of a shard lies. As in webdataset, a key is a file's folder and its name up to the first dot.
    A caption is KEY.txt, else `caption` of KEY.json is of no use here: it would have to be unpacked."""
    pictures: dict[str, tuple[int, int]] = {}
    captions: dict[str, tuple[int, int]] = {}
    problems: list[tuple[str, str, str]] = []
    others: list[str] = []
    try:
        archive: Any = tarfile.open(shard, "r:")  # noqa: SIM115
        with archive as tar:
            for member in tar:
                tar.members.clear()  # it would remember all of them
                if not member.isfile():
                    continue
                folder, slash, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")
                key = f"{folder}{slash}{stem}"
                kinds = pictures if ending.lower() in PICTURES else captions if ending == "txt" else None
                if kinds is None or not stem:
                    others.append(member.name)
                    continue
                if key in kinds:
                    problems.append((member.name, "was there before; every key is one sample", "duplicate"))
                    continue
                kinds[key] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise UserError(f"{shard}: not a whole uncompressed tar file ({error}); fetch it again") from error
    samples = []
    with shard.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 512))
        if any(file.read()):
            raise UserError(f"{shard}: does not end as a tar file does, so it was cut short; fetch it again")
        for key, (offset, length) in pictures.items():
            if key not in captions:
                problems.append((key, "has a picture and no KEY.txt; leave it out", "missing"))
            elif fault := _fault(file, *captions[key]):
                problems.append((key, fault, "record"))
            else:
                samples.append([offset, length, *captions[key]])
    for key in captions.keys() - pictures.keys():
        problems.append((key, f"has a caption and no picture ({', '.join(PICTURES)})", "missing"))
    if others and not pictures and not captions:
        what = f"no sample among them, '{others[0]}' first; it takes KEY.jpg ({', '.join(PICTURES)}) and KEY.txt"
        problems.append((f"{len(others)} files", what, "missing"))
    return {"samples": samples, "problems": sorted(problems)}


def _fault(file: BinaryIO, offset: int, size: int) -> str:
    """What is wrong with a caption, if anything is."""
    file.seek(offset)
    try:
        caption = file.read(size).decode("utf-8")
    except UnicodeDecodeError:
        return "its caption is not UTF-8; write it anew, or leave the sample out"
    return "" if caption.strip() else "has an empty caption; write one, or leave the sample out"
