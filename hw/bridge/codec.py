"""Arrays on the wire. A message is a list of frames; a frame is a fixed header and the payload of one array or text.

    offset  0  magic  b"ASHB"            20  dimensions  6 x uint32, those beyond the rank 0
            4  version  uint8            44  session  uint64
            5  kind  uint8, `Kind`       52  sequence  uint64
            6  coding  uint8, `Coding`   60  payload bytes  uint64
            7  rank  uint8               68  CRC-32 of the 68 bytes before and the payload, uint32
            8  flags  uint32, `Flags`
           12  frame of the message  uint32
           16  frames of the message  uint32

All little-endian. Every bound is checked before memory is taken. The checksum finds accidents; against a forger there
are keys (`hw.bridge.keys`).
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from math import prod

import numpy as np

from hw.errors import UserError

MAGIC, VERSION = b"ASHB", 1
HEADER = struct.Struct("<4sBBBBIII6IQQQ")
HEADER_BYTES = HEADER.size + 4
MAX_RANK = 6
MAX_VALUES = 1 << 28  # of all arrays of a message; no honest batch is larger
MAX_PAYLOAD = 1 << 30
MAX_FRAMES = 1 << 16


class Kind(IntEnum):
    OPEN = 1  # a program, from the client
    OPENED = 2
    RUN = 3  # spikes, and a state if Flags.STREAM, from the client
    RESULT = 4
    PING = 5
    PONG = 6
    ERROR = 7  # a text, from the worker: the request cannot be met
    CLOSE = 8  # the session is over, from the client


class Coding(IntEnum):
    TEXT = 0  # bytes, rank 1
    BITS = 1  # `np.packbits` in C order, unused bits of the last byte 0
    EVENTS = 2  # the flat index of each spike, uint32, ascending
    INT8 = 3
    INT16 = 4
    INT32 = 5


class Flags(IntFlag):
    LAYERS = 1
    STATES = 2
    STREAM = 4
    BAD_REQUEST = 8  # of an ERROR: the request is at fault, not the worker
    NO_SESSION = 16  # of an ERROR: the worker does not know the session (any more); open it again


_INTEGERS = {Coding.INT8: np.dtype("<i1"), Coding.INT16: np.dtype("<i2"), Coding.INT32: np.dtype("<i4")}


class FrameError(UserError):
    """Bytes that are no frame of ours."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """values: arrays, or bytes."""

    kind: Kind
    session: int = 0
    sequence: int = 0
    flags: int = 0  # `Flags`
    values: tuple[np.ndarray | bytes, ...] = ()

    def encode(self) -> list[bytes]:
        """The frames; a message without values is one frame with an empty text. `UserError` for one of too many."""
        values = self.values or (b"",)
        total = sum(len(value) if isinstance(value, bytes) else value.size for value in values)
        if total > MAX_VALUES:
            raise UserError(f"message: {total} values in all, at most {MAX_VALUES} are taken; send smaller batches")
        frames = []
        for i, value in enumerate(values):
            coding, shape, payload = _payload(value)
            dimensions = (*shape, *[0] * (MAX_RANK - len(shape)))
            header = HEADER.pack(
                MAGIC, VERSION, self.kind, coding, len(shape), self.flags, i, len(values), *dimensions,
                self.session, self.sequence, len(payload),
            )  # fmt: skip
            checksum = zlib.crc32(payload, zlib.crc32(header))
            frames.append(header + struct.pack("<I", checksum) + payload)
        return frames


def decode(frames: list[bytes]) -> Message:
    """The message; `FrameError` says what is wrong with its frames."""
    if not 0 < len(frames) <= MAX_FRAMES:
        raise FrameError(f"frame: a message of {len(frames)} frames, 1 to {MAX_FRAMES} are taken")
    heads, arrays = zip(*(_read_header(frame, i, len(frames)) for i, frame in enumerate(frames)), strict=True)
    if len(set(heads)) != 1:
        raise FrameError("frame: the frames of one message differ in kind, flags, session or sequence")
    total = sum(prod(shape) for _, shape in arrays)
    if total > MAX_VALUES:
        raise FrameError(f"frame: {total} values in one message, at most {MAX_VALUES} are taken; send smaller batches")
    try:
        values = [
            _value(coding, shape, memoryview(frame)[HEADER_BYTES:])
            for frame, (coding, shape) in zip(frames, arrays, strict=True)
        ]
    except MemoryError as error:
        raise FrameError(f"frame: no memory for a message of {total} values; send smaller batches") from error
    kind, flags, session, sequence = heads[0]
    if len(values) == 1 and isinstance(values[0], bytes) and not values[0]:
        values = []
    return Message(kind=Kind(kind), session=session, sequence=sequence, flags=flags, values=tuple(values))


def _read_header(
    frame: bytes, index: int, count: int
) -> tuple[tuple[int, int, int, int], tuple[Coding, tuple[int, ...]]]:
    """((kind, flags, session, sequence), (coding, shape)) of a whole frame; takes no memory for its array."""
    if len(frame) < HEADER_BYTES:
        raise FrameError(f"frame: {len(frame)} bytes, a header has {HEADER_BYTES}; it was cut, send it again")
    magic, version, kind, coding, rank, flags, i, n, *rest = HEADER.unpack_from(frame)
    dimensions, (session, sequence, size) = rest[:MAX_RANK], rest[MAX_RANK:]
    if magic != MAGIC or version != VERSION:
        raise FrameError(f"frame: starts with {magic!r} version {version}, expected {MAGIC!r} version {VERSION}")
    if kind not in Kind._value2member_map_ or coding not in Coding._value2member_map_ or flags >= 32:
        raise FrameError(f"frame: kind {kind}, coding {coding} or flags {flags} are not known")
    if rank > MAX_RANK or any(dimensions[rank:]) or (i, n) != (index, count):
        raise FrameError(f"frame: rank {rank} with dimensions {dimensions}, or frame {i} of {n} as {index} of {count}")
    shape = tuple(dimensions[:rank])
    if size > MAX_PAYLOAD or size != len(frame) - HEADER_BYTES:
        raise FrameError(
            f"frame: {size} bytes behind its header, found {len(frame) - HEADER_BYTES}; at most {MAX_PAYLOAD} are "
            "taken; send smaller batches"
        )
    (checksum,) = struct.unpack_from("<I", frame, HEADER.size)
    if zlib.crc32(memoryview(frame)[HEADER_BYTES:], zlib.crc32(frame[: HEADER.size])) != checksum:
        raise FrameError("frame: checksum differs; it was damaged on the way, send it again")
    return (kind, flags, session, sequence), (Coding(coding), shape)


def _payload(value: np.ndarray | bytes) -> tuple[Coding, tuple[int, ...], bytes]:
    """The shortest coding: spikes as bits or addresses, integers as the narrowest that holds them."""
    if isinstance(value, bytes):
        return Coding.TEXT, (len(value),), value
    if value.ndim > MAX_RANK or max(value.shape, default=0) >= 1 << 32:
        raise UserError(f"frame: an array of shape {value.shape} is too large for one frame; send smaller batches")
    low, high = int(value.min(initial=0)), int(value.max(initial=0))
    if low >= 0 and high <= 1:
        count = np.count_nonzero(value)
        if 32 * count < value.size < 1 << 32:
            return Coding.EVENTS, value.shape, np.flatnonzero(value).astype("<u4").tobytes()
        return Coding.BITS, value.shape, np.packbits(value != 0).tobytes()
    for coding, dtype in _INTEGERS.items():
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return coding, value.shape, value.astype(dtype).tobytes()
    raise UserError(f"frame: values in [{low}, {high}], 32 bits are sent; these are no spikes or states")


def _value(coding: Coding, shape: tuple[int, ...], payload: memoryview) -> np.ndarray | bytes:
    size = prod(shape)
    if coding == Coding.EVENTS:
        count = len(payload) // 4
        expected = 4 * count
    else:
        count = size
        width = {Coding.TEXT: 1, Coding.BITS: 0}.get(coding) if coding not in _INTEGERS else _INTEGERS[coding].itemsize
        expected = size * width if width else -(-size // 8)
    if len(payload) != expected or (coding == Coding.TEXT and len(shape) != 1):
        raise FrameError(f"frame: {len(payload)} bytes of {coding.name} for shape {shape}, which takes {expected}")
    if coding == Coding.TEXT:
        return bytes(payload)
    if coding == Coding.BITS:
        if size % 8 and payload[-1] & ((1 << (-size % 8)) - 1):
            raise FrameError(f"frame: bits are set behind the last spike of shape {shape}")
        return np.unpackbits(np.frombuffer(payload, np.uint8), count=size).reshape(shape)
    if coding == Coding.EVENTS:
        if 8 * len(payload) >= max(size, 1) and count:
            raise FrameError(f"frame: {count} addresses for shape {shape}, which bits hold in less")
        places = np.frombuffer(payload, "<u4").astype(np.int64)
        if count and (places[-1] >= size or (np.diff(places) <= 0).any()):
            raise FrameError(f"frame: addresses of spikes are not ascending or beyond shape {shape}")
        spikes = np.zeros(size, np.uint8)
        spikes[places] = 1
        return spikes.reshape(shape)
    return np.frombuffer(payload, _INTEGERS[coding]).reshape(shape).astype(np.int32)
