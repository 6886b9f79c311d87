"""Workers on other hosts (or this one) as one backend: work is spread over them, and results come in order.

Every worker has a link, a thread with a connection of its own. A link takes the next request that waits once its worker
is known to answer; a worker that falls silent loses the request to the others, and the link goes on trying to reach it.
A request that no worker has met by its deadline fails with `BridgeTimeoutError`.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import zmq

from hw.bridge.codec import HEADER_BYTES, MAX_PAYLOAD, Flags, FrameError, Kind, Message, decode
from hw.bridge.keys import Keys, check_address
from hw.bridge.messages import open_message, result_from, run_message
from hw.errors import BackendError, UserError
from hw.program import SpikingProgram
from hw.simulate.base import Result, State, check_spikes, check_state
from hw.validate import validate


class BridgeTimeoutError(BackendError):
    """No worker gave the result in time."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds: `deadline` for a request, from when it was made to its result; `silence` after which a worker that
    answers nothing, not even a ping, is given up."""

    deadline: float = 600.0
    silence: float = 5.0


@dataclass(eq=False)
class _Request:
    spikes: np.ndarray
    state: State | None
    layers: bool
    states: bool
    end: float
    future: "Future[Result]" = field(default_factory=Future)

    def settle(self, value: Result | Exception) -> None:
        with suppress(InvalidStateError):  # given up by its caller, or late
            if isinstance(value, Exception):
                self.future.set_exception(value)
            else:
                self.future.set_result(value)


class _LostError(Exception):
    """The worker does not answer, or has forgotten us."""


class RemoteBackend:
    """Behind the interface that all backends share. addresses: one for each worker."""

    name = "remote"

    def __init__(
        self,
        program: SpikingProgram,
        addresses: Sequence[str],
        *,
        keys: Keys | None = None,
        patience: Patience = Patience(),
    ) -> None:
        self.program = validate(program)
        self.addresses = tuple(check_address(address, keys) for address in addresses)
        if not self.addresses or len(set(self.addresses)) < len(self.addresses):
            raise UserError(f"addresses {', '.join(self.addresses)}: give each worker's once, and at least one")
        self.keys, self.patience = keys, patience
        self.waiting: deque[_Request] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.trouble: dict[str, str] = {}
        self.refusals: set[str] = set()  # addresses of workers that do not take the program
        self.context = zmq.Context()
        self.links = [threading.Thread(target=_Link(self, a).live, daemon=True) for a in self.addresses]
        for link in self.links:
            link.start()

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result:
        spikes = check_spikes(self.program, spikes, stream=state is not None)
        check_state(self.program, state or {}, spikes.shape[1])
        pieces = min(len(self.addresses), max(1, spikes.shape[1])) if state is None else 1
        parts = [
            self.submit(part, layers=layers, states=states, state=state)
            for part in np.array_split(spikes, pieces, axis=1)
        ]
        try:
            return _joined([part.result() for part in parts])
        except BaseException:
            for part in parts:
                part.cancel()
            raise

    def submit(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> "Future[Result]":
        """Ask and go on; the future gives the result, or raises what went wrong, by the deadline."""
        if self.closed:
            raise UserError("the remote backend was closed; open it again")
        request = _Request(spikes, state, layers, states, time.monotonic() + self.patience.deadline)
        with self.changed:
            self.waiting.append(request)
            self.changed.notify_all()
        return request.future

    def close(self) -> None:
        """End the links. What still waits fails."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for link in self.links:
            link.join()
        while self.waiting:
            self.waiting.popleft().settle(BackendError("the remote backend was closed before the result came"))
        self.context.destroy(0)

    def __enter__(self) -> "RemoteBackend":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next_request(self, seconds: float) -> _Request | None:
        """The oldest that waits and is wanted, once there is one."""
        with self.changed:
            if not self.waiting and not self.closed:
                self.changed.wait(seconds)
            self.drop_late()
            return self.waiting.popleft() if self.waiting and not self.closed else None

    def put_back(self, request: _Request) -> None:
        with self.changed:
            self.waiting.appendleft(request)
            self.changed.notify_all()

    def drop_late(self) -> None:
        """Fail what waits beyond its deadline; forget what nobody waits for."""
        now = time.monotonic()
        with self.changed:
            for request in [r for r in self.waiting if now > r.end or r.future.done()]:
                self.waiting.remove(request)
                request.settle(self.too_late())

    def too_late(self) -> BridgeTimeoutError:
        states = "; ".join(f"{address}: {self.trouble.get(address, 'is at work')}" for address in self.addresses)
        return BridgeTimeoutError(
            f"no result within {self.patience.deadline:g} s ({states}); are the workers running, and the keys theirs?"
        )


class _Link:
    """One worker's connection. Lives in a thread of its own, the only one that touches its socket."""

    def __init__(self, owner: RemoteBackend, address: str) -> None:
        self.owner, self.address = owner, address
        self.socket: zmq.Socket | None = None
        self.session = self.sequence = 0
        self.heard = 0.0  # when the worker last gave a sign of life

    def live(self) -> None:
        pause = 0.1
        while not self.owner.closed:
            request = None
            try:
                if self.socket is None:
                    self._open()
                    pause = 0.1
                request = self.owner.next_request(0.1)
                if request is not None:
                    self._meet(request)
                elif time.monotonic() - self.heard > self.owner.patience.silence / 2:
                    self._ping()
            except (_LostError, FrameError, zmq.ZMQError, MemoryError) as error:
                self.owner.trouble[self.address] = str(error)
                if request is not None:
                    self.owner.put_back(request)
                self._drop()
                self._wait(pause)
                pause = min(2.0, 2 * pause)
            except (UserError, BackendError) as error:  # the worker refuses the program; others may take it
                self._drop()
                self.owner.trouble[self.address] = str(error)
                self.owner.refusals.add(self.address)
                if self.owner.refusals.issuperset(self.owner.addresses):
                    while (request := self.owner.next_request(0.0)) is not None:
                        request.settle(error)
                self._wait(pause)
        if self.socket is not None:
            with suppress(zmq.ZMQError):
                self._send(Message(kind=Kind.CLOSE, session=self.session))
                self.socket.close(200)
            self.socket = None

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.owner.closed and time.monotonic() < end:
            self.owner.drop_late()
            time.sleep(0.05)

    def _drop(self) -> None:
        if self.socket is not None:
            self.socket.close(0)
            self.socket = None

    def _open(self) -> None:
        socket = self.socket = self.owner.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.maxmsgsize = MAX_PAYLOAD + HEADER_BYTES
        if keys := self.owner.keys:
            socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = keys.public, keys.secret, keys.peer
        socket.connect(self.address)
        self.session, self.sequence = int.from_bytes(os.urandom(8), "little"), 0
        self.heard = time.monotonic()
        self._ping()
        self._send(open_message(self.owner.program, self.session))
        self._await(Kind.OPENED)
        self.owner.trouble.pop(self.address, None)
        self.owner.refusals.discard(self.address)

    def _send(self, message: Message) -> None:
        assert self.socket is not None
        self.socket.send_multipart(message.encode(), flags=zmq.NOBLOCK)

    def _ping(self) -> None:
        self._send(Message(kind=Kind.PING, session=self.session, sequence=self.sequence))
        self._await(Kind.PONG)

    def _meet(self, request: _Request) -> None:
        message = run_message(
            request.spikes,
            request.state,
            layers=request.layers,
            states=request.states,
            session=self.session,
            sequence=self.sequence + 1,
        )
        try:
            self._send(message)
            self.sequence += 1
            answer = self._await(Kind.RESULT, request)
        except (UserError, BackendError) as error:
            if isinstance(error, FrameError):
                raise
            request.settle(error)
            return
        if answer is None:
            self._drop()  # what it still computes is for nobody
            return
        steps, samples = request.spikes.shape[:2]
        if answer.flags != message.flags:
            raise FrameError(f"message: a result with flags {answer.flags} for a request with {message.flags}")
        request.settle(result_from(answer, self.owner.program, steps, samples))

    def _await(self, kind: Kind, request: _Request | None = None) -> Message | None:
        """The message of this kind and our sequence; None for a request that is late or unwanted."""
        assert self.socket is not None
        begin = pinged = time.monotonic()
        while True:
            now = time.monotonic()
            self.owner.drop_late()
            if self.owner.closed:
                raise _LostError("closed")
            if request is not None and (now > request.end or request.future.done()):
                request.settle(self.owner.too_late())
                return None
            if request is None and now - begin > self.owner.patience.deadline:
                raise _LostError(f"answers, but gave no {kind.name} within {self.owner.patience.deadline:g} s")
            if now - self.heard > self.owner.patience.silence:
                raise _LostError(f"no answer for {self.owner.patience.silence:g} s")
            if now - pinged > self.owner.patience.silence / 3:
                self._send(Message(kind=Kind.PING, session=self.session, sequence=self.sequence))
                pinged = now
            if not self.socket.poll(50):
                continue
            answer = decode(self.socket.recv_multipart())
            if answer.session != self.session:
                continue
            self.heard = time.monotonic()
            if answer.kind == Kind.ERROR:
                text = bytes(answer.values[0]).decode(errors="replace") if answer.values else "no reason given"
                if answer.flags & Flags.NO_SESSION:
                    raise _LostError(text)
                raise (UserError if answer.flags & Flags.BAD_REQUEST else BackendError)(f"{self.address}: {text}")
            if answer.kind == kind and answer.sequence == self.sequence:
                return answer


def _joined(parts: list[Result]) -> Result:
    """Parts of one batch, side by side."""
    if len(parts) == 1:
        return parts[0]

    def joined(each: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([values[name] for values in each], axis=1) for name in each[0]}

    return Result(
        output=np.concatenate([part.output for part in parts], axis=1),
        layers=joined([part.layers for part in parts]),
        u=joined([part.u for part in parts]),
        v=joined([part.v for part in parts]),
    )
