"""Data on disk in the official formats. A new format is one reader and one line in `FORMATS`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hw.errors import UserError
from train.data.base import SPLITS, ImageTextData, check_split
from train.data.formats import captions, classes, shards, table, tasks
from train.data.formats.base import Found, Problem
from train.data.formats.files import FileData


class NoSplitError(UserError):
    """A folder without the split that is asked for."""


Opened = tuple[ImageTextData, list[Problem]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """about: what it is, in a line. files: the annotation files of a split, none where the folder is of another
    format. read: records and problems, `UserError` where a file is no use at all."""

    about: str
    files: Callable[[Path, str], list[Path]]
    read: Callable[[Path, str], Found] | None  # None for shards, which are not read but indexed


FORMATS: dict[str, Format] = {
    "coco": Format(about="captions_train2014.json", files=captions.coco_files, read=captions.read_coco),
    "karpathy": Format(
        about="dataset_coco.json, dataset_flickr30k.json", files=captions.karpathy_files, read=captions.read_karpathy
    ),
    "flickr30k": Format(
        about="results_20130124.token and train.txt", files=captions.flickr30k_files, read=captions.read_flickr30k
    ),
    "albef": Format(about="coco_train.json of pairs", files=captions.albef_files, read=captions.read_albef),
    "visual_genome": Format(
        about="region_descriptions.json", files=captions.visual_genome_files, read=captions.read_visual_genome
    ),
    "vqa": Format(
        about="v2_OpenEnded_mscoco_train2014_questions.json and annotations", files=tasks.vqa_files, read=tasks.read_vqa
    ),
    "nlvr2": Format(about="train.json, dev.json, test1.json", files=tasks.nlvr2_files, read=tasks.read_nlvr2),
    "snli_ve": Format(about="snli_ve_train.jsonl", files=tasks.snli_ve_files, read=tasks.read_snli_ve),
    "shards": Format(about=".tar files of webdataset (CC3M, SBU)", files=shards.shard_files, read=None),
    "classes": Format(about="train/CLASS/PICTURE", files=classes.class_folders, read=classes.read_classes),
    "table": Format(about="train.csv, or captions.csv with a split", files=table.table_files, read=table.read_table),
}


def place(name: str) -> tuple[str, Path] | None:
    """(format, folder) of a data set's name FOLDER or FORMAT:FOLDER; None for the name of one at hand."""
    kind, colon, folder = name.partition(":")
    if not name or (colon and not folder):
        raise UserError(f"'{name}' names no data; give a data set at hand, FOLDER or FORMAT:FOLDER, a dot for this one")
    if colon and kind in FORMATS:
        return kind, _folder(Path(folder))
    if "/" in name or name in (".", "..") or Path(name).is_dir():
        return detect(_folder(Path(name))), Path(name)
    return None


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the one that holds the annotations and the pictures")
    return folder


def detect(root: Path) -> str:
    """The format of a folder."""
    found = [name for name, f in FORMATS.items() if any(f.files(root, split) for split in SPLITS)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{root}: holds {' and '.join(found)}; say which, for example {found[0]}:{root}")
    known = "; ".join(f"{name}: {f.about}" for name, f in FORMATS.items())
    raise UserError(f"{root}: holds no annotations in a known format ({known})")


def open_folder(kind: str, root: Path, split: str, image_size: int) -> Opened:
    """A split of a folder, and what is wrong in it."""
    check_split(f"{kind}:{root}", split, image_size)
    chosen = FORMATS[kind]
    if not chosen.files(root, split):
        there = [s for s in SPLITS if chosen.files(root, s)]
        has = f"it has {' and '.join(there)}" if there else f"expected {chosen.about}"
        raise NoSplitError(f"{root}: has no split '{split}' in the format {kind}; {has}")
    name = f"{kind}:{root}"
    if chosen.read is None:
        return shards.open_shards(name, root, split, image_size)
    found = chosen.read(root, split)
    return FileData.of(name, split, image_size, root, list(found.records.values())), found.problems


def load_folder(kind: str, root: Path, split: str, image_size: int) -> ImageTextData:
    """A split of a folder; `UserError` that names the first record that is wrong, and how many more there are."""
    data, problems = open_folder(kind, root, split, image_size)
    if problems:
        more = f" (and {len(problems) - 1} more: 'ashnets data check {kind}:{root}')" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    if not len(data):
        raise NoSplitError(f"{root}: split '{split}' holds no records in the format {kind}")
    return data
