"""A simulator or chip for others to use: takes programs and spikes from its clients and gives spikes back.

    python -m hw.bridge.worker --listen tcp://127.0.0.1:5555 --backend events

needs numpy, h5py, safetensors and pyzmq, numba for `events`, Lava for `lava`, and never torch. One thread talks, so
that a heartbeat is answered while another thread computes. A request is taken once and in order: its sequence must
follow the session's last one, and a session belongs to the connection that opened it.
"""

import argparse
import signal
import sys
import threading
import traceback
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from queue import Full, Queue

import zmq
from zmq.auth.thread import ThreadAuthenticator

from hw.bridge.codec import HEADER_BYTES, MAX_PAYLOAD, Flags, FrameError, Kind, Message, decode
from hw.bridge.keys import Keys, check_address, load_keys
from hw.bridge.messages import error_message, program_from, result_message, run_from
from hw.errors import BackendError, UserError
from hw.simulate.base import Backend, check_backend, open_backend

MAX_SESSIONS = 64
MAX_WAITING = 64  # requests of all clients


@dataclass
class _Session:
    """One program of one connection. The backend is made by the thread that computes."""

    last: int = 0
    backend: list[Backend] = field(default_factory=list)


class Worker:
    """Serves one backend on one address until `stop`."""

    def __init__(self, address: str, backend: str, keys: Keys | None = None) -> None:
        check_backend(backend)
        check_address(address, keys)
        self.backend = backend
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.maxmsgsize = MAX_PAYLOAD + HEADER_BYTES
        self.guard = _guard(self.context, self.socket, keys) if keys else None
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            self._close()
            raise UserError(f"address '{address}': cannot listen there ({error.strerror}); choose another") from error
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.sessions: OrderedDict[tuple[bytes, int], _Session] = OrderedDict()
        self.waiting: Queue[tuple[bytes, Message, _Session] | None] = Queue(MAX_WAITING)
        self.stopped = threading.Event()

    def stop(self) -> None:
        """May be called from a signal handler or another thread."""
        self.stopped.set()

    def serve(self) -> None:
        """Answer until stopped. Nothing is left behind: no thread, no socket file."""
        done = self.context.socket(zmq.PULL)
        done.bind("inproc://done")
        computing = threading.Thread(target=self._compute, daemon=True)
        computing.start()
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(done, zmq.POLLIN)
        try:
            while not self.stopped.is_set():
                ready = dict(poller.poll(100))
                if done in ready:
                    self.socket.send_multipart(done.recv_multipart())
                if self.socket in ready:
                    client, *frames = self.socket.recv_multipart()
                    self._take(client, frames)
        finally:
            while not self.waiting.empty():
                self.waiting.get_nowait()
            self.waiting.put(None)
            computing.join(5)
            done.close(0)
            self._close()

    def _close(self) -> None:
        self.socket.close(0)
        if self.guard:
            self.guard.stop()
        self.context.destroy(0)

    def _take(self, client: bytes, frames: list[bytes]) -> None:
        try:
            message = decode(frames)
        except FrameError as error:
            self._answer(client, error_message(error, Message(kind=Kind.ERROR)))
            return
        key = (client, message.session)
        session = self.sessions.get(key)
        if message.kind == Kind.PING:
            self._answer(client, Message(kind=Kind.PONG, session=message.session, sequence=message.sequence))
        elif message.kind == Kind.CLOSE:
            self.sessions.pop(key, None)
        elif message.kind == Kind.OPEN:
            if session is not None or message.sequence:
                self._refuse(client, message, f"session {message.session} is open already")
                return
            self.sessions[key] = session = _Session()
            while len(self.sessions) > MAX_SESSIONS:
                self.sessions.popitem(last=False)
            self._queue(client, message, session)
        elif message.kind == Kind.RUN and session is None:
            self._refuse(client, message, f"session {message.session} is not known", Flags.NO_SESSION)
        elif message.kind == Kind.RUN and session is not None:
            if message.sequence != session.last + 1:
                self._refuse(client, message, f"request {message.sequence} came after {session.last}, out of order")
                return
            session.last = message.sequence
            self.sessions.move_to_end(key)
            self._queue(client, message, session)
        else:
            self._refuse(client, message, f"a worker takes no {message.kind.name}")

    def _queue(self, client: bytes, message: Message, session: _Session) -> None:
        try:
            self.waiting.put_nowait((client, message, session))
        except Full:  # a session forgotten is one that its client opens again, after a pause or elsewhere
            del self.sessions[client, message.session]
            self._refuse(client, message, f"{MAX_WAITING} requests are waiting already", Flags.NO_SESSION)

    def _refuse(self, client: bytes, message: Message, why: str, flag: Flags = Flags.BAD_REQUEST) -> None:
        self._answer(
            client,
            Message(
                kind=Kind.ERROR, session=message.session, sequence=message.sequence, flags=flag, values=(why.encode(),)
            ),
        )

    def _answer(self, client: bytes, message: Message) -> None:
        self.socket.send_multipart([client, *message.encode()])

    def _compute(self) -> None:
        out = self.context.socket(zmq.PUSH)
        out.connect("inproc://done")
        while (job := self.waiting.get()) is not None:
            client, message, session = job
            try:
                answer = self._run(message, session).encode()
            except Exception as error:
                if not isinstance(error, (UserError, BackendError)):
                    traceback.print_exc()
                answer = error_message(error, message).encode()
            out.send_multipart([client, *answer])
        out.close(0)

    def _run(self, message: Message, session: _Session) -> Message:
        if message.kind == Kind.OPEN:
            session.backend.append(open_backend(self.backend, program_from(message)))
            return Message(kind=Kind.OPENED, session=message.session)
        if not session.backend:
            raise UserError("the session's program was refused")
        backend = session.backend[0]
        spikes, state = run_from(message, backend.program)
        layers, states = bool(message.flags & Flags.LAYERS), bool(message.flags & Flags.STATES)
        return result_message(backend.run(spikes, layers=layers, states=states, state=state), message)


def _guard(context: zmq.Context, socket: zmq.Socket, keys: Keys) -> ThreadAuthenticator:
    """Let in whoever holds the client's secret key, and nobody else."""

    class Known:
        def callback(self, domain: str, key: bytes) -> bool:
            return key == keys.peer

    guard = ThreadAuthenticator(context)
    guard.start()
    guard.configure_curve_callback(domain="*", credentials_provider=Known())
    socket.curve_server = True
    socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
    return guard


def run_worker(address: str, backend: str, keys: Path | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; the first line on standard output names the address."""
    worker = Worker(address, backend, load_keys(keys, "worker") if keys else None)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stop())
    secured = "with keys" if keys else "without keys, for this machine alone"
    print(f"listening on {worker.address}, backend '{backend}', {secured}; Ctrl-C ends", flush=True)
    worker.serve()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hw.bridge.worker", description="Serve a simulator or chip.")
    parser.add_argument("--listen", default="tcp://127.0.0.1:5555")
    parser.add_argument("--backend", default="events")
    parser.add_argument("--keys", type=Path)
    arguments = parser.parse_args()
    try:
        run_worker(arguments.listen, arguments.backend, arguments.keys)
    except UserError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
