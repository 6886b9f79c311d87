"""Records of annotation files with pictures that are decoded when they are asked for."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from hw.errors import UserError
from hw.images import ImageError, decode_image
from train.data.formats.base import Record


@dataclass(frozen=True, kw_only=True, eq=False)
class FileData:
    """`ImageTextData` over records; all of one picture each, or all of two."""

    name: str
    split: str
    image_size: int
    root: Path
    records: Sequence[Record] = field(repr=False)

    @classmethod
    def of(cls, name: str, split: str, image_size: int, root: Path, records: Sequence[Record]) -> "FileData":
        counts = {len(record.images): record for record in records}
        if len(counts) > 1:
            one, other = list(counts.items())[:2]
            raise UserError(
                f"{other[1].where}: is about {other[0]} pictures, {one[1].where} about {one[0]}; keep them apart"
            )
        return cls(name=name, split=split, image_size=image_size, root=root, records=records)

    def __len__(self) -> int:
        return len(self.records)

    def image(self, i: int) -> np.ndarray:
        record = self.records[i]
        try:
            pixels = [decode_image(path, self.image_size) for path in record.images]
        except ImageError as error:
            raise ImageError(f"{record.where}: {error}") from error
        return pixels[0] if len(pixels) == 1 else np.stack(pixels)

    def image_id(self, i: int) -> str:
        return self.records[i].image_id

    def texts(self, i: int) -> tuple[str, ...]:
        return tuple(text.text for text in self.records[i].texts)

    def answers(self, i: int) -> tuple[str, ...]:
        return tuple(text.answer for text in self.records[i].texts) if self._answered else ()

    @cached_property
    def _answered(self) -> bool:
        return any(text.answer for record in self.records for text in record.texts)

    def votes(self, i: int) -> tuple[tuple[str, ...], ...]:
        return tuple(text.votes for text in self.records[i].texts)

    def text_ids(self, i: int) -> tuple[str, ...]:
        return tuple(text.name for text in self.records[i].texts)

    def kinds(self, i: int) -> tuple[str, ...]:
        found = tuple(text.kind for text in self.records[i].texts)
        return found if any(found) else ()

    @property
    def fingerprint(self) -> str:
        """Over ids, texts, answers, and the pictures' places: a broken picture may be mended between two steps."""
        digest = hashlib.sha256(str(self.image_size).encode())
        for record in self.records:
            pictures = [str(p.relative_to(self.root)) for p in record.images]
            texts = [[text.text, text.name, text.answer, text.votes] for text in record.texts]
            digest.update(json.dumps([record.image_id, pictures, texts]).encode())
        return digest.hexdigest()
