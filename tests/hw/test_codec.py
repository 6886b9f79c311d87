"""Frames: what was encoded comes back, and nothing else gets in."""

import json
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hw import UserError
from hw.bridge.codec import HEADER, HEADER_BYTES, MAX_VALUES, Coding, Flags, FrameError, Kind, Message, decode
from hw.bridge.messages import open_message, program_from, result_from, result_message, run_from, run_message
from hw.simulate import open_backend
from hw.validate import validate
from tests.hw.peers import program

SHAPES = hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=5)
ARRAYS = st.one_of(
    hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 1)),
    hnp.arrays(np.int64, SHAPES, elements=st.integers(-(2**31), 2**31 - 1)),
)
VALUES = st.lists(st.one_of(ARRAYS, st.binary(max_size=20)), max_size=4)


@given(st.sampled_from(Kind), VALUES, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 31))
def test_a_message_comes_back_as_it_was(kind, values, session, sequence, flags):
    message = Message(kind=kind, values=tuple(values), session=session, sequence=sequence, flags=flags)
    again = decode(message.encode())
    assert (again.kind, again.session, again.sequence, again.flags) == (kind, session, sequence, flags)
    if len(values) == 1 and isinstance(values[0], bytes) and not values[0]:
        values = []
    assert len(again.values) == len(values)
    for found, value in zip(again.values, values, strict=True):
        assert isinstance(found, bytes) == isinstance(value, bytes)
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(
    ("value", "coding", "size"),
    [
        (np.eye(100, dtype=np.uint8), Coding.EVENTS, 400),  # 1% of 10,000
        (np.ones((100, 100), np.uint8), Coding.BITS, 1250),
        (np.zeros((100, 100), np.uint8), Coding.EVENTS, 0),
        (np.full(10, -128), Coding.INT8, 10),
        (np.full(10, 128), Coding.INT16, 20),
        (np.full(10, 2**31 - 1), Coding.INT32, 40),
    ],
)
def test_the_shortest_coding_is_chosen(value, coding, size):
    (frame,) = Message(kind=Kind.RUN, values=(value,)).encode()
    assert frame[6] == coding
    assert len(frame) == HEADER_BYTES + size


def forged(frame: bytes, offset: int, code: str, value: int) -> bytes:
    """The frame with one header field changed and a checksum that fits."""
    head = bytearray(frame[: HEADER.size])
    struct.pack_into(code, head, offset, value)
    payload = frame[HEADER_BYTES:]
    return bytes(head) + struct.pack("<I", zlib.crc32(payload, zlib.crc32(bytes(head)))) + payload


@pytest.mark.parametrize(
    ("offset", "code", "value", "match"),
    [
        (0, "<B", 0, "starts with"),
        (4, "<B", 2, "version 2"),
        (5, "<B", 99, "kind 99"),
        (6, "<B", 9, "coding 9"),
        (7, "<B", 7, "rank 7"),
        (7, "<B", 1, "rank 1 with dimensions"),
        (8, "<I", 32, "flags 32"),
        (12, "<I", 1, "frame 1 of 1 as 0 of 1"),
        (20, "<I", 5, r"1 bytes of BITS for shape \(5, 2\), which takes 2"),
        (20, "<I", 2**31, "at most"),
        (60, "<Q", 2**40, "at most"),
    ],
)
def test_a_forged_header_is_refused_before_memory_is_taken(offset, code, value, match):
    (frame,) = Message(kind=Kind.RUN, values=(np.ones((3, 2), np.uint8),)).encode()
    with pytest.raises(FrameError, match=match):
        decode([forged(frame, offset, code, value)])


@pytest.mark.parametrize(
    ("payload", "coding", "match"),
    [
        (struct.pack("<2I", 3, 3), Coding.EVENTS, "not ascending"),
        (struct.pack("<2I", 4, 3), Coding.EVENTS, "not ascending"),
        (struct.pack("<I", 1000), Coding.EVENTS, "beyond shape"),
        (struct.pack("<40I", *range(40)), Coding.EVENTS, "which bits hold in less"),
        (b"\1" * 125, Coding.BITS, "set behind the last spike"),
        (b"\1" * 999, Coding.INT8, "which takes 1001"),
        (b"\1" * 1001, Coding.TEXT, None),
    ],
)
def test_a_payload_that_is_not_what_the_header_says_is_refused(payload, coding, match):
    size = 999 if coding == Coding.BITS else 1000 if coding == Coding.EVENTS else 1001
    head = HEADER.pack(b"ASHB", 1, Kind.RUN, coding, 1, 0, 0, 1, size, 0, 0, 0, 0, 0, 0, 0, len(payload))
    frame = head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload
    if match is None:
        assert decode([frame]).values == (payload,)
    else:
        with pytest.raises(FrameError, match=match):
            decode([frame])


def test_what_a_message_claims_is_bounded_in_sum_before_memory_is_taken(monkeypatch):
    """An array of zeros takes no bytes on the wire and may claim any size."""
    monkeypatch.setattr("hw.bridge.codec._value", lambda *_: pytest.fail("memory was taken"))
    half = np.broadcast_to(np.uint8(0), MAX_VALUES // 2)
    one, two, three = (
        forged(frame, 20, "<I", MAX_VALUES // 2)
        for frame in Message(kind=Kind.OPEN, values=(np.zeros(1, np.uint8),) * 3).encode()
    )
    assert len(one) < 80
    with pytest.raises(FrameError, match=f"{3 * half.size} values in one message, at most {MAX_VALUES} are taken"):
        decode([one, two, three])
    with pytest.raises(UserError, match=f"{3 * half.size} values in all, at most {MAX_VALUES} .* smaller batches"):
        Message(kind=Kind.RUN, values=(half,) * 3).encode()


def test_memory_that_is_not_there_is_a_damaged_message_and_no_crash(monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hw.bridge.codec._value", full)
    with pytest.raises(FrameError, match="no memory for a message of 6 values"):
        decode(Message(kind=Kind.RUN, values=(np.ones((3, 2), np.uint8),)).encode())


def test_integers_are_widened_only_where_the_program_asks_for_them():
    """64 bits each are taken for a layer's arrays, not for what a message holds beside them, nor for other shapes."""
    made = open_message(program(), 7)
    text = json.loads(bytes(made.values[0]))
    extra = np.zeros(1 << 24, np.uint8)
    content = json.dumps(text | {"names": [*text["names"], "more"]}).encode()
    with peak_below(8 * extra.size):
        program_from(replace(made, values=(content, *made.values[1:], extra)))
    spikes = np.zeros((4, 1, 9), np.uint8)
    run = Message(kind=Kind.RUN, flags=Flags.STREAM, values=(spikes, *[extra] * 4))
    with peak_below(8 * extra.size), pytest.raises(FrameError, match="'fc' has a state of other shapes than 1 streams"):
        run_from(run, program())


@contextmanager
def peak_below(limit: int) -> Iterator[None]:
    """Bytes that Python and numpy take inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_frames_of_different_messages_are_not_one_message():
    one, two = (Message(kind=Kind.RUN, sequence=k, values=(b"a", b"b")).encode() for k in (1, 2))
    assert decode([one[0], one[1]]).values == (b"a", b"b")
    for mixed in ([one[0], two[1]], [one[1], one[0]], [one[0]], [*one, two[0]], []):
        with pytest.raises(FrameError):
            decode(mixed)


@pytest.mark.parametrize("value", [np.array([2**31]), np.array([-(2**31) - 1]), np.zeros((1,) * 7, np.uint8)])
def test_what_does_not_fit_a_frame_is_not_sent(value):
    with pytest.raises(UserError, match="frame"):
        Message(kind=Kind.RUN, values=(value,)).encode()


def mutated(frame: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, or a piece cut, doubled or put in; half of the time with a checksum that fits."""
    data = bytearray(frame)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(data) + 1))
        match rng.integers(0, 4):
            case 0 if at < len(data):
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case _:
                data[at:] = data[at // 2 :]
        if not data:
            break
    if len(data) >= HEADER_BYTES and rng.random() < 0.5:
        payload = bytes(data[HEADER_BYTES:])
        struct.pack_into("<Q", data, 60, len(payload))
        struct.pack_into("<I", data, HEADER.size, zlib.crc32(payload, zlib.crc32(bytes(data[: HEADER.size]))))
    return bytes(data)


def conversation() -> list[Message]:
    """One message of each kind that holds arrays, of a real run."""
    spikes = np.random.default_rng(0).integers(0, 2, (4, 3, 9), dtype=np.uint8)
    result = open_backend("reference", program()).run(spikes, layers=True, states=True, state={})
    run = run_message(spikes, result.state, layers=True, states=True, session=7, sequence=3)
    text = Message(kind=Kind.ERROR, session=7, sequence=3, values=(b"text", np.arange(40), np.eye(50, dtype=np.uint8)))
    return [open_message(program(), 7), run, result_message(result, run), text]


def take(message: Message) -> None:
    """What its receiver does with it."""
    if message.kind == Kind.OPEN:
        validate(program_from(message))
    elif message.kind == Kind.RUN:
        open_backend("reference", program()).run(*run_from(message, program())[:1], state={})
    elif message.kind == Kind.RESULT:
        result_from(message, program(), 4, 3)


def fuzz(count: int) -> None:
    rng = np.random.default_rng(0)
    sources = conversation()
    refused = whole = 0
    for i in range(count):
        source = sources[i % len(sources)]
        if isinstance(text := source.values[0], bytes) and rng.random() < 0.5:  # whole frames around another text
            source = replace(source, values=(mutated(text, rng), *source.values[1:]))
            frames = source.encode()
        else:
            frames = source.encode()
            at = int(rng.integers(0, len(frames)))
            frames[at] = mutated(frames[at], rng)
        try:
            message = decode(frames)
            again = decode(message.encode())  # what passes for ours must survive a round trip
            assert all(np.array_equal(a, b) for a, b in zip(again.values, message.values, strict=True))
            take(message)
        except UserError as error:
            refused += "\n" not in str(error)
        else:
            whole += 1
    assert refused + whole == count
    assert refused > whole > 0.1 * count


def test_mutated_frames_are_refused_or_whole():
    fuzz(500)


@pytest.mark.slow
def test_many_mutated_frames_are_refused_or_whole():
    fuzz(10_000)
