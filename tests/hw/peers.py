"""What the tests of the bridge share: workers in processes of their own, and a wire that can be cut."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from hw import Dense, SpikingProgram
from hw.bridge.remote import BridgeTimeoutError, RemoteBackend

ROOT = Path(__file__).parents[2]
NO_TORCH = "import sys; sys.modules['torch'] = None; from hw.bridge.worker import main; sys.exit(main())"


class Process:
    """A worker; `address` is where it listens. start: the command that it begins with."""

    def __init__(self, listen: str, *more: str, start: tuple[str, ...] = (sys.executable, "-c", NO_TORCH)) -> None:
        command = [*start, "--listen", listen, "--backend", "reference", *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), line
        self.address = line.split()[2].rstrip(",")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        return self.process.wait(10)


@contextmanager
def worker(listen: str = "tcp://127.0.0.1:*", *more: str, **options: tuple[str, ...]) -> Iterator[Process]:
    process = Process(listen, *more, **options)
    try:
        yield process
    finally:
        process.end()
        process.process.stdout.close()


class Wire:
    """A TCP connection to `address` that can be cut: the bytes of the side `cut_side` ("worker" or "client") stop after
    `limit` of them, and nothing closes. `sent` are the client's bytes of the first connection."""

    def __init__(self, address: str, cut_side: str = "worker") -> None:
        self.cut_side, self.limit, self.sent = cut_side, None, b""
        self.target = ("127.0.0.1", int(address.rpartition(":")[2]))
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.server.getsockname()[1]}"
        self.open: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        first = True
        with suppress(OSError):
            while True:
                client, _ = self.server.accept()
                upstream = socket.create_connection(self.target)
                self.open += [client, upstream]
                for side, source, sink in (("client", client, upstream), ("worker", upstream, client)):
                    keep = first and side == "client"
                    self.threads.append(threading.Thread(target=self._carry, args=(side, source, sink, keep)))
                    self.threads[-1].start()
                first = False

    def _carry(self, side: str, source: socket.socket, sink: socket.socket, keep: bool) -> None:
        carried = 0
        with suppress(OSError):
            while data := source.recv(65536):
                if self.limit is not None and side == self.cut_side:
                    data = data[: max(0, self.limit - carried)]
                carried += len(data)
                if keep:
                    self.sent += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for end in self.open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for end in self.open:
            end.close()


@contextmanager
def wire(address: str, cut_side: str = "worker") -> Iterator[Wire]:
    made = Wire(address, cut_side)
    try:
        yield made
    finally:
        made.close()


def program(steps: int = 4) -> SpikingProgram:
    rng = np.random.default_rng(0)
    weight = rng.integers(-60, 60, (6, 9))
    layer = Dense(name="fc", weight_int=weight, decay_u_int=900, decay_v_int=300, v_th_mant=50, bias_mant=np.arange(6))
    return SpikingProgram(input_shape=(9,), steps=steps, layers=(layer,))


def spikes(samples: int, steps: int = 4) -> np.ndarray:
    return np.random.default_rng(samples).integers(0, 2, (steps, samples, 9), dtype=np.uint8)


def answers(remote: RemoteBackend, given: np.ndarray, truth: np.ndarray) -> bool:
    """Whether it gives `truth` within its deadline."""
    try:
        return np.array_equal(remote.run(given).output, truth)
    except BridgeTimeoutError:
        return False


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
