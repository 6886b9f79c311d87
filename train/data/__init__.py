"""Data sets of images and texts. A new one is one file here and one line in `DATASETS`.

Each loader imports its packages when it is called, so that `import train.data` needs neither them nor a second.
"""

from collections.abc import Callable
from pathlib import Path

from hw.errors import UserError
from hw.images import ImageError, decode_image
from train.data.base import (
    ArrayData,
    Batch,
    ImageTextData,
    MissingPackageError,
    answer_vocabulary,
    batch_of,
    batches,
    collate,
    drawn_texts,
    image_array,
    pictures_each,
)
from train.data.cache import CacheError, Progress, cache_folder
from train.data.derived import easy_vqa_new
from train.data.easy_nlvr2 import easy_nlvr2
from train.data.easy_snli_ve import easy_snli_ve
from train.data.easy_vqa import easy_vqa
from train.data.formats import NoSplitError, load_folder, place
from train.data.joined import JoinedData
from train.data.openmoji import openmoji

__all__ = [
    "DATASETS",
    "ArrayData",
    "Batch",
    "CacheError",
    "ImageError",
    "ImageTextData",
    "MissingPackageError",
    "Progress",
    "answer_vocabulary",
    "batch_of",
    "batches",
    "cache_folder",
    "collate",
    "decode_image",
    "drawn_texts",
    "easy_nlvr2",
    "easy_snli_ve",
    "easy_vqa",
    "easy_vqa_new",
    "image_array",
    "load",
    "openmoji",
    "pictures_each",
]

DATASETS: dict[str, Callable[..., ImageTextData]] = {
    "openmoji": openmoji,
    "easy_vqa": easy_vqa,
    "easy_vqa_new": easy_vqa_new,
    "easy_nlvr2": easy_nlvr2,
    "easy_snli_ve": easy_snli_ve,
}


def load(
    name: str, split: str, image_size: int, cache: Path | None = None, progress: Progress | None = None
) -> ImageTextData:
    """The split "train", "val" or "test" of a data set, with square images of `image_size` pixels.

    name: a data set at hand, or FOLDER or FORMAT:FOLDER, see `train.data.formats`; several joined by commas are one,
    without those that lack the split, if not all do. `cache` is the folder for the decoded images of data at hand, by
    default the user's; `progress(done, total)` hears of the decoding.
    """
    if "," in name and name not in DATASETS:
        return _joined(name, split, image_size, cache, progress)
    if name not in DATASETS:
        if where := place(name):
            return load_folder(*where, split, image_size)
        known = ", ".join(sorted(DATASETS))
        raise UserError(f"there is no data set '{name}'; choose one of {known}, or give a folder")
    return DATASETS[name](split, image_size, cache, progress)


def _joined(name: str, split: str, image_size: int, cache: Path | None, progress: Progress | None) -> ImageTextData:
    parts, missing = [], []
    for part in name.split(","):
        try:
            parts.append(load(part.strip(), split, image_size, cache, progress))
        except NoSplitError as error:
            missing.append(error)
    if not parts:
        raise missing[0]
    return JoinedData(name, parts)
