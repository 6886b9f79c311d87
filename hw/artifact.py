"""Artifacts on disk: a folder that is there whole or not at all, with the SHA-256 and size of each of its files in
`manifest.json`.

A folder is built under a temporary name beside its place, synced file by file, and renamed; the manifest is written
last. Loading checks every hash, so that a flipped bit is found before a weight is used.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw.errors import UserError

SCHEMA = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 << 20


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds, sync it and rename it into place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place or mend its permissions"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync_file(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_place(path: Path, example: str) -> None:
    """`UserError` where a file cannot go; asked before the work, not after it. example: a name for the file."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the path of a file, for example {path / example}")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    with staged_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or `UserError` that says what is wrong with the file."""
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise UserError(f"{path}: larger than {_MAX_MANIFEST_BYTES >> 20} MiB, not a manifest of ours")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; is the folder complete and the path right?") from error
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # no JSON, no UTF-8, or an integer of too many digits
        raise UserError(
            f"{path}: cannot be read as JSON ({error}); restore the file or make the folder anew"
        ) from error


def kind_of(folder: Path) -> str | None:
    """What the manifest of a folder says that it is; None where there is no manifest."""
    path = folder / MANIFEST
    told = read_json(path) if path.is_file() else None
    return told.get("kind") if isinstance(told, dict) else None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A folder whose files were checked. `meta` is the manifest without its bookkeeping."""

    folder: Path
    kind: str
    meta: dict[str, Any]


@contextmanager
def staged_artifact(folder: Path, kind: str, meta: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block succeeds it becomes `folder` with its manifest. An existing one
    is refused."""
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another folder or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another place or mend its permissions"
        ) from error
    try:
        yield temporary
        files = {}
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            _sync_file(path)
            files[path.relative_to(temporary).as_posix()] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        write_json(temporary / MANIFEST, {"kind": kind, "schema": SCHEMA, "files": files, "meta": meta})
        for inner in (p for p in temporary.rglob("*") if p.is_dir()):
            sync_folder(inner)
        os.chmod(temporary, 0o755)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_artifact(folder: Path, kind: str) -> Artifact:
    """Check `folder` against its manifest and return it. `UserError` names the file that is missing, changed or
    foreign."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; check the path")
    path = folder / MANIFEST
    manifest = read_json(path)
    if (
        not isinstance(manifest, dict)
        or not isinstance(manifest.get("files"), dict)
        or not isinstance(manifest.get("meta"), dict)
    ):
        raise UserError(f"{path}: not a manifest of ours (no 'files' and 'meta'); make the folder anew")
    if manifest.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: schema {manifest.get('schema')!r}, this version reads {SCHEMA}; use the version that wrote it"
        )
    if manifest.get("kind") != kind:
        raise UserError(f"{path}: a folder of kind {manifest.get('kind')!r}, expected {kind!r}; pass the right folder")
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry)
    return Artifact(folder=folder, kind=kind, meta=manifest["meta"])


def _check_file(folder: Path, name: str, entry: Any) -> None:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or path.is_symlink():
        raise UserError(
            f"{folder / MANIFEST}: file {name!r} points outside the folder; refuse it, or make the folder anew"
        )
    if not path.is_file():
        raise UserError(f"{path}: listed in the manifest and missing; restore it or make the folder anew")
    if not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes") or sha256(path) != entry.get("sha256"):
        raise UserError(
            f"{path}: differs from the SHA-256 in its manifest (corrupt); restore it or make the folder anew"
        )
