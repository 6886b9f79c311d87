"""Workers in processes of their own: their spikes are the reference's, and what goes wrong ends in time."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings

from ashnets.cli import main
from hw import BackendError, Dense, SpikingProgram, UserError
from hw.bridge.codec import Flags, Kind, Message, decode
from hw.bridge.keys import check_address, load_keys, make_keys
from hw.bridge.messages import open_message, run_message
from hw.bridge.remote import BridgeTimeoutError, Patience, RemoteBackend
from hw.bridge.worker import Worker
from hw.simulate import open_backend
from tests.hw.peers import Process, answers, program, spikes, until, worker
from tests.hw.strategies import cases
from tests.hw.test_backends import assert_same


@pytest.fixture(scope="module")
def shared() -> Iterator[Process]:
    with worker() as process:
        yield process


def remote_equals_reference(shared: Process, case: tuple[SpikingProgram, np.ndarray]) -> None:
    made, given_spikes = case
    reference = open_backend("reference", made)
    with RemoteBackend(made, [shared.address]) as remote:
        assert_same(
            remote.run(given_spikes, layers=True, states=True), reference.run(given_spikes, layers=True, states=True)
        )
        half = len(given_spikes) // 2
        if not half:
            return
        one, two = (b.run(given_spikes[:half], layers=True, states=True, state={}) for b in (remote, reference))
        assert_same(one, two)
        rest = [b.run(given_spikes[half:], layers=True, states=True, state=two.state) for b in (remote, reference)]
        assert_same(*rest)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_a_remote_worker_without_torch_gives_the_references_spikes_u_v_and_states(shared, case):
    remote_equals_reference(shared, case)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_a_remote_worker_gives_the_references_for_many_programs(shared, case):
    remote_equals_reference(shared, case)


def test_work_is_spread_over_workers_and_results_come_in_order():
    truth = open_backend("reference", program()).run(spikes(41), layers=True, states=True)
    with worker() as one, worker() as two:
        with RemoteBackend(program(), [one.address, two.address]) as remote:
            assert_same(remote.run(spikes(41), layers=True, states=True), truth)
            futures = [remote.submit(spikes(k)) for k in range(1, 20)]
            for k, future in enumerate(futures, 1):
                np.testing.assert_array_equal(
                    future.result().output, open_backend("reference", program()).run(spikes(k)).output
                )
        assert one.end() == two.end() == 0  # SIGTERM is a clean end


def test_a_worker_killed_half_way_loses_nothing():
    reference = open_backend("reference", program())
    with worker() as one, worker() as two:
        patience = Patience(deadline=30, silence=0.5)
        with RemoteBackend(program(), [one.address, two.address], patience=patience) as remote:
            futures = []
            for k in range(1, 60):
                futures.append(remote.submit(spikes(k)))
                if k == 30:
                    until(lambda: futures[10].done())
                    one.signal(signal.SIGKILL)
            for k, future in enumerate(futures, 1):
                np.testing.assert_array_equal(future.result().output, reference.run(spikes(k)).output)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_gone_ends_in_a_typed_error_by_the_deadline_and_work_goes_on_when_one_returns(
    number, tmp_path
):
    address = f"ipc://{tmp_path}/w"
    patience = Patience(deadline=1.5, silence=0.5)
    with worker(address) as process, RemoteBackend(program(), [address], patience=patience) as remote:
        truth = remote.run(spikes(3)).output
        process.signal(number)
        begin = time.monotonic()
        with pytest.raises(BridgeTimeoutError, match=r"no result within 1\.5 s .*no answer for 0\.5 s"):
            remote.run(spikes(3))
        assert 1.4 < time.monotonic() - begin < 2.5
        if number == signal.SIGSTOP:
            process.signal(signal.SIGCONT)
            until(lambda: answers(remote, spikes(3), truth))
        else:
            with worker(address):
                until(lambda: answers(remote, spikes(3), truth))


@pytest.mark.parametrize("answer", [b"", b"half a frame", os.urandom(200), b"\xff\0\0\0\0\0\0\0\1\x7f"])
def test_a_peer_that_speaks_something_else_ends_in_a_typed_error_by_the_deadline(answer):
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(5)
    address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    with server, RemoteBackend(program(), [address], patience=Patience(deadline=1, silence=0.4)) as remote:
        future = remote.submit(spikes(1))
        connection, _ = server.accept()
        connection.sendall(answer)
        begin = time.monotonic()
        with pytest.raises(BridgeTimeoutError):
            future.result(5)
        assert time.monotonic() - begin < 2
        connection.close()


def test_a_peer_of_ours_that_sends_broken_results_ends_in_a_typed_error_by_the_deadline():
    """A worker that answers in our frames, but with another program's shapes."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with RemoteBackend(program(), [f"tcp://127.0.0.1:{port}"], patience=Patience(deadline=1.5, silence=1)) as remote:
        future = remote.submit(spikes(2))
        results = 0
        while not future.done():
            if not router.poll(100):
                continue
            client, *frames = router.recv_multipart()
            message = decode(frames)
            kind = {Kind.PING: Kind.PONG, Kind.OPEN: Kind.OPENED, Kind.RUN: Kind.RESULT}.get(message.kind)
            if kind is None:
                continue
            values = (np.zeros((4, 2, 5)),) if kind == Kind.RESULT else ()
            results += kind == Kind.RESULT
            answer = Message(kind=kind, session=message.session, sequence=message.sequence, values=values)
            router.send_multipart([client, *answer.encode()])
        with pytest.raises(BridgeTimeoutError, match=r"expected \[T, B, \.\.\.\] of shape \(6,\)"):
            future.result()
        assert results > 1
    router.close()
    context.term()


def test_a_worker_that_answers_but_never_takes_the_program_is_asked_anew():
    """What the wire lost is not waited for: the first OPEN stays without an answer, heartbeats do not."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")
    opened: list[int] = []
    begin = time.monotonic()
    with RemoteBackend(program(), [f"tcp://127.0.0.1:{port}"], patience=Patience(deadline=0.6, silence=0.3)):
        while len(opened) < 2:
            assert time.monotonic() - begin < 10
            if not router.poll(100):
                continue
            client, *frames = router.recv_multipart()
            message = decode(frames)
            if message.kind == Kind.PING:
                pong = Message(kind=Kind.PONG, session=message.session, sequence=message.sequence)
                router.send_multipart([client, *pong.encode()])
            elif message.kind == Kind.OPEN:
                opened.append(message.session)
    assert opened[0] != opened[1]
    router.close()
    context.term()


def raw(address: str) -> tuple[zmq.Context, zmq.Socket]:
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.rcvtimeo = 5000
    dealer.connect(address)
    return context, dealer


def ask(dealer: zmq.Socket, message: Message) -> Message:
    dealer.send_multipart(message.encode())
    return decode(dealer.recv_multipart())


def test_replayed_reordered_and_foreign_requests_are_refused(shared):
    def run(sequence: int, session: int = 9) -> Message:
        return run_message(spikes(1), None, layers=False, states=False, session=session, sequence=sequence)

    context, dealer = raw(shared.address)
    other_context, other = raw(shared.address)
    assert ask(dealer, open_message(program(), 9)).kind == Kind.OPENED
    assert ask(dealer, run(1)).kind == Kind.RESULT
    for sequence in (1, 0, 3, 2**64 - 1):
        answer = ask(dealer, run(sequence))
        assert (answer.kind, answer.flags) == (Kind.ERROR, Flags.BAD_REQUEST)
    assert ask(dealer, open_message(program(), 9)).kind == Kind.ERROR
    assert ask(dealer, Message(kind=Kind.RESULT, session=9)).kind == Kind.ERROR
    answer = ask(other, run(2))  # a session belongs to its connection
    assert (answer.kind, answer.flags) == (Kind.ERROR, Flags.NO_SESSION)
    assert ask(dealer, run(2)).kind == Kind.RESULT
    other.send_multipart([b"junk"])
    assert decode(other.recv_multipart()).kind == Kind.ERROR
    for socket_, context_ in ((dealer, context), (other, other_context)):
        socket_.close()
        context_.term()


def test_a_program_that_does_not_fit_and_spikes_that_do_not_are_refused_by_name(shared):
    context, dealer = raw(shared.address)
    big = Dense(name="fc", weight_int=np.full((1, 9), 1000), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    answer = ask(dealer, open_message(SpikingProgram(input_shape=(9,), steps=1, layers=(big,)), 5))
    assert answer.flags == Flags.BAD_REQUEST
    assert b"weights span [1000, 1000]" in answer.values[0]
    assert ask(dealer, open_message(program(), 6)).kind == Kind.OPENED
    answer = ask(
        dealer,
        run_message(np.zeros((4, 1, 8)), None, layers=False, states=False, session=6, sequence=1),
    )
    assert answer.flags == Flags.BAD_REQUEST
    assert b"the program takes (T=4, B, 9)" in answer.values[0]
    dealer.close()
    context.term()
    with RemoteBackend(program(), [shared.address]) as remote, pytest.raises(UserError, match=r"takes \(T=4, B, 9\)"):
        remote.run(np.zeros((4, 1, 8)))


def test_an_error_of_the_workers_backend_reaches_the_user():
    with worker("tcp://127.0.0.1:*", "--backend", "lava") as process:
        wide = Dense(
            name="fc", weight_int=np.eye(2, dtype=int), decay_u_int=np.array([1, 2]), decay_v_int=1, v_th_mant=1
        )
        bad = SpikingProgram(input_shape=(2,), steps=1, layers=(wide,))
        with RemoteBackend(bad, [process.address]) as remote, pytest.raises(UserError, match="decay_u_int differs"):
            remote.run(np.zeros((1, 1, 2)))


def test_a_worker_that_refuses_the_program_leaves_it_to_one_that_does_not():
    wide = Dense(name="fc", weight_int=np.eye(2, dtype=int), decay_u_int=np.array([1, 2]), decay_v_int=1, v_th_mant=1)
    made = SpikingProgram(input_shape=(2,), steps=1, layers=(wide,))
    with (
        worker("tcp://127.0.0.1:*", "--backend", "lava") as no,
        worker("tcp://127.0.0.1:*") as yes,
        RemoteBackend(made, [no.address, yes.address]) as remote,
    ):
        for _ in range(5):
            assert remote.run(np.ones((1, 1, 2))).output.shape == (1, 1, 2)


@contextmanager
def own_worker() -> Iterator[str]:
    """The address of a worker in this process, for what is patched here."""
    made = Worker("tcp://127.0.0.1:*", "reference")
    thread = threading.Thread(target=made.serve)
    thread.start()
    try:
        yield made.address
    finally:
        made.stop()
        thread.join(10)


def test_clients_that_find_a_workers_queue_full_come_back_and_get_their_results(monkeypatch):
    monkeypatch.setattr("hw.bridge.worker.MAX_WAITING", 1)
    with own_worker() as address, ExitStack() as clients:
        remotes = [clients.enter_context(RemoteBackend(program(), [address])) for _ in range(6)]
        asked = [remote.submit(spikes(2)) for remote in remotes]
        assert all(future.result(60).output.shape == (4, 2, 6) for future in asked)


def test_a_result_too_large_for_a_message_is_an_error_at_once_and_the_worker_goes_on(monkeypatch):
    monkeypatch.setattr("hw.bridge.codec.MAX_VALUES", 1000)
    wide = Dense(name="fc", weight_int=np.full((100, 1), 9), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    wide_program = SpikingProgram(input_shape=(1,), steps=1, layers=(wide,))
    ones = np.ones((1, 20, 1), np.uint8)
    with own_worker() as address:
        for _ in range(2):
            with RemoteBackend(wide_program, [address], patience=Patience(deadline=5)) as remote:
                with pytest.raises(UserError, match=r"message: 2000 values in all, at most 1000 .* smaller batches"):
                    remote.run(ones)
                assert remote.run(ones[:, :2]).output.all()


def test_a_request_too_large_for_a_message_is_an_error_at_once_and_the_next_is_met(monkeypatch, shared):
    monkeypatch.setattr("hw.bridge.codec.MAX_VALUES", 1000)
    with RemoteBackend(program(), [shared.address], patience=Patience(deadline=5)) as remote:
        assert remote.run(spikes(2)).output.shape == (4, 2, 6)
        with pytest.raises(UserError, match=r"message: 1440 values in all, at most 1000 .* smaller batches"):
            remote.submit(spikes(40)).result(3)
        assert remote.run(spikes(2)).output.shape == (4, 2, 6)


def test_a_result_that_finds_no_memory_ends_in_a_typed_error_by_the_deadline(monkeypatch, shared):
    def full(*_: object) -> None:
        raise MemoryError("no memory for it")

    monkeypatch.setattr("hw.bridge.remote.result_from", full)
    patience = Patience(deadline=4)  # a worker's first piece of work may take more than a second
    with (
        RemoteBackend(program(), [shared.address], patience=patience) as remote,
        pytest.raises(BridgeTimeoutError, match="no memory for it"),
    ):
        remote.submit(spikes(1)).result(8)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "a"
    assert main(["keys", "new", str(folder)]) == 0
    return folder


def test_whoever_holds_the_keys_gets_in_and_nobody_else(keys, tmp_path):
    make_keys(tmp_path / "other")
    theirs, ours = load_keys(tmp_path / "other", "client"), load_keys(keys, "client")
    patience = Patience(deadline=1, silence=0.4)
    with worker("tcp://127.0.0.1:*", "--keys", str(keys)) as process:
        strangers = [None, theirs, type(ours)(public=theirs.public, secret=theirs.secret, peer=ours.peer)]
        for stranger in strangers:
            with (
                RemoteBackend(program(), [process.address], keys=stranger, patience=patience) as remote,
                pytest.raises(BridgeTimeoutError, match="are the workers running, and the keys theirs"),
            ):
                remote.run(spikes(1))
        with RemoteBackend(program(), [process.address], keys=ours) as remote:
            np.testing.assert_array_equal(
                remote.run(spikes(5)).output, open_backend("reference", program()).run(spikes(5)).output
            )


def test_keys_are_private_and_never_overwritten(keys, tmp_path, capsys):
    assert {path.name: path.stat().st_mode & 0o777 for path in keys.iterdir()} == {
        "worker.json": 0o600,
        "client.json": 0o600,
        "worker.public.json": 0o644,
        "client.public.json": 0o644,
    }
    assert main(["keys", "new", str(keys)]) == 2
    assert "holds client.json already" in capsys.readouterr().err
    secret = load_keys(keys, "client").secret
    assert secret.decode() not in repr(load_keys(keys, "client"))
    folder = tmp_path / "k"
    make_keys(folder)
    (folder / "client.json").chmod(0o644)
    with pytest.raises(UserError, match="others may read this secret key; run 'chmod 600"):
        load_keys(folder, "client")
    (folder / "worker.public.json").write_text('{"public": "short"}')
    (folder / "client.json").chmod(0o600)
    with pytest.raises(UserError, match=r"worker\.public\.json: 'public' is no key"):
        load_keys(folder, "client")


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:1", "tcp://*:1", "tcp://192.168.1.2:1", "tcp://example.org:5555"])
def test_an_address_that_leaves_this_machine_needs_keys(address, keys, capsys):
    with pytest.raises(UserError, match="leaves this machine; give --keys FOLDER"):
        check_address(address, None)
    assert check_address(address, load_keys(keys, "client")) == address
    assert main(["worker", "--listen", address]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "address", ["http://a:1", "tcp://a", "tcp://a:b", "tcp://a:1/x", "ipc://", "ipc://" + "x" * 99]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="is not tcp://HOST:PORT or ipc://PATH"):
        check_address(address, None)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:65536", "tcp://example.org:99999"])
def test_a_port_that_no_machine_has_is_refused_at_once(address):
    with pytest.raises(UserError, match=r"port \d+, ports end at 65535"):
        open_backend(address, program())


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:65535", "tcp://127.0.0.1:5", "tcp://localhost:5", "tcp://[::1]:5", "ipc:///tmp/w"]
)
def test_loopback_needs_no_keys(address):
    assert check_address(address, None) == address


def test_nothing_is_left_behind():
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    with worker() as process:
        for _ in range(5):
            with RemoteBackend(program(), [process.address]) as remote:
                remote.run(spikes(2))
    until(lambda: (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) <= before)
    with pytest.raises(UserError, match="was closed"):
        remote.run(spikes(2))
    with RemoteBackend(program(), ["tcp://127.0.0.1:9"]) as alone:
        future = alone.submit(spikes(1))
    with pytest.raises(BackendError, match="closed before the result came"):
        future.result()
