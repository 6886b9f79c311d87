"""A folder for each class, as ImageNet and CIFAR are laid out: SPLIT/CLASS/PICTURE."""

from pathlib import Path

from train.data.formats.base import Found, RecordError, Text

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def class_folders(root: Path, split: str) -> list[Path]:
    """SPLIT/CLASS of every class with pictures in it."""
    places = [path for name in FOLDERS[split] for path in sorted(root.glob(f"{name}/[!.]*/")) if path.is_dir()]
    return [place for place in places if any(path.suffix.lower() in ENDINGS for path in place.iterdir())]


def read_classes(root: Path, split: str) -> Found:
    """The text of a picture is its class, an underscore in the folder's name being a space. Pictures of one class share
    its image id; a text is called CLASS/PICTURE. Hidden files are left alone."""
    found = Found()
    for folder in class_folders(root, split):
        name = folder.name.replace("_", " ").strip()

        def take(path: Path, where: str, folder: Path = folder, name: str = name) -> None:
            if path.is_dir():
                raise RecordError(f"'{path.name}' is a folder in a class; put its pictures beside it, or take it out")
            if path.suffix.lower() not in ENDINGS:
                raise RecordError(f"'{path.name}' is not a picture ({', '.join(ENDINGS)}); take it out")
            own = f"{folder.name}/{path.name}"
            found.add(folder.name, (path,), Text(text=name, name=own), where, key=own)

        found.each(folder, sorted(folder.glob("[!.]*")), take, "file")
    return found
