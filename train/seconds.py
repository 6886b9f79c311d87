"""What something took, over interruptions: {"seconds": s} in a file beside it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hw.artifact import read_json, write_json


@contextmanager
def timed(kept: Path) -> Iterator[None]:
    """Add the seconds of what happens inside, done or interrupted, to those in `kept`."""
    start = time.monotonic()
    try:
        yield
    finally:
        write_json(kept, {"seconds": seconds_of(kept) + time.monotonic() - start})


def seconds_of(kept: Path) -> float:
    """0 where nothing was kept."""
    return read_json(kept)["seconds"] if kept.exists() else 0.0
