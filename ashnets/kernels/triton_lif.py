"""CUBA-LIF on graphics cards, compiled by Triton: states and their gradients stay in registers through all T steps.

A step's elements are [outer, inner] as in `ashnets.kernels.layout`, and a program works on a tile of [ROWS, COLS], so
that neighbours are read together, channels first or last. Parameters are pointers to one value, with stride 0, or to
one per channel, with stride 1. Types of states are those of the parameters.

Launch with enable_fp_fusion=False: then multiplications and additions follow the plain loop's order and rounding, and
the spikes are its spikes, each. Where WHOLE, the recursion is the chip's, as in `ashnets.kernels.recursion`.
"""

import triton
import triton.language as tl

from ashnets.kernels import recursion

UNITY_BITS = tl.constexpr(recursion.UNITY_BITS)
BELOW_UNITY = tl.constexpr((1 << recursion.UNITY_BITS) - 1)
INPUT_SHIFT = tl.constexpr(recursion.INPUT_SHIFT)
LIMIT = tl.constexpr(recursion.LIMIT)


@triton.jit
def _tile(outer, inner, channels, LAST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The tile's places within a step [ROWS, COLS], and which exist; the channels of its columns [1, COLS] where LAST,
    else of its rows [ROWS, 1], and which exist."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    inside = (rows < outer) & (cols < inner)
    if LAST:
        channel, known = cols, cols < inner
    else:
        channel, known = rows % channels, rows < outer
    return rows.to(tl.int64) * inner + cols, inside, channel, known


@triton.jit
def _load(parameter, stride, channel, known):
    return tl.load(parameter + channel * stride, mask=known, other=0)


@triton.jit
def _decayed(keep, state):
    """trunc(state keep / 4096) in parts that int32 holds."""
    size = tl.abs(state)
    size = (size >> UNITY_BITS) * keep + (((size & BELOW_UNITY) * keep) >> UNITY_BITS)
    return tl.where(state < 0, -size, size)


@triton.jit
def _next(u, v, x, keep_u, keep_v, bias, WHOLE: tl.constexpr):
    """u[t], and v[t] before its reset, from the states before and x[t]."""
    if WHOLE:
        u = _decayed(keep_u, u) + (x.to(tl.int32) << INPUT_SHIFT)
        u = tl.where(u > LIMIT, u - 2 * LIMIT, tl.where(u <= -LIMIT, u + 2 * LIMIT, u))
        v = _decayed(keep_v, v) + u + bias
        v = tl.minimum(tl.maximum(v, -LIMIT + 1), LIMIT - 1)
    else:
        u = keep_u * u + x.to(u.dtype)
        v = keep_v * v + u + bias
    return u, v


@triton.jit
def _kept(v, th):
    """v after its reset."""
    return tl.where(v <= th, v, tl.zeros_like(v))


SLOPES = {"rectangle": 0, "arctan": 1, "fast_sigmoid": 2}
"""Number of each surrogate of `ashnets.surrogate` in `_slope`."""


@triton.jit
def _slope(distance, SURROGATE: tl.constexpr):
    """See `ashnets.surrogate`."""
    if SURROGATE == 0:
        return tl.where(tl.abs(distance) < 0.5, 1.0, 0.0).to(distance.dtype)
    elif SURROGATE == 1:
        scaled = 3.141592653589793 * distance
        return 1.0 / (1.0 + scaled * scaled)
    else:
        scaled = 1.0 + 4.0 * tl.abs(distance)
        return 1.0 / (scaled * scaled)


@triton.jit
def forward(
    x, s, bits, keep_u, keep_v, v_th, bias, stride_u, stride_v, stride_th, stride_b, steps, outer, inner, channels,
    WHOLE: tl.constexpr, BITS: tl.constexpr, BYTE: tl.constexpr, LAST: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    at, inside, channel, known = _tile(outer, inner, channels, LAST, ROWS, COLS)
    size = tl.cast(outer, tl.int64) * inner
    a_u = _load(keep_u, stride_u, channel, known)
    a_v = _load(keep_v, stride_v, channel, known)
    th = _load(v_th, stride_th, channel, known)
    b = _load(bias, stride_b, channel, known)
    u = tl.zeros([ROWS, COLS], a_u.dtype)
    v = tl.zeros([ROWS, COLS], a_u.dtype)
    byte = tl.zeros([ROWS, COLS], tl.int32)
    for t in range(steps):
        xt = tl.load(x + t * size + at, mask=inside, other=0)
        u, v = _next(u, v, xt, a_u, a_v, b, WHOLE)
        fired = v > th
        tl.store(s + t * size + at, tl.where(fired, 1.0, 0.0).to(s.dtype.element_ty), mask=inside)
        if BITS:
            two = tl.where(v <= th, 0, 1) | tl.where(tl.abs(v - th) < 0.5, 2, 0)
            byte |= two << (2 * (t % BYTE))
            if (t % BYTE == BYTE - 1) | (t == steps - 1):
                tl.store(bits + (t // BYTE) * size + at, byte.to(tl.uint8), mask=inside)
                byte = tl.zeros([ROWS, COLS], tl.int32)
        v = tl.where(fired, tl.zeros_like(v), v)


@triton.jit
def _states(x, at, size, until, t, u, v, a_u, a_v, th, b, WHOLE: tl.constexpr, CHUNK: tl.constexpr):
    """CHUNK steps from t on, inputs from `until` on being 0: u and v, before its reset, of each; the states after."""
    us = ()
    vs = ()
    for i in tl.static_range(CHUNK):
        xt = tl.load(x + (t + i) * size + at, mask=t + i < until, other=0)
        u, v = _next(u, v, xt, a_u, a_v, b, WHOLE)
        us = us + (u,)
        vs = vs + (v,)
        v = tl.where(v > th, tl.zeros_like(v), v)
    return us, vs, u, v


@triton.jit
def backward(
    g, x, gx, sums, kept, keep_u, keep_v, whole_u, whole_v, v_th, bias, unit,
    stride_u, stride_v, stride_th, stride_b, steps, outer, inner, channels,
    SURROGATE: tl.constexpr, PARAMETERS: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """gx, the gradient of x, from g, that of s; where PARAMETERS, those of the parameters, summed over the tile, into
    sums: [4, programs of axis 0, inner] where LAST, else [4, programs of axis 1, outer].

    whole_u, whole_v, v_th, bias: the chip's where WHOLE, whose states `unit` takes to the real ones; else the real
    ones, and keep_u and keep_v once more. kept: [chunks, 2, outer, inner], for the
    states before each chunk; not touched where steps <= CHUNK.
    """
    at, inside, channel, known = _tile(outer, inner, channels, LAST, ROWS, COLS)
    size = tl.cast(outer, tl.int64) * inner
    w_u = _load(whole_u, stride_u, channel, known)
    w_v = _load(whole_v, stride_v, channel, known)
    th = _load(v_th, stride_th, channel, known)
    b = _load(bias, stride_b, channel, known)
    if WHOLE:
        a_u = _load(keep_u, stride_u, channel, known)
        a_v = _load(keep_v, stride_v, channel, known)
    else:
        a_u, a_v = w_u, w_v
    one = tl.load(unit)
    until = tl.where(inside, steps, 0)
    u = tl.zeros([ROWS, COLS], w_u.dtype)
    v = tl.zeros([ROWS, COLS], w_u.dtype)
    gu = tl.zeros([ROWS, COLS], a_u.dtype)
    gv = tl.zeros([ROWS, COLS], a_u.dtype)
    sum_u = tl.zeros([ROWS, COLS], a_u.dtype)
    sum_v = tl.zeros([ROWS, COLS], a_u.dtype)
    sum_th = tl.zeros([ROWS, COLS], a_u.dtype)
    sum_b = tl.zeros([ROWS, COLS], a_u.dtype)
    chunks = tl.cdiv(steps, CHUNK)
    for chunk in range(chunks - 1):
        _, _, u, v = _states(x, at, size, until, chunk * CHUNK, u, v, w_u, w_v, th, b, WHOLE, CHUNK)
        tl.store(kept + (2 * chunk + 2) * size + at, u, mask=inside)
        tl.store(kept + (2 * chunk + 3) * size + at, v, mask=inside)
    for back in range(chunks):
        chunk = chunks - 1 - back
        first = chunk * CHUNK
        u0 = tl.zeros([ROWS, COLS], w_u.dtype)
        v0 = tl.zeros([ROWS, COLS], w_u.dtype)
        if chunk > 0:
            u0 = tl.load(kept + 2 * chunk * size + at, mask=inside, other=0)
            v0 = tl.load(kept + (2 * chunk + 1) * size + at, mask=inside, other=0)
        us, vs, _, _ = _states(x, at, size, until, first, u0, v0, w_u, w_v, th, b, WHOLE, CHUNK)
        for i in tl.static_range(CHUNK - 1, -1, -1):
            there = first + i < until
            gt = tl.load(g + (first + i) * size + at, mask=there, other=0).to(gu.dtype)
            distance = vs[i] - th
            if WHOLE:
                distance = distance.to(gu.dtype) * one
            slope = gt * _slope(distance, SURROGATE)
            gv = slope + a_v * tl.where(vs[i] <= th, gv, tl.zeros_like(gv))
            gu = gv + a_u * gu
            tl.store(gx + (first + i) * size + at, gu.to(gx.dtype.element_ty), mask=there)
            if PARAMETERS:
                v1 = _kept(vs[i - 1], th) if i > 0 else v0
                if WHOLE:
                    u1 = (us[i - 1] if i > 0 else u0).to(gu.dtype) * one
                    v1 = v1.to(gu.dtype) * one
                elif i == 0:
                    u1 = u0
                else:  # not held: v[t-1] is keep_v v[t-2] + u[t-1] + b
                    u1 = vs[i - 1] - a_v * (_kept(vs[i - 2], th) if i > 1 else v0) - b
                sum_u += gu * u1
                sum_v += gv * v1
                sum_th -= slope
                sum_b += gv
    if PARAMETERS:
        if LAST:
            cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
            place, exists, row = tl.program_id(0) * inner + cols, cols < inner, tl.num_programs(0) * inner
        else:
            rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
            place, exists, row = tl.program_id(1) * outer + rows, rows < outer, tl.num_programs(1) * outer
        tl.store(sums + place, tl.sum(sum_u, 0 if LAST else 1), mask=exists)
        tl.store(sums + row + place, tl.sum(sum_v, 0 if LAST else 1), mask=exists)
        tl.store(sums + 2 * row + place, tl.sum(sum_th, 0 if LAST else 1), mask=exists)
        tl.store(sums + 3 * row + place, tl.sum(sum_b, 0 if LAST else 1), mask=exists)


@triton.jit
def backward_of_bits(
    g, bits, gx, keep_u, keep_v, stride_u, stride_v, steps, outer, inner, channels,
    BYTE: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """gx from g and the bits of `forward`, for the rectangle."""
    at, inside, channel, known = _tile(outer, inner, channels, LAST, ROWS, COLS)
    size = tl.cast(outer, tl.int64) * inner
    a_u = _load(keep_u, stride_u, channel, known)
    a_v = _load(keep_v, stride_v, channel, known)
    gu = tl.zeros([ROWS, COLS], a_u.dtype)
    gv = tl.zeros([ROWS, COLS], a_u.dtype)
    byte = tl.zeros([ROWS, COLS], tl.int32)
    for back in range(steps):
        t = steps - 1 - back
        if (back == 0) | (t % BYTE == BYTE - 1):
            byte = tl.load(bits + (t // BYTE) * size + at, mask=inside, other=0).to(tl.int32)
        two = byte >> (2 * (t % BYTE))
        gt = tl.load(g + t * size + at, mask=inside, other=0).to(gu.dtype)
        gv = tl.where((two & 2) != 0, gt, 0.0) + a_v * tl.where((two & 1) == 0, gv, 0.0)
        gu = gv + a_u * gu
        tl.store(gx + t * size + at, gu.to(gx.dtype.element_ty), mask=inside)
