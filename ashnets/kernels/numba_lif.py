"""CUBA-LIF on processors, compiled by numba: tiles of columns that stay in the cache.

x, s and their gradients are [T, M], M the elements of one step in the order in which they lie in memory. A column runs
through all T steps by itself, so that x is read once and s written once. The backward pass computes v anew from x,
tile by tile, and keeps nothing of the forward pass but x; or it reads two bits per element that the forward pass wrote,
which the rectangle needs, and not even x.

A parameter is a number for all columns, or an array of one value per channel: column j is of channel (j // run) %
channels, run being 1 where channels lie side by side and H W where each has its own plane.

Multiplications and additions are not contracted and follow the plain loop's order: the spikes are its spikes, each.
Where the parameters are int32, so are the states: the chip's recursion, as `hw.simulate.reference` has it, to the bit.
All that is compiled stands in this file, since numba keeps what it made of a file until that file changes.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

TILE = 2048  # columns; a pass over them takes four steps, so that states are loaded and stored once for all four
STEPS_PER_WORD = 16
"""Steps whose two bits share 32: whether v was above the threshold, and whether the rectangle's slope there is one."""
UNITY_BITS, INPUT_SHIFT, LIMIT = 12, 6, 1 << 23
"""The chip's: decays are in 1 / 2**12, inputs are shifted by 6, states have 24 bits. As in `hw.loihi`."""
_inline = numba.njit(inline="always")
SLOPES = {"rectangle": 0, "arctan": 1, "fast_sigmoid": 2}
"""Number of each surrogate of `ashnets.surrogate` in `_slopes`."""


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
                row[k : k + count] = parameter[channel : channel + count]
            else:
                row[k : k + count] = parameter[channel]
            k += count
        return row

    return spread


def _collect(sums: np.ndarray, row: np.ndarray, parameter: Any, start: int, run: int) -> None:
    """sums[channel] += row, which is set to zero; for a number, sums[0] += row."""


@overload(_collect)
def _collect_(sums, row, parameter, start, run):
    if not isinstance(parameter, types.Array):

        def collect(sums, row, parameter, start, run):
            sums[0] += _sum(row)
            row[:] = 0

        return collect

    def collect(sums, row, parameter, start, run):
        k, n = 0, row.shape[0]
        while k < n:
            channel, count = _neighbours(start + k, n - k, run, parameter.shape[0])
            if run == 1:
                for i in range(count):
                    sums[channel + i] += row[k + i]
            else:
                sums[channel] += _sum(row[k : k + count])
            k += count
        row[:] = 0

    return collect


@numba.njit(fastmath={"reassoc"}, nogil=True)
def _sum(row):
    total = row.dtype.type(0)
    for value in row:
        total += value
    return total


def _tiles(count: int, parameter: Any) -> Any:
    """Zeros [count, TILE] of the type of the parameter, which is that of the states."""


@overload(_tiles)
def _tiles_(count, parameter):
    real = parameter.dtype if isinstance(parameter, types.Array) else parameter
    return lambda count, parameter: np.zeros((count, TILE), real)


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


@numba.njit(cache=True, nogil=True, error_model="numpy")
def forward(x, s, bits, keep_u, keep_v, v_th, bias, run, first, last):
    """Columns first..last of x -> s, both [T, M], and of bits, int32 [ceil(T / 16), M], if it is not None."""
    one, zero, half = s.dtype.type(1), s.dtype.type(0), s.dtype.type(0.5)
    steps = x.shape[0]
    scratch = _tiles(6, keep_u)
    none = scratch.dtype.type(0)
    words = np.zeros(TILE, np.int32)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        own = slice(start, start + n)
        a_u, a_v = _spread(keep_u, scratch[2, :n], start, run), _spread(keep_v, scratch[3, :n], start, run)
        v_ths, biases = _spread(v_th, scratch[4, :n], start, run), _spread(bias, scratch[5, :n], start, run)
        us, vs, word = scratch[0, :n], scratch[1, :n], words[:n]
        us[:] = 0
        vs[:] = 0
        t = 0
        while t < steps:
            place = np.int32(2 * (t % STEPS_PER_WORD))
            if t + 4 <= steps:
                x0, x1, x2, x3 = x[t, own], x[t + 1, own], x[t + 2, own], x[t + 3, own]
                s0, s1, s2, s3 = s[t, own], s[t + 1, own], s[t + 2, own], s[t + 3, own]
                for k in range(n):
                    au, av, th, b = _at(a_u, k), _at(a_v, k), _at(v_ths, k), _at(biases, k)
                    u, w0, v = _step(us[k], vs[k], x0[k], au, av, th, b, none)
                    u, w1, v = _step(u, v, x1[k], au, av, th, b, none)
                    u, w2, v = _step(u, v, x2[k], au, av, th, b, none)
                    u, w3, v = _step(u, v, x3[k], au, av, th, b, none)
                    s0[k] = one if w0 > th else zero
                    s1[k] = one if w1 > th else zero
                    s2[k] = one if w2 > th else zero
                    s3[k] = one if w3 > th else zero
                    us[k], vs[k] = u, v
                    if bits is not None:
                        eight = _two(w0, th, half) | (_two(w1, th, half) << 2)
                        eight |= (_two(w2, th, half) << 4) | (_two(w3, th, half) << 6)
                        word[k] |= np.int32(np.int32(eight) << place)
                t += 4
            else:
                x0, s0 = x[t, own], s[t, own]
                for k in range(n):
                    th = _at(v_ths, k)
                    u, w0, v = _step(us[k], vs[k], x0[k], _at(a_u, k), _at(a_v, k), th, _at(biases, k), none)
                    s0[k] = one if w0 > th else zero
                    us[k], vs[k] = u, v
                    if bits is not None:
                        word[k] |= np.int32(_two(w0, th, half) << place)
                t += 1
            if bits is not None and (t % STEPS_PER_WORD == 0 or t == steps):
                bits[(t - 1) // STEPS_PER_WORD, own] = word
                word[:] = 0


@_inline
def _slopes(surrogate, g, v, th, out):
    """out = g times the surrogate of v - th, see `ashnets.surrogate`."""
    real = v.dtype.type
    one, zero, half, pi, four = real(1), real(0), real(0.5), real(np.pi), real(4)
    if surrogate == 0:
        for k in range(out.shape[0]):
            gk = g[k]
            out[k] = gk if abs(v[k] - _at(th, k)) < half else zero
    elif surrogate == 1:
        for k in range(out.shape[0]):
            distance = pi * (v[k] - _at(th, k))
            out[k] = g[k] / (one + distance * distance)
    else:
        for k in range(out.shape[0]):
            distance = one + four * abs(v[k] - _at(th, k))
            out[k] = g[k] / (distance * distance)


@_inline
def _states(x, vs, u, a_u, a_v, th, b, start):
    """v[t], before its reset, of the columns from `start` -> vs[t + 2]; vs[:2] are zero."""
    zero = x.dtype.type(0)
    n = u.shape[0]
    u[:] = zero
    for t in range(x.shape[0]):
        xt, before, now = x[t, start : start + n], vs[t + 1, :n], vs[t + 2, :n]
        for k in range(n):
            vk = before[k]
            vk = zero if vk > _at(th, k) else vk
            uk = _next_u(_at(a_u, k), u[k], xt[k])
            u[k] = uk
            now[k] = _next_v(_at(a_v, k), vk, uk, _at(b, k))


@_inline
def _whole_states(x, us, vs, whole, rows, unit, start, run, n):
    """As `_states`, of the chip's recursion, in units of the real neuron; and u[t] -> us[t + 1], us[0] being zero."""
    zero = np.int32(0)
    a_u, a_v = _spread(whole[0], rows[2, :n], start, run), _spread(whole[1], rows[3, :n], start, run)
    th, b = _spread(whole[2], rows[4, :n], start, run), _spread(whole[3], rows[5, :n], start, run)
    u, v = rows[0, :n], rows[1, :n]
    u[:] = zero
    v[:] = zero
    for t in range(x.shape[0]):
        xt, ut, vt = x[t, start : start + n], us[t + 1, :n], vs[t + 2, :n]
        for k in range(n):
            uk = _next_u(_at(a_u, k), u[k], xt[k])
            vk = _next_v(_at(a_v, k), v[k], uk, _at(b, k))
            u[k] = uk
            v[k] = zero if vk > _at(th, k) else vk
            ut[k] = uk * unit
            vt[k] = vk * unit


@numba.njit(cache=True, nogil=True, error_model="numpy")
def backward(g, x, gx, keep_u, keep_v, v_th, bias, whole, unit, run, surrogate, first, last, sums):
    """Columns first..last of gx, the gradient of x, from g, that of s; all [T, M]. Those of keep_u, keep_v, v_th and
    bias are added to sums [4, channels], if it is not None.

    whole: the chip's parameters, int32, whose recursion made s, of which one of u or v is `unit` in the unit of the
    real parameters; or None. Then gx is the gradient of the real neuron's input.
    Real u[t-1], which keep_u's gradient needs, is not kept: it is v[t-1] - keep_v v[t-2] - b.
    """
    one, zero = x.dtype.type(1), x.dtype.type(0)
    steps = x.shape[0]
    vs = np.zeros((steps + 2, TILE), x.dtype)
    us = np.zeros((1 if whole is None else steps + 1, TILE), x.dtype)
    rows = np.zeros((6, TILE), np.int32)
    scratch = np.zeros((11, TILE), x.dtype)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        a_u, a_v = _spread(keep_u, scratch[3, :n], start, run), _spread(keep_v, scratch[4, :n], start, run)
        th, b = _spread(v_th, scratch[5, :n], start, run), _spread(bias, scratch[6, :n], start, run)
        if whole is None:
            _states(x, vs, scratch[0, :n], a_u, a_v, th, b, start)
        else:
            _whole_states(x, us, vs, whole, rows, unit, start, run, n)
        gu, gv, slope = scratch[0, :n], scratch[1, :n], scratch[2, :n]
        sum_u, sum_v, sum_th, sum_b = scratch[7, :n], scratch[8, :n], scratch[9, :n], scratch[10, :n]
        gu[:] = zero
        gv[:] = zero
        for t in range(steps - 1, -1, -1):
            gxt, now, before, earlier = gx[t, start : start + n], vs[t + 2, :n], vs[t + 1, :n], vs[t, :n]
            _slopes(surrogate, g[t, start : start + n], now, th, slope)
            had = one if t else zero  # before the first step there is no bias in v
            for k in range(n):
                through = gv[k]
                through = through if now[k] <= _at(th, k) else zero
                gvk = slope[k] + _at(a_v, k) * through
                guk = gvk + _at(a_u, k) * gu[k]
                gv[k] = gvk
                gu[k] = guk
                gxt[k] = guk
                if sums is not None:
                    v1, v2 = before[k], earlier[k]
                    v2 = v2 if v2 <= _at(th, k) else zero
                    u1 = v1 - _at(a_v, k) * v2 - had * _at(b, k) if whole is None else us[t, k]
                    v1 = v1 if v1 <= _at(th, k) else zero
                    sum_u[k] += guk * u1
                    sum_v[k] += gvk * v1
                    sum_th[k] -= slope[k]
                    sum_b[k] += gvk
        if sums is not None:
            _collect(sums[0], sum_u, keep_u, start, run)
            _collect(sums[1], sum_v, keep_v, start, run)
            _collect(sums[2], sum_th, v_th, start, run)
            _collect(sums[3], sum_b, bias, start, run)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def backward_of_bits(g, bits, gx, keep_u, keep_v, run, first, last):
    """Columns first..last of gx from g and the bits of `forward`, for the rectangle."""
    zero = g.dtype.type(0)
    scratch = np.zeros((4, TILE), g.dtype)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        a_u, a_v = _spread(keep_u, scratch[2, :n], start, run), _spread(keep_v, scratch[3, :n], start, run)
        gu, gv = scratch[0, :n], scratch[1, :n]
        gu[:] = zero
        gv[:] = zero
        for t in range(g.shape[0] - 1, -1, -1):
            gt, gxt = g[t, start : start + n], gx[t, start : start + n]
            word = bits[t // STEPS_PER_WORD, start : start + n]
            above = np.int32(1 << 2 * (t % STEPS_PER_WORD))
            near = np.int32(above << 1)
            for k in range(n):
                through, slope = gv[k], gt[k]
                through = through if word[k] & above == 0 else zero
                slope = slope if word[k] & near != 0 else zero
                gvk = slope + _at(a_v, k) * through
                guk = gvk + _at(a_u, k) * gu[k]
                gv[k] = gvk
                gu[k] = guk
                gxt[k] = guk
