"""Tiles of columns, for the kernels that numba compiles: their parameters, and their rows in memory.

x, s and their gradients are [T, M], M the elements of one step in the order in which they lie in memory; a column is
one of them. A tile's columns run through all T steps before the next tile's do.

A parameter is a number for all columns, or an array of one value per channel: column j is of channel (j // run) %
channels, run being 1 where channels lie side by side and H W where each has its own plane.

A pass takes four steps of a tile, and is a function of its own, in which no reference is counted. Four steps that are
not all there, or are written past the caches, go by way of `near`, NEAR columns at a time. `ahead` is where the columns
of the next four steps begin.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from ashnets.kernels.lines import LINE, address, fetch, load, per_line, store, write_line

TILE = 2048
"""Columns. A pass over them takes four steps, so that states are loaded and stored once for all four."""
PITCH = TILE + 80
"""Elements from row to row of what a tile's passes share: no power of two, or all rows would want the same lines of a
cache; and whole lines."""
R1, R2, R3, R4, R5 = (row * PITCH for row in range(1, 6))
NEAR = 128
"""Columns whose rows are fetched, worked on and written past the caches in turn, so that memory and arithmetic do not
wait for each other: with 256, or with whole tiles, they do."""
READ, STATES, BITS, ROW0, ROW1, ROW2, ROW3 = range(7)
"""Places of `ashnets.kernels.lines`: what a pass only reads; the states that it leads on; what it writes."""

inlined = numba.njit(inline="always")
compiled = numba.njit(nogil=True, error_model="numpy")


def at(parameter: Any, k: int) -> Any:
    """parameter[k], or the number itself."""


@overload(at, inline="always")
def _at_(parameter, k):
    if isinstance(parameter, types.Array):
        return lambda parameter, k: load(parameter, k, READ, parameter.dtype.type(0))
    return lambda parameter, k: parameter


@inlined
def _neighbours(column, most, run, channels):
    """The channel of a column, and how many columns from it on, at most `most`, are of this channel; or, where channels
    lie side by side, of it and those that follow without a gap."""
    channel = column // run % channels
    return channel, min(channels - channel if run == 1 else run - column % run, most)


def spread(parameter: Any, row: np.ndarray, start: int, run: int) -> Any:
    """The parameter of each column from `start`, in `row`; or the number itself."""


@overload(spread)
def _spread_(parameter, row, start, run):
    if not isinstance(parameter, types.Array):
        return lambda parameter, row, start, run: parameter

    def spread_values(parameter, row, start, run):
        k, n = 0, row.shape[0]
        while k < n:
            channel, count = _neighbours(start + k, n - k, run, parameter.shape[0])
            if run == 1:
                _copy(row[k : k + count], parameter[channel : channel + count])
            else:
                row[k : k + count] = parameter[channel]
            k += count
        return row

    return spread_values


@inlined
def spread_all(keep_u, keep_v, v_th, bias, rows, n, start, run):
    """All four, in rows of PITCH."""
    return (
        spread(keep_u, rows[:n], start, run),
        spread(keep_v, rows[R1 : R1 + n], start, run),
        spread(v_th, rows[R2 : R2 + n], start, run),
        spread(bias, rows[R3 : R3 + n], start, run),
    )


def collect(sums: np.ndarray, row: np.ndarray, parameter: Any, start: int, run: int) -> None:
    """sums[channel] += row; for a number, sums[0] += row."""


@overload(collect)
def _collect_(sums, row, parameter, start, run):
    if not isinstance(parameter, types.Array):

        def collect_row(sums, row, parameter, start, run):
            sums[0] += _sum(row)

        return collect_row

    def collect_row(sums, row, parameter, start, run):
        k, n = 0, row.shape[0]
        while k < n:
            channel, count = _neighbours(start + k, n - k, run, parameter.shape[0])
            if run == 1:
                _add(sums[channel : channel + count], row[k : k + count])
            else:
                sums[channel] += _sum(row[k : k + count])
            k += count

    return collect_row


@numba.njit(fastmath={"reassoc"}, nogil=True)
def _sum(row):
    total = row.dtype.type(0)
    for k in range(len(row)):  # by index: numba's iterator is not vectorized
        total += row[k]
    return total


@numba.njit(nogil=True)
def _copy(to, row):
    for k in range(len(row)):
        to[k] = row[k]


@numba.njit(nogil=True)
def _add(to, row):
    for k in range(len(row)):
        to[k] += row[k]


def scratch(count: int, like: Any) -> Any:
    """An array of so many elements that begins with a line of the cache."""


@overload(scratch)
def _scratch_(count, like):
    real, size = like, like.bitwidth // 8

    def empty(count, like):
        a = np.empty(count + per_line(like), real)
        skip = -address(a) % LINE // size
        return a[skip : skip + count]

    return empty


@inlined
def rows_of(t, steps, columns, start):
    """Where the columns from `start` of four steps from t on begin; the last step's, where there is none."""
    last = steps - 1
    first, second, third = min(t + 1, last), min(t + 2, last), min(t + 3, last)
    return t * columns + start, first * columns + start, second * columns + start, third * columns + start


@inlined
def rows_near(q):
    """Where column 0 of each row of `near` would be, when it begins with column q."""
    return -q, NEAR - q, 2 * NEAR - q, 3 * NEAR - q


@inlined
def ahead_of(t, steps, columns, start):
    """Where the columns of the four steps behind those from t on begin, or of the next tile's first ones."""
    return (t + 4) * columns + start if t + 4 < steps else start + TILE


@inlined
def ahead_back(t, steps, columns, start):
    """As `ahead_of`, of steps that are gone through from the last to the first."""
    return (t - 4) * columns + start if t else (steps - 1) // 4 * 4 * columns + start + TILE


@compiled
def fetch_rows(source, first, pitch, count, like):
    """The next four rows' columns that are at work in these."""
    for row in range(4):
        for k in range(0, count, per_line(like)):
            fetch(source, first + row * pitch + k, like)


@compiled
def put_rows(near, to, first, pitch, rows, count, past, like):
    """Rows of `near`, NEAR apart, to others, `pitch` apart."""
    for row in range(rows):
        here, there = row * NEAR, first + row * pitch
        if past:
            for k in range(0, count, per_line(like)):
                write_line(to, there + k, near, here + k, like)
        else:
            for k in range(count):
                store(to, there + k, ROW0, load(near, here + k, READ, like))


@compiled
def turned_row(row, to, count, start, inner, channels, run, like):
    """The `count` columns from `start` of a step whose memory has `row`'s other order of channels and their `inner`
    elements."""
    if run == 1:  # columns lie channels last, row channels first
        for channel in range(channels):
            pixel = (start - channel + channels - 1) // channels
            end = (start + count - channel + channels - 1) // channels
            while pixel < end:
                outer = pixel // inner
                few = min((outer + 1) * inner, end) - pixel
                source, target = pixel + (outer * (channels - 1) + channel) * inner, pixel * channels + channel - start
                for k in range(few):
                    store(to, target + k * channels, ROW0, load(row, source + k, READ, like))
                pixel += few
        return
    column = start
    while column < start + count:
        plane = column // inner
        few = min((plane + 1) * inner, start + count) - column
        pixel = plane // channels * inner + column % inner
        source, target = pixel * channels + plane % channels, column - start
        for k in range(few):
            store(to, target + k, ROW0, load(row, source + k * channels, READ, like))
        column += few


@compiled
def share_of(share, each, columns):
    """The first column of a share, and the one behind its last."""
    return share * each, min((share + 1) * each, columns)
