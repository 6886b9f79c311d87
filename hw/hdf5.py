"""HDF5 files that may be anything: whatever h5py thinks of one becomes one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from hw.errors import UserError


@contextmanager
def opened(path: Path, what: str) -> Iterator[h5py.File]:
    """The open file. what: it should be, with its article; `UserError` says that it is not, and why."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError as error:
        raise error if str(error).startswith(str(path)) else UserError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of {what}") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not {what} that can be read ({reason}); export it again") from error
