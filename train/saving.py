"""When a run is saved, and by whom: at once, or beside training by a thread; at a signal, or when the clock says so."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch.distributed as dist
from torch import Tensor

from train import ranks
from train.checkpoint import Saved
from train.parallel import Part


class Saver:
    """Calls `save(tensors, group)`, one call after another. beside: from a thread, with a copy of the tensors, while
    who asked goes on; what fails there is raised when the next call, or the end of the block, waits for it."""

    def __init__(self, beside: bool) -> None:
        self.pool = ThreadPoolExecutor(1, "checkpoint") if beside else None
        self.group = dist.new_group(backend="gloo") if beside and ranks.count() > 1 else None
        self.pending: Future[None] | None = None

    def save(self, save: Callable[[Saved, Any], None], tensors: Saved) -> None:
        self.wait()
        if self.pool is None:
            save(tensors, None)
        else:
            copies = {name: {k: _copy(v) for k, v in values.items()} for name, values in tensors.items()}
            self.pending = self.pool.submit(save, copies, self.group)

    def wait(self) -> None:
        """Until all that was asked for is on disk."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        waits = kind is None or ranks.count() == 1  # a rank that fails does not wait for others, who may wait for it
        try:
            if waits:
                self.wait()
        finally:
            if self.pool:
                self.pool.shutdown(wait=waits)


def _copy(value: Tensor | Part) -> Tensor | Part:
    """On the host, apart from what training goes on to change."""
    if isinstance(value, Part):
        return Part(value.rows.to("cpu", copy=True))
    return value.to("cpu", copy=True)


class Clock:
    """Whether so many minutes have passed since the last checkpoint; 0: never."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        self.since = time.monotonic()

    @property
    def due(self) -> bool:
        return bool(self.seconds) and time.monotonic() - self.since >= self.seconds


class Termination:
    """Within the block SIGTERM, by which schedulers announce that a job's time is over, is noted in `asked`."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_: object) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)
