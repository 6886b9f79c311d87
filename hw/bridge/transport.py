"""How spikes get to a backend and back without waiting for them: `submit` now, ask the future later."""

import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

import numpy as np

from hw.simulate.base import Backend, Result


@runtime_checkable
class Transport(Protocol):
    """Takes input spikes [T, B, *in] to a backend; results come in the order of their requests."""

    def submit(self, spikes: np.ndarray, *, layers: bool = False) -> "Future[Result]": ...


class InProcess:
    """The shortest way: the backend runs here, in a thread of its own that ends with the process."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.requests: SimpleQueue[tuple[np.ndarray, bool, Future[Result]]] = SimpleQueue()
        self.thread: threading.Thread | None = None

    def submit(self, spikes: np.ndarray, *, layers: bool = False) -> "Future[Result]":
        if self.thread is None:
            # A daemon, so that Ctrl-C does not wait for a backend that takes minutes.
            self.thread = threading.Thread(target=self._serve, daemon=True)
            self.thread.start()
        future: Future[Result] = Future()
        self.requests.put((spikes, layers, future))
        return future

    def _serve(self) -> None:
        while True:
            spikes, layers, future = self.requests.get()
            try:
                future.set_result(self.backend.run(spikes, layers=layers))
            except BaseException as error:
                future.set_exception(error)


def transport_of(backend: Backend) -> Transport:
    """The backend itself if it can be asked ahead, as remote workers can, else a thread around it."""
    return backend if isinstance(backend, Transport) else InProcess(backend)
