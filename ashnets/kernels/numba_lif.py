"""CUBA-LIF on processors, compiled by numba: tiles of columns that stay in the cache.

x, s and their gradients are [T, M], M the elements of one step in the order in which they lie in memory. A column runs
through all T steps by itself, so that x is read once and s written once. The backward pass computes v anew from x,
tile by tile, and keeps nothing of the forward pass but x; or it reads two bits per element that the forward pass wrote,
which the rectangle needs, and not even x.

A parameter is a number for all columns, or an array of one value per channel: column j is of channel (j // run) %
channels, run being 1 where channels lie side by side and H W where each has its own plane.

Multiplications and additions are not contracted and follow the plain loop's order: the spikes are its spikes, each.
Where the parameters are int32, so are the states: the chip's recursion, as `hw.simulate.reference` has it, to the bit.
All that is compiled stands in this file, since numba keeps what it made of a file until that file changes; but for
`on_team`, which hands out shares: `each` columns, the last one less.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import overload

from ashnets.kernels.threads import on_team

TILE = 2048
"""Columns. A pass over them takes four steps, so that states are loaded and stored once for all four."""
PITCH = TILE + 80
"""Elements from row to row of what a tile's passes share: no power of two, or all rows would want the same lines of a
cache. Rows lie in one array, and the index is unsigned, so that the compiler knows that they do not overlap."""
R1, R2, R3, R4, R5 = (np.uint64(row * PITCH) for row in range(1, 6))
STEPS_PER_BYTE = 4
"""Steps whose two bits share a byte: whether v was above the threshold, and whether the rectangle's slope is 1."""
UNITY_BITS, INPUT_SHIFT, LIMIT = 12, 6, 1 << 23
"""The chip's: decays are in 1 / 2**12, inputs are shifted by 6, states have 24 bits. As in `hw.loihi`."""
_inline = numba.njit(inline="always")


class Rectangle(NamedTuple):
    """Surrogates are types, so that each has a loop of its own."""


class Arctan(NamedTuple):
    pass


class FastSigmoid(NamedTuple):
    pass


SLOPES = {"rectangle": Rectangle(), "arctan": Arctan(), "fast_sigmoid": FastSigmoid()}
"""The surrogates of `ashnets.surrogate`."""


def _at(parameter: Any, k: int) -> Any:
    """parameter[k], or the number itself."""


@overload(_at, inline="always")
def _at_(parameter, k):
    if isinstance(parameter, types.Array):
        return lambda parameter, k: parameter[k]
    return lambda parameter, k: parameter


@_inline
def _neighbours(column, most, run, channels):
    """The channel of a column, and how many columns from it on, at most `most`, are of this channel; or, where channels
    lie side by side, of it and those that follow without a gap."""
    channel = column // run % channels
    return channel, min(channels - channel if run == 1 else run - column % run, most)


def _spread(parameter: Any, row: np.ndarray, start: int, run: int) -> Any:
    """The parameter of each column from `start`, in `row`; or the number itself."""


@overload(_spread)
def _spread_(parameter, row, start, run):
    if not isinstance(parameter, types.Array):
        return lambda parameter, row, start, run: parameter

    def spread(parameter, row, start, run):
        k, n = 0, row.shape[0]
        while k < n:
            channel, count = _neighbours(start + k, n - k, run, parameter.shape[0])
            if run == 1:
                _copy(row[k : k + count], parameter[channel : channel + count])
            else:
                row[k : k + count] = parameter[channel]
            k += count
        return row

    return spread


def _collect(sums: np.ndarray, row: np.ndarray, parameter: Any, start: int, run: int) -> None:
    """sums[channel] += row; for a number, sums[0] += row."""


@overload(_collect)
def _collect_(sums, row, parameter, start, run):
    if not isinstance(parameter, types.Array):

        def collect(sums, row, parameter, start, run):
            sums[0] += _sum(row)

        return collect

    def collect(sums, row, parameter, start, run):
        k, n = 0, row.shape[0]
        while k < n:
            channel, count = _neighbours(start + k, n - k, run, parameter.shape[0])
            if run == 1:
                _add(sums[channel : channel + count], row[k : k + count])
            else:
                sums[channel] += _sum(row[k : k + count])
            k += count

    return collect


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


def _states_array(count: int, width: int, parameter: Any) -> Any:
    """An array [count, width] of the type of the parameter, which is that of the states."""


@overload(_states_array)
def _states_array_(count, width, parameter):
    real = parameter.dtype if isinstance(parameter, types.Array) else parameter
    return lambda count, width, parameter: np.empty((count, width), real)


@numba.njit
def _decayed(keep, state):
    """trunc(state keep / 4096), |state| < 2**31, in parts that int32 holds."""
    size = np.int32(abs(state))
    low = np.int32(size & np.int32((1 << UNITY_BITS) - 1))
    size = np.int32(np.int32(np.int32(size >> np.int32(UNITY_BITS)) * keep) + np.int32(low * keep >> UNITY_BITS))
    return size if state >= 0 else np.int32(-size)


@numba.njit
def _whole_u(keep_u, u, x):
    u = np.int32(_decayed(keep_u, u) + np.int32(np.int32(x) << np.int32(INPUT_SHIFT)))
    if u > LIMIT:
        return np.int32(u - 2 * LIMIT)
    return np.int32(u + 2 * LIMIT) if u <= -LIMIT else u


@numba.njit
def _whole_v(keep_v, v, u, bias):
    v = np.int32(np.int32(_decayed(keep_v, v) + u) + bias)
    return np.int32(min(max(v, np.int32(-LIMIT + 1)), np.int32(LIMIT - 1)))


def _next_u(keep_u: Any, u: Any, x: Any) -> Any:
    """u[t] from u[t-1] and x[t]."""


@overload(_next_u, inline="always")
def _next_u_(keep_u, u, x):
    if isinstance(u, types.Integer):
        return lambda keep_u, u, x: _whole_u(keep_u, u, x)
    return lambda keep_u, u, x: keep_u * u + x


def _next_v(keep_v: Any, v: Any, u: Any, bias: Any) -> Any:
    """v[t] from v[t-1] and u[t]."""


@overload(_next_v, inline="always")
def _next_v_(keep_v, v, u, bias):
    if isinstance(u, types.Integer):
        return lambda keep_v, v, u, bias: _whole_v(keep_v, v, u, bias)
    return lambda keep_v, v, u, bias: keep_v * v + u + bias


@_inline
def _step(u, v, x, a_u, a_v, th, b, zero):
    """u[t], v[t] before its reset, and v[t]."""
    u = _next_u(a_u, u, x)
    above = _next_v(a_v, v, u, b)
    return u, above, zero if above > th else above


@_inline
def _two(above, th, half):
    """The bits of one step."""
    return np.int32(np.int32(0 if above <= th else 1) | np.int32(2 if abs(above - th) < half else 0))


@_inline
def _rows(a, t, own, beyond):
    """Four steps of the columns `own` from t on; rows of `beyond` [3, TILE] for those that a does not
    have."""
    n, steps = own.stop - own.start, a.shape[0]
    a1 = a[t + 1, own] if t + 1 < steps else beyond[0, :n]
    a2 = a[t + 2, own] if t + 2 < steps else beyond[1, :n]
    a3 = a[t + 3, own] if t + 3 < steps else beyond[2, :n]
    return a[t, own], a1, a2, a3


@numba.njit(nogil=True, error_model="numpy")
def _turned_row(row, to, start, inner, channels, run):
    """Columns from `start` of a step whose memory has `row`'s other order of channels and their `inner` elements."""
    if run == 1:  # columns lie channels last, row channels first
        for channel in range(channels):
            pixel = (start - channel + channels - 1) // channels
            end = (start + len(to) - channel + channels - 1) // channels
            while pixel < end:
                outer = pixel // inner
                count = min((outer + 1) * inner, end) - pixel
                source, target = (
                    row[pixel + (outer * (channels - 1) + channel) * inner :],
                    to[pixel * channels + channel - start :],
                )
                for k in range(count):
                    target[k * channels] = source[k]
                pixel += count
        return
    column = start
    while column < start + len(to):
        plane = column // inner
        count = min((plane + 1) * inner, start + len(to)) - column
        pixel = plane // channels * inner + column % inner
        source, target = row[pixel * channels + plane % channels :], to[column - start :]
        for k in range(count):
            target[k] = source[k * channels]
        column += count


@_inline
def _gradient_rows(g, t, own, beyond, turned, inner, channels, run):
    """`_rows` of g; by way of `turned` [4, TILE] where g has the other layout, and `inner` is not 0."""
    if inner == 0:
        return _rows(g, t, own, beyond)
    n = own.stop - own.start
    for k in range(4):
        if t + k < g.shape[0]:
            _turned_row(g[t + k], turned[k, :n], own.start, inner, channels, run)
        else:
            turned[k, :n] = 0
    return turned[0, :n], turned[1, :n], turned[2, :n], turned[3, :n]


# Each pass is a function of its own, not inlined: pointers that come as arguments are told apart by fewer checks at run
# time, and with too many of them the compiler gives up.
_pass = numba.njit(nogil=True, error_model="numpy")


@_pass
def _forward_pass(xs, ss, byte, state, a_u, a_v, ths, bs, zero):
    x0, x1, x2, x3 = xs
    s0, s1, s2, s3 = ss
    on, off, half = s0.dtype.type(1), s0.dtype.type(0), s0.dtype.type(0.5)
    for k in range(np.uint64(len(x0))):
        au, av, th, b = _at(a_u, k), _at(a_v, k), _at(ths, k), _at(bs, k)
        u, v0, v = _step(state[k], state[R1 + k], x0[k], au, av, th, b, zero)
        u, v1, v = _step(u, v, x1[k], au, av, th, b, zero)
        u, v2, v = _step(u, v, x2[k], au, av, th, b, zero)
        state[k], v3, state[R1 + k] = _step(u, v, x3[k], au, av, th, b, zero)
        s0[k] = on if v0 > th else off
        s1[k] = on if v1 > th else off
        s2[k] = on if v2 > th else off
        s3[k] = on if v3 > th else off
        if byte is not None:
            low, high = _two(v0, th, half) | (_two(v1, th, half) << 2), _two(v2, th, half) | (_two(v3, th, half) << 2)
            byte[k] = np.uint8(low | (high << 4))


@_pass
def _share_of(share, each, columns):
    """The first column of a share, and the one behind its last."""
    return share * each, min((share + 1) * each, columns)


@_pass
def _forward_share(share, each, x, s, bits, keep_u, keep_v, v_th, bias, run):
    """x -> s, both [T, M], and bits, uint8 [ceil(T / 4), M], if it is not None."""
    first, last = _share_of(share, each, x.shape[1])
    steps = x.shape[0]
    scratch, state = _states_array(4, TILE, keep_u), _states_array(2, PITCH, keep_u).ravel()
    nothing, spare = np.zeros((3, TILE), x.dtype), np.empty((3, TILE), s.dtype)
    zero = state.dtype.type(0)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        own = slice(start, start + n)
        a_u, a_v = _spread(keep_u, scratch[0, :n], start, run), _spread(keep_v, scratch[1, :n], start, run)
        ths, bs = _spread(v_th, scratch[2, :n], start, run), _spread(bias, scratch[3, :n], start, run)
        state[:] = zero
        for t in range(0, steps, 4):
            xs, ss = _rows(x, t, own, nothing), _rows(s, t, own, spare)
            if bits is None:
                _forward_pass(xs, ss, None, state, a_u, a_v, ths, bs, zero)
            else:
                _forward_pass(xs, ss, bits[t // 4, own], state, a_u, a_v, ths, bs, zero)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def forward(team, threads, shares, *given):
    """`_forward_share` of all shares. Returns how many failed."""
    return on_team(team, threads, shares, _forward_share, given)


def _slope(surrogate: Any, g: Any, distance: Any) -> Any:
    """g times the surrogate's slope, see `ashnets.surrogate`."""


@overload(_slope)
def _slope_(surrogate, g, distance):
    zero, half, one, pi, four = (distance.cast_python_value(value) for value in (0, 0.5, 1, np.pi, 4))
    if surrogate.instance_class is Rectangle:
        return lambda surrogate, g, distance: g if abs(distance) < half else zero
    if surrogate.instance_class is Arctan:
        return lambda surrogate, g, distance: g / (one + (pi * distance) * (pi * distance))
    return lambda surrogate, g, distance: g / ((one + four * abs(distance)) * (one + four * abs(distance)))


@_pass
def _states_pass(xs, v, state, a_u, a_v, ths, bs, zero):
    """v of four steps, before its resets -> v[2 PITCH:]."""
    x0, x1, x2, x3 = xs
    for k in range(np.uint64(len(x0))):
        au, av, th, b = _at(a_u, k), _at(a_v, k), _at(ths, k), _at(bs, k)
        u, v[R2 + k], w = _step(state[k], state[R1 + k], x0[k], au, av, th, b, zero)
        u, v[R3 + k], w = _step(u, w, x1[k], au, av, th, b, zero)
        u, v[R4 + k], w = _step(u, w, x2[k], au, av, th, b, zero)
        state[k], v[R5 + k], state[R1 + k] = _step(u, w, x3[k], au, av, th, b, zero)


@_inline
def _whole_states(x, us, vs, whole, rows, unit, start, run, n):
    """v[t] of the chip's recursion, before its reset, -> vs[(t + 2) PITCH:], u[t] -> us[(t + 1) PITCH:], in units of
    the real neuron."""
    zero = np.int32(0)
    a_u, a_v = _spread(whole[0], rows[2, :n], start, run), _spread(whole[1], rows[3, :n], start, run)
    th, b = _spread(whole[2], rows[4, :n], start, run), _spread(whole[3], rows[5, :n], start, run)
    u, v = rows[0, :n], rows[1, :n]
    u[:] = zero
    v[:] = zero
    for t in range(x.shape[0]):
        xt, ut, vt = x[t, start : start + n], us[(t + 1) * PITCH :], vs[(t + 2) * PITCH :]
        for k in range(n):
            uk = _next_u(_at(a_u, k), u[k], xt[k])
            vk = _next_v(_at(a_v, k), v[k], uk, _at(b, k))
            u[k] = uk
            v[k] = zero if vk > _at(th, k) else vk
            ut[k] = uk * unit
            vt[k] = vk * unit


@_inline
def _reset(v, th, zero):
    return v if v <= th else zero


@_inline
def _back(surrogate, g, v, gu, gv, a_u, a_v, th, zero):
    """Gradients of u[t] and of v[t], before its reset, from those of s[t] and of u and v a step later; and the part of
    v[t]'s that came through s[t]."""
    through = _slope(surrogate, g, v - th)
    gv = through + a_v * (gv if v <= th else zero)
    return gv + a_u * gu, gv, through


@_pass
def _backward_pass(surrogate, gs, gxs, v, u, state, a_u, a_v, ths, bs, had, whole, sums):
    """Four steps back. v: that of the two steps before them, and theirs; u: that of the step before them, and theirs.
    state: gradients of u and v, and the four sums of the parameters' gradients. had: is there a bias in v[R1:]?"""
    g0, g1, g2, g3 = gs
    x0, x1, x2, x3 = gxs
    zero = g0.dtype.type(0)
    for k in range(np.uint64(len(g0))):
        au, av, th, b = _at(a_u, k), _at(a_v, k), _at(ths, k), _at(bs, k)
        v2, v3, v4, v5 = v[R2 + k], v[R3 + k], v[R4 + k], v[R5 + k]
        gu3, gv3, d3 = _back(surrogate, g3[k], v5, state[k], state[R1 + k], au, av, th, zero)
        gu2, gv2, d2 = _back(surrogate, g2[k], v4, gu3, gv3, au, av, th, zero)
        gu1, gv1, d1 = _back(surrogate, g1[k], v3, gu2, gv2, au, av, th, zero)
        gu0, gv0, d0 = _back(surrogate, g0[k], v2, gu1, gv1, au, av, th, zero)
        x0[k], x1[k], x2[k], x3[k] = gu0, gu1, gu2, gu3
        state[k], state[R1 + k] = gu0, gv0
        if sums is not None:
            v0, v1 = v[k], v[R1 + k]
            r0, r1, r2 = _reset(v0, th, zero), _reset(v1, th, zero), _reset(v2, th, zero)
            r3, r4 = _reset(v3, th, zero), _reset(v4, th, zero)
            if whole is None:
                u0, u1, u2, u3 = v1 - av * r0 - had * b, v2 - av * r1 - b, v3 - av * r2 - b, v4 - av * r3 - b
            else:
                u0, u1, u2, u3 = u[k], u[R1 + k], u[R2 + k], u[R3 + k]
            state[R2 + k] += (gu0 * u0 + gu1 * u1) + (gu2 * u2 + gu3 * u3)
            state[R3 + k] += (gv0 * r1 + gv1 * r2) + (gv2 * r3 + gv3 * r4)
            state[R4 + k] -= (d0 + d1) + (d2 + d3)
            state[R5 + k] += (gv0 + gv1) + (gv2 + gv3)


@_pass
def _backward_share(
    share, each, g, inner, channels, x, gx, keep_u, keep_v, v_th, bias, whole, unit, run, surrogate, sums, part
):
    """gx, the gradient of x, from g, that of s; all [T, M]. Those of keep_u, keep_v, v_th and bias are added to
    sums [parts, 4, channels], a part being `part` columns, of which a share has whole ones, if it is not None.

    whole: the chip's parameters, int32, whose recursion made s, of which one of u or v is `unit` in the unit of the
    real parameters; or None. Then gx is the gradient of the real neuron's input.
    inner: 0, or elements of each of the `channels` in a step of g, which then lies the other way round than x and gx.
    Real u[t-1], which keep_u's gradient needs, is not kept: it is v[t-1] - keep_v v[t-2] - b.
    """
    first, last = _share_of(share, each, x.shape[1])
    zero, one, real = x.dtype.type(0), x.dtype.type(1), x.dtype
    steps = x.shape[0]
    fours = 4 * ((steps + 3) // 4)
    vs, us = np.empty((fours + 2) * PITCH, real), np.empty(0 if whole is None else (fours + 1) * PITCH, real)
    state = np.empty((2 if sums is None else 6) * PITCH, real)
    scratch, rows = np.empty((4, TILE), real), np.empty((6, TILE), np.int32)
    nothing, spare, turned = np.zeros((3, TILE), real), np.empty((3, TILE), real), np.empty((4, TILE), real)
    vs[: 2 * PITCH if whole is None else len(vs)] = zero
    us[:] = zero
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        own = slice(start, start + n)
        a_u, a_v = _spread(keep_u, scratch[0, :n], start, run), _spread(keep_v, scratch[1, :n], start, run)
        ths, bs = _spread(v_th, scratch[2, :n], start, run), _spread(bias, scratch[3, :n], start, run)
        if whole is None:
            state[: 2 * PITCH] = zero
            for t in range(0, steps, 4):
                _states_pass(_rows(x, t, own, nothing), vs[t * PITCH :], state, a_u, a_v, ths, bs, zero)
        else:
            _whole_states(x, us, vs, whole, rows, unit, start, run, n)
        state[:] = zero
        for t in range(fours - 4, -1, -4):
            gs = _gradient_rows(g, t, own, nothing, turned, inner, channels, run)
            gxs, v, u = _rows(gx, t, own, spare), vs[t * PITCH :], us[t * PITCH :]
            had = one if t else zero  # before the first step there is no bias in v
            _backward_pass(surrogate, gs, gxs, v, u, state, a_u, a_v, ths, bs, had, whole, sums)
        if sums is not None:
            to = sums[start // part]
            _collect(to[0], state[2 * PITCH : 2 * PITCH + n], keep_u, start, run)
            _collect(to[1], state[3 * PITCH : 3 * PITCH + n], keep_v, start, run)
            _collect(to[2], state[4 * PITCH : 4 * PITCH + n], v_th, start, run)
            _collect(to[3], state[5 * PITCH : 5 * PITCH + n], bias, start, run)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def backward(team, threads, shares, *given):
    """`_backward_share` of all shares. Returns how many failed."""
    return on_team(team, threads, shares, _backward_share, given)


@_inline
def _back_of_bits(g, bits, gu, gv, a_u, a_v, zero):
    """As `_back`, of the rectangle; of `bits`, step t's are the lowest."""
    bits = np.int32(bits)
    through = g if bits & np.int32(2) != np.int32(0) else zero
    gv = through + a_v * (gv if bits & np.int32(1) == np.int32(0) else zero)
    return gv + a_u * gu, gv


@_pass
def _backward_pass_of_bits(gs, gxs, byte, state, a_u, a_v):
    g0, g1, g2, g3 = gs
    x0, x1, x2, x3 = gxs
    zero = g0.dtype.type(0)
    for k in range(np.uint64(len(g0))):
        au, av, eight = _at(a_u, k), _at(a_v, k), np.int32(byte[k])
        gu3, gv3 = _back_of_bits(g3[k], eight >> np.int32(6), state[k], state[R1 + k], au, av, zero)
        gu2, gv2 = _back_of_bits(g2[k], eight >> np.int32(4), gu3, gv3, au, av, zero)
        gu1, gv1 = _back_of_bits(g1[k], eight >> np.int32(2), gu2, gv2, au, av, zero)
        gu0, gv0 = _back_of_bits(g0[k], eight, gu1, gv1, au, av, zero)
        x0[k], x1[k], x2[k], x3[k] = gu0, gu1, gu2, gu3
        state[k], state[R1 + k] = gu0, gv0


@_pass
def _backward_share_of_bits(share, each, g, inner, channels, bits, gx, keep_u, keep_v, run):
    """gx from g, which lies as in `_backward_share`, and the bits of `forward`, for the rectangle."""
    first, last = _share_of(share, each, gx.shape[1])
    real = g.dtype
    scratch, state = np.empty((2, TILE), real), np.empty(2 * PITCH, real)
    nothing, spare, turned = np.zeros((3, TILE), real), np.empty((3, TILE), real), np.empty((4, TILE), real)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        own = slice(start, start + n)
        a_u, a_v = _spread(keep_u, scratch[0, :n], start, run), _spread(keep_v, scratch[1, :n], start, run)
        state[:] = 0
        for t in range((g.shape[0] - 1) // 4 * 4, -1, -4):
            gs = _gradient_rows(g, t, own, nothing, turned, inner, channels, run)
            gxs = _rows(gx, t, own, spare)
            _backward_pass_of_bits(gs, gxs, bits[t // 4, own], state, a_u, a_v)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def backward_of_bits(team, threads, shares, *given):
    """`_backward_share_of_bits` of all shares. Returns how many failed."""
    return on_team(team, threads, shares, _backward_share_of_bits, given)
