"""CUBA-LIF on processors, compiled by numba: tiles of columns that stay in the cache, spread over threads.

x, s and their gradients are [T, M], M the elements of one step in the order in which they lie in memory. A column runs
through all T steps by itself, so that x is read once and s written once. The backward pass computes v anew from x,
tile by tile, and keeps nothing of the forward pass but x.

A parameter is a number for all columns, or an array of one value per channel: column j is of channel (j // run) %
channels, run being 1 where channels lie side by side and H W where each has its own plane.

Multiplications and additions are not contracted and follow the plain loop's order: the spikes are its spikes, each.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

TILE = 2048  # columns
_GROUPS = 32  # parts that threads share; fixed, so that sums do not depend on the number of threads
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


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _forward(x, s, keep_u, keep_v, v_th, bias, run, first, last):
    """Columns first..last of x -> s, both [T, M]."""
    one, zero = x.dtype.type(1), x.dtype.type(0)
    scratch = np.empty((6, TILE), x.dtype)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        a_u, a_v = _spread(keep_u, scratch[2, :n], start, run), _spread(keep_v, scratch[3, :n], start, run)
        th, b = _spread(v_th, scratch[4, :n], start, run), _spread(bias, scratch[5, :n], start, run)
        u, v = scratch[0, :n], scratch[1, :n]
        u[:] = zero
        v[:] = zero
        for t in range(x.shape[0]):
            xt, st = x[t, start : start + n], s[t, start : start + n]
            for k in range(n):
                uk = _at(a_u, k) * u[k] + xt[k]
                vk = _at(a_v, k) * v[k] + uk + _at(b, k)
                fired = vk > _at(th, k)
                st[k] = one if fired else zero
                u[k] = uk
                v[k] = zero if fired else vk


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
            uk = _at(a_u, k) * u[k] + xt[k]
            u[k] = uk
            now[k] = _at(a_v, k) * vk + uk + _at(b, k)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _backward(g, x, gx, keep_u, keep_v, v_th, bias, run, surrogate, first, last, sums):
    """Columns first..last of gx, the gradient of x, from g, that of s; all [T, M]. Those of keep_u, keep_v, v_th and
    bias are added to sums [4, channels], if it is not None.

    u[t-1], which keep_u's gradient needs, is not kept: it is v[t-1] - keep_v v[t-2] - b.
    """
    one, zero = x.dtype.type(1), x.dtype.type(0)
    steps = x.shape[0]
    vs = np.zeros((steps + 2, TILE), x.dtype)
    scratch = np.zeros((11, TILE), x.dtype)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        a_u, a_v = _spread(keep_u, scratch[3, :n], start, run), _spread(keep_v, scratch[4, :n], start, run)
        th, b = _spread(v_th, scratch[5, :n], start, run), _spread(bias, scratch[6, :n], start, run)
        _states(x, vs, scratch[0, :n], a_u, a_v, th, b, start)
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
                    u1 = v1 - _at(a_v, k) * v2 - had * _at(b, k)
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


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked process has the object, and none of its threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def _on_threads(job: Callable[[int], None], parts: int, threads: int) -> None:
    """job(0) ... job(parts - 1), spread over threads."""
    global _pool
    threads = min(threads, parts)
    if threads <= 1:
        for part in range(parts):
            job(part)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="cuba-lif")

    def share(thread: int) -> None:
        for part in range(thread, parts, threads):
            job(part)

    others = [_pool.submit(share, thread) for thread in range(1, threads)]
    share(0)
    for other in others:
        other.result()


def _parts(columns: int) -> tuple[int, int]:
    """How many parts, and the columns of each: whole tiles."""
    tiles = -(-columns // TILE)
    each = max(1, -(-tiles // _GROUPS))
    return -(-tiles // each), each * TILE


def forward(x: np.ndarray, s: np.ndarray, params: Sequence[Any], run: int, threads: int) -> None:
    """x [T, M] -> s [T, M]. params: keep_u, keep_v, v_th, bias, each a number or an array [channels], of x's type."""
    parts, each = _parts(x.shape[1])
    keep_u, keep_v, v_th, bias = params

    def job(part: int) -> None:
        _forward(x, s, keep_u, keep_v, v_th, bias, run, part * each, min((part + 1) * each, x.shape[1]))

    _on_threads(job, parts, threads)


def backward(
    g: np.ndarray,
    x: np.ndarray,
    gx: np.ndarray,
    params: Sequence[Any],
    run: int,
    surrogate: str,
    threads: int,
    sums: np.ndarray,
) -> None:
    """g, the gradient of s -> gx, that of x; all [T, M]. Into sums, float64 [4, channels], go those of keep_u, keep_v,
    v_th and bias, a number's in the first column; without columns none is computed."""
    parts, each = _parts(x.shape[1])
    own = np.zeros((parts, *sums.shape)) if sums.size else None
    code = SLOPES[surrogate]
    keep_u, keep_v, v_th, bias = params

    def job(part: int) -> None:
        to = None if own is None else own[part]
        last = min((part + 1) * each, x.shape[1])
        _backward(g, x, gx, keep_u, keep_v, v_th, bias, run, code, part * each, last, to)

    _on_threads(job, parts, threads)
    if own is not None:
        own.sum(0, out=sums)
