"""Spikes on the wire: one bit each, with their shape."""

from dataclasses import dataclass
from math import prod

import numpy as np

from hw.errors import UserError

MAX_SPIKES = 1 << 33  # 1 GiB of payload; no honest batch is larger


@dataclass(frozen=True, kw_only=True)
class Packet:
    """shape: (T, B, ...).    payload: `np.packbits` of the spikes in C order, unused bits of the last byte 0."""

    shape: tuple[int, ...]
    payload: bytes

    def __post_init__(self) -> None:
        if any(not isinstance(n, int) or n < 0 for n in self.shape) or prod(self.shape) > MAX_SPIKES:
            raise UserError(
                f"packet: shape {self.shape} is not a shape of up to {MAX_SPIKES} spikes; send smaller batches"
            )
        expected = -(-prod(self.shape) // 8)
        if len(self.payload) != expected:
            raise UserError(
                f"packet: {len(self.payload)} bytes for shape {self.shape}, which takes {expected}; "
                "it was cut or forged, send it again"
            )
        unused = 8 * expected - prod(self.shape)
        if unused and self.payload[-1] & ((1 << unused) - 1):
            raise UserError(
                f"packet: bits are set behind the last spike of shape {self.shape}; it was forged, send it again"
            )


def pack(spikes: np.ndarray) -> Packet:
    """uint8 spikes [T, B, ...] in {0, 1} -> packet of an eighth of the size.

    >>> unpack(pack(np.eye(3, dtype=np.uint8))).tolist()
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    if spikes.dtype != np.uint8 or spikes.max(initial=0) > 1:
        raise UserError(
            f"packet: spikes are uint8 in {{0, 1}}, found {spikes.dtype} up to {spikes.max(initial=0)}; "
            "encode them as spikes first"
        )
    return Packet(shape=spikes.shape, payload=np.packbits(spikes).tobytes())


def unpack(packet: Packet) -> np.ndarray:
    """packet -> uint8 spikes of its shape. Its bounds were checked when it was made."""
    bits = np.unpackbits(np.frombuffer(packet.payload, np.uint8), count=prod(packet.shape))
    return bits.reshape(packet.shape)
