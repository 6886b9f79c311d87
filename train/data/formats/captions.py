"""Captions: COCO's own files, Karpathy's splits of COCO and Flickr30K, Flickr30K's token lists, ALBEF's lists, Visual
Genome's regions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hw.errors import UserError
from train.data.formats.base import (
    Found,
    Pictures,
    RecordError,
    Text,
    beginning,
    json_rows,
    lines,
    name_of,
    only,
    string,
    value,
)

Files = list[Path]


def coco_files(root: Path, split: str) -> Files:
    """captions_SPLITYEAR.json; the official test split has no captions."""
    return [] if split == "test" else only(_anywhere(root, f"captions_{split}20*.json"), "year")


def read_coco(root: Path, split: str) -> Found:
    """`images` name the files, `annotations` the captions."""
    found, pictures = Found(), Pictures(root)
    for path in coco_files(root, split):
        files: dict[str, str] = {}

        def take_image(row: Any, where: str, files: dict[str, str] = files) -> None:
            image, file = name_of(row, "id"), string(row, "file_name")
            if image in files:
                raise RecordError(f"image '{image}' was there before; every image needs an id of its own", "duplicate")
            files[image] = file

        def take(row: Any, where: str, files: dict[str, str] = files) -> None:
            image = name_of(row, "image_id")
            if image not in files:
                raise RecordError(f"image_id '{image}' is not among the file's images")
            text = Text(text=string(row, "caption"), name=name_of(row, "id"))
            found.add(image, (pictures.find(files[image]),), text, where)

        found.each(path, json_rows(path, "images"), take_image, "image")
        found.each(path, json_rows(path, "annotations"), take, "annotation")
    return found


def karpathy_files(root: Path, split: str) -> Files:
    """dataset_NAME.json, which holds all splits."""
    return only([*_anywhere(root, "dataset_*.json"), *_anywhere(root, "dataset.json")], "data set")


def read_karpathy(root: Path, split: str) -> Found:
    """Karpathy and Fei-Fei 2015; `restval` joins the training split."""
    found, pictures = Found(), Pictures(root)
    known = {"train": "train", "restval": "train", "val": "val", "test": "test"}

    def take(row: Any, where: str) -> None:
        its = string(row, "split")
        if its not in known:
            raise RecordError(f"split is '{its}', expected one of {', '.join(known)}")
        if known[its] != split:
            return
        image = name_of(row, "cocoid" if "cocoid" in row else "imgid")
        if image in found.records:
            raise RecordError(f"image '{image}' was there before", "duplicate")
        picture = pictures.find(f"{row.get('filepath', '')}/{string(row, 'filename')}")
        sentences = value(row, "sentences", list)
        if not sentences:
            raise RecordError("'sentences' is empty; leave the image out, or put its captions there", "missing")
        for sentence in sentences:
            found.add(image, (picture,), Text(text=string(sentence, "raw"), name=name_of(sentence, "sentid")), where)

    for path in karpathy_files(root, split):
        found.each(path, json_rows(path, "images"), take, "image")
    return found


def flickr30k_files(root: Path, split: str) -> Files:
    """NAME.token, and SPLIT.txt with the ids of its images."""
    tokens = only(_anywhere(root, "*.token"), "list of captions")
    return [*tokens, *_anywhere(root, f"{split}.txt")] if tokens else []


def read_flickr30k(root: Path, split: str) -> Found:
    """Lines `ID.jpg#NUMBER<TAB>caption`; which split an image belongs to, train.txt, val.txt and test.txt tell."""
    path, *lists = flickr30k_files(root, split)
    if len(lists) != 1:
        raise UserError(
            f"{path}: tells no splits, and beside it there is not one {split}.txt; put the lists of Flickr30K Entities "
            "there (train.txt, val.txt, test.txt), or use Karpathy's dataset_flickr30k.json"
        )
    wanted = {line.strip().removesuffix(".jpg") for line in lines(lists[0]) if line.strip()}
    found, pictures = Found(), Pictures(root)

    def take(line: str, where: str) -> None:
        name, tab, caption = line.partition("\t")
        file, mark, number = name.rpartition("#")
        if not tab or not mark or not number.isdecimal():
            raise RecordError("expected ID.jpg#NUMBER, a tab, and the caption")
        image = file.removesuffix(".jpg")
        if image in wanted:
            found.add(image, (pictures.find(file),), Text(text=caption, name=name), where)

    found.each(path, (line for line in lines(path) if line), take, "line")
    found.each(lists[0], sorted(wanted - set(found.records)), _without_captions, "list, image")
    return found


def _without_captions(image: str, where: str) -> None:
    raise RecordError(f"'{image}' has no captions or no picture", "missing")


def albef_files(root: Path, split: str) -> Files:
    """NAME_SPLIT.json, as many as there are."""
    return [path for path in sorted(_anywhere(root, f"*_{split}.json")) if _starts_with_pairs(path)]


def read_albef(root: Path, split: str) -> Found:
    """Lists of {image, caption, image_id}, or, to evaluate, {image, caption: [...]} (github.com/salesforce/ALBEF)."""
    found, pictures = Found(), Pictures(root)
    for path in albef_files(root, split):

        def take(row: Any, where: str, path: Path = path) -> None:
            image = string(row, "image")
            captions = value(row, "caption", (str, list))
            # ALBEF counts a data set's images from 0: ids of two lists would meet.
            name = f"{path.stem}/{row['image_id']}" if "image_id" in row else image
            for caption in [captions] if isinstance(captions, str) else captions:
                if not isinstance(caption, str):
                    raise RecordError(f"'caption' holds {caption!r}, expected strings")
                found.add(name, (pictures.find(image),), Text(text=caption), where)

        found.each(path, json_rows(path), take)
    return found


def _starts_with_pairs(path: Path) -> bool:
    start = beginning(path).lstrip(b"\xef\xbb\xbf \t\r\n")
    return start[:1] == b"[" and b'"image"' in start and b'"caption"' in start


def visual_genome_files(root: Path, split: str) -> Files:
    """region_descriptions.json, which tells no splits."""
    return [] if split == "test" else only(_anywhere(root, "region_descriptions.json"), "list of regions")


def read_visual_genome(root: Path, split: str) -> Found:
    """Every phrase is a caption of its whole image, as the peers have it; one that is said twice counts once. Images
    whose id is a multiple of 50 are for validation."""
    found, pictures = Found(), Pictures(root)

    def take(row: Any, where: str) -> None:
        number = value(row, "id", int)
        if (number % 50 == 0) != (split == "val"):
            return
        said: dict[str, str] = {}
        for region in value(row, "regions", list):
            said.setdefault(string(region, "phrase").strip(), name_of(region, "region_id"))
        picture = pictures.find(f"{number}.jpg")
        for phrase, name in said.items():
            if phrase:  # some regions are without words
                found.add(str(number), (picture,), Text(text=phrase, name=name), where)

    for path in visual_genome_files(root, split):
        found.each(path, json_rows(path), take, "image")
    return found


def _anywhere(root: Path, pattern: str) -> Iterable[Path]:
    """Files in the folder itself, or in its `annotations`."""
    return [path for folder in (root, root / "annotations") for path in folder.glob(pattern)]
