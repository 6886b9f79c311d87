"""How a packet of spikes gets to a backend and back."""

from typing import Protocol

from hw.bridge.codec import Packet, pack, unpack
from hw.simulate.base import Backend


class Transport(Protocol):
    """Takes input spikes [T, B, *in] to a backend and brings its output spikes [T, B, *out]."""

    def exchange(self, packet: Packet) -> Packet: ...


class InProcess:
    """The shortest way: the backend lives here."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def exchange(self, packet: Packet) -> Packet:
        return pack(self.backend.run(unpack(packet)).output)
