"""The long proofs of the bridge: a hundred of each fault, and an hour of work. Counts and seconds are a user's to set:
ASHNETS_FAULTS (100) and ASHNETS_SOAK_SECONDS (3600)."""

import os
import random
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hw.bridge.codec import Flags, Kind
from hw.bridge.keys import load_keys, make_keys
from hw.bridge.messages import open_message, run_message
from hw.bridge.remote import BridgeTimeoutError, Patience, RemoteBackend
from hw.bridge.worker import Worker
from hw.simulate import open_backend
from tests.hw.peers import answers, program, spikes, until, wire, worker
from tests.hw.test_remote import ask, raw

FAULTS = int(os.environ.get("ASHNETS_FAULTS", "100"))
SOAK_SECONDS = float(os.environ.get("ASHNETS_SOAK_SECONDS", "3600"))
DEADLINE = 0.8
PATIENCE = Patience(deadline=DEADLINE, silence=0.4)
TRUTH = open_backend("reference", program()).run(spikes(3)).output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    def held() -> tuple[int, int, int]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(children)

    before = held()
    yield
    until(lambda: held() <= before)


def assert_timely(remote: RemoteBackend, given: np.ndarray) -> None:
    begin = time.monotonic()
    with pytest.raises(BridgeTimeoutError):
        remote.run(given)
    assert time.monotonic() - begin < DEADLINE + 1


def goes_on(remote: RemoteBackend) -> None:
    until(lambda: answers(remote, spikes(3), TRUTH))


def test_workers_killed(tmp_path):
    address = f"ipc://{tmp_path}/w"
    with RemoteBackend(program(), [address], patience=PATIENCE) as remote:
        for _ in range(FAULTS):
            with worker(address) as process:
                goes_on(remote)
                process.signal(signal.SIGKILL)
                assert_timely(remote, spikes(3))


def test_workers_stopped(tmp_path):
    address = f"ipc://{tmp_path}/w"
    with worker(address) as process, RemoteBackend(program(), [address], patience=PATIENCE) as remote:
        for _ in range(FAULTS):
            goes_on(remote)
            process.signal(signal.SIGSTOP)
            assert_timely(remote, spikes(3))
            process.signal(signal.SIGCONT)
        goes_on(remote)


def test_workers_too_slow():
    """Work that takes longer than its deadline, on a worker that answers its heartbeat meanwhile."""
    steps = 16
    truth = open_backend("reference", program(steps)).run(spikes(3, steps)).output
    with worker() as process, RemoteBackend(program(steps), [process.address], patience=PATIENCE) as remote:
        with RemoteBackend(program(steps), [process.address]) as patient:
            until(lambda: answers(patient, spikes(3, steps), truth), 60)
            samples = 100_000
            for _ in range(2):  # the first time memory is fetched, which takes longer
                begin = time.monotonic()
                patient.run(np.ones((steps, samples, 9), np.uint8))
            samples = int(2 * DEADLINE / (time.monotonic() - begin) * samples)
        heavy = np.ones((steps, samples, 9), np.uint8)
        for _ in range(FAULTS):
            assert_timely(remote, heavy)
            until(lambda: answers(remote, spikes(3, steps), truth), 30)


def test_answers_cut_anywhere():
    """The worker's bytes stop after any number of them: in its greeting, a heartbeat, a header, a payload."""
    rng = random.Random(0)
    with worker() as process:
        for _ in range(FAULTS):
            with wire(process.address) as line, RemoteBackend(program(), [line.address], patience=PATIENCE) as remote:
                line.limit = rng.randrange(300)
                assert_timely(remote, spikes(3))
                line.limit = None
                goes_on(remote)


@pytest.fixture
def guarded(tmp_path) -> Iterator[Worker]:
    make_keys(tmp_path / "ours")
    make_keys(tmp_path / "theirs")
    with serving(Worker("tcp://127.0.0.1:*", "reference", load_keys(tmp_path / "ours", "worker"))) as made:
        yield made


@contextmanager
def serving(made: Worker) -> Iterator[Worker]:
    thread = threading.Thread(target=made.serve)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join()


@pytest.mark.parametrize("which", ["none", "wrong"])
def test_strangers(which, guarded, tmp_path):
    ours, theirs = (load_keys(tmp_path / name, "client") for name in ("ours", "theirs"))
    wrong = type(ours)(public=theirs.public, secret=theirs.secret, peer=ours.peer)
    stranger = None if which == "none" else wrong
    for _ in range(FAULTS):
        patience = Patience(deadline=0.3, silence=0.2)
        with RemoteBackend(program(), [guarded.address], keys=stranger, patience=patience) as remote:
            assert_timely(remote, spikes(3))
        assert not guarded.sessions
    with RemoteBackend(program(), [guarded.address], keys=ours, patience=PATIENCE) as remote:
        goes_on(remote)
        assert guarded.sessions


def test_connections_replayed(guarded, tmp_path):
    """Every byte that a client with the right keys sent, sent again."""
    keys = load_keys(tmp_path / "ours", "client")
    with wire(guarded.address) as line:
        with RemoteBackend(program(), [line.address], keys=keys, patience=PATIENCE) as remote:
            goes_on(remote)
        until(lambda: not guarded.sessions)
        recorded = line.sent
    assert len(recorded) > 1000
    for _ in range(FAULTS):
        with socket.create_connection(("127.0.0.1", int(guarded.address.rpartition(":")[2]))) as connection:
            connection.settimeout(0.05)
            received = b""
            for start in range(0, len(recorded), 256):  # a greeting must be answered before a handshake is read
                try:
                    connection.sendall(recorded[start : start + 256])
                    received += connection.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    break  # thrown out
        assert b"WELCOME" in received  # the handshake began
        assert b"READY" not in received  # and did not end
        assert not guarded.sessions


@pytest.mark.parametrize("fault", ["replay", "reorder"])
def test_requests(fault):
    with serving(Worker("tcp://127.0.0.1:*", "reference")) as made:
        rng = random.Random(0)
        context, dealer = raw(made.address)
        assert ask(dealer, open_message(program(), 9)).kind == Kind.OPENED

        def run(sequence: int):
            return ask(dealer, run_message(spikes(1), None, layers=False, states=False, session=9, sequence=sequence))

        for last in range(1, FAULTS + 1):
            assert run(last).kind == Kind.RESULT
            answer = run(rng.randrange(last + 1) if fault == "replay" else rng.randrange(last + 2, last + 1000))
            assert (answer.kind, answer.flags) == (Kind.ERROR, Flags.BAD_REQUEST)
        dealer.close()
        context.term()


def resident(pid: int) -> int:
    """KiB."""
    (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1])


@pytest.mark.timeout(int(SOAK_SECONDS) + 300)
def test_memory_stays_over_an_hour_of_work(tmp_path):
    """About thirty requests a second, whole batches and streams, a new connection every fifty, every answer compared.
    Memory of both sides is a median over the second tenth of the time and over the last."""
    make_keys(tmp_path / "keys")
    keys, local = load_keys(tmp_path / "keys", "client"), open_backend("events", program())
    sizes: dict[str, list[int]] = {"client": [], "worker": []}
    rng, requests, begin = random.Random(0), 0, time.monotonic()
    with worker("tcp://127.0.0.1:*", "--backend", "events", "--keys", str(tmp_path / "keys")) as process:
        while time.monotonic() - begin < SOAK_SECONDS:
            with RemoteBackend(program(), [process.address], keys=keys) as remote:
                for _ in range(50):
                    given = spikes(rng.randrange(1, 200))
                    state = {} if rng.random() < 0.2 else None
                    wanted = {"layers": rng.random() < 0.5, "states": rng.random() < 0.2, "state": state}
                    truth, found = local.run(given, **wanted), remote.run(given, **wanted)
                    np.testing.assert_array_equal(found.output, truth.output)
                    for name, value in truth.u.items():
                        np.testing.assert_array_equal(found.u[name], value)
                    requests += 1
                    time.sleep(0.025)
            sizes["client"].append(resident(os.getpid()))
            sizes["worker"].append(resident(process.process.pid))
    for side, values in sizes.items():
        tenth = max(1, len(values) // 10)
        early, late = statistics.median(values[tenth : 2 * tenth]), statistics.median(values[-tenth:])
        print(f"{side}: {early} -> {late} KiB over {requests} requests, {len(values)} connections")
        assert abs(late - early) <= 0.01 * early, f"{side}: {early} -> {late} KiB"
