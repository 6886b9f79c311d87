"""Pixels are rendered or decoded once and then mapped from one array file in the user's cache folder.

Two files make an entry, written in this order: `NAME.npy` with the pixels and `NAME.json` with their SHA-256 and size.
An entry counts only if both are there and agree, so that a run killed at any moment leaves none or a whole one.
"""

import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from hw.errors import UserError

Progress = Callable[[int, int], None]  # (images done, images in all)

log = logging.getLogger(__name__)


class CacheError(UserError):
    """The cache folder cannot be written."""


def cache_folder() -> Path:
    """`$ASHNETS_CACHE`, else `$XDG_CACHE_HOME/ashnets`, else `~/.cache/ashnets`."""
    if own := os.environ.get("ASHNETS_CACHE"):
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "ashnets"


def cached_images(
    *,
    name: str,
    key: Mapping[str, str | int],
    count: int,
    image_size: int,
    draw: Callable[[int], np.ndarray],
    folder: Path | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """uint8 [count, image_size, image_size, 3], mapped read-only; row `i` is `draw(i)`, drawn if the cache lacks it.

    `key` holds whatever else the pixels depend on: package versions, the order of the rows.
    """
    folder = cache_folder() if folder is None else folder
    shape = (count, image_size, image_size, 3)
    full_key = {**key, "name": name, "shape": list(shape)}
    digest = hashlib.sha256(json.dumps(full_key, sort_keys=True).encode()).hexdigest()
    path = folder / f"{name}-{image_size}px-{digest[:16]}.npy"
    pixels = _load(path, shape)
    if pixels is None:
        _write_atomically(path, _npy_chunks(shape, draw, progress))
        with path.open("rb") as file:
            record = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
        _write_atomically(_sidecar(path), [json.dumps({**record, "key": full_key}, indent=1).encode()])
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    return pixels


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _load(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The mapped array, or None where it has to be made."""
    if not path.exists():
        return None
    try:
        record = json.loads(_sidecar(path).read_text())
        with path.open("rb") as file:
            whole = path.stat().st_size == record["bytes"]
            whole = whole and hashlib.file_digest(file, "sha256").hexdigest() == record["sha256"]
        if not whole:
            raise ValueError("its SHA-256 or size is not the recorded one")
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        if pixels.dtype != np.uint8 or pixels.shape != shape:
            raise ValueError(f"it holds {pixels.dtype} {pixels.shape}, not uint8 {shape}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("rebuilding the cached images %s: %s", path, error)
        return None
    return pixels


def _npy_chunks(
    shape: tuple[int, ...], draw: Callable[[int], np.ndarray], progress: Progress | None
) -> Iterator[bytes]:
    """The bytes of a .npy file, row by row, so that a big data set never sits in memory as a whole."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    yield header.getvalue()
    for i in range(shape[0]):
        row = draw(i)
        if row.dtype != np.uint8 or row.shape != shape[1:]:
            raise ValueError(f"image {i} is {row.dtype} {row.shape}, expected uint8 {shape[1:]}")
        yield row.tobytes()
        if progress is not None:
            progress(i + 1, shape[0])


def _write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Whoever opens `path` finds the old file or the whole new one, also after a crash."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise CacheError(
            f"cannot write to the cache folder {path.parent} ({error.strerror or error}); "
            "make room or permission there, or set ASHNETS_CACHE to a folder that you can write"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut; Windows cannot open a folder and needs no such step."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
