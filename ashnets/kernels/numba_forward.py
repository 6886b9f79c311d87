"""Spikes of CUBA-LIF, and two bits of each step that the backward pass of the rectangle needs."""

import numpy as np

from ashnets.kernels.columns import (
    BITS,
    NEAR,
    PITCH,
    R1,
    READ,
    ROW0,
    ROW1,
    ROW2,
    ROW3,
    STATES,
    TILE,
    ahead_of,
    at,
    compiled,
    fetch_rows,
    put_rows,
    rows_near,
    rows_of,
    scratch,
    share_of,
    spread_all,
)
from ashnets.kernels.lines import address, load, store
from ashnets.kernels.recursion import step, two_bits


@compiled
def _forward_pass(x, s, bits, near, state, a_u, a_v, ths, bs, t, steps, columns, start, n, past, ahead):
    like = off = near.dtype.type(0)
    on, half, zero = near.dtype.type(1), near.dtype.type(0.5), state.dtype.type(0)
    four, sixteen, sixty_four = near.dtype.type(4), near.dtype.type(16), near.dtype.type(64)
    x0, x1, x2, x3 = o0, o1, o2, o3 = rows_of(t, steps, columns, start)
    rows, byte = min(4, steps - t), t // 4 * columns + start
    by_way = past or rows < 4
    out, chunk = (address(near), NEAR) if by_way else (s, n)
    for q in range(0, n, chunk):
        m = min(chunk, n - q)
        if past:
            fetch_rows(x, ahead + q, columns, m, like)
        if by_way:
            o0, o1, o2, o3 = rows_near(q)
        for k in range(q, q + m):
            au, av, th, b = at(a_u, k), at(a_v, k), at(ths, k), at(bs, k)
            u, v = load(state, k, STATES, zero), load(state, R1 + k, STATES, zero)
            u, v0, v = step(u, v, load(x, x0 + k, READ, like), au, av, th, b, zero)
            u, v1, v = step(u, v, load(x, x1 + k, READ, like), au, av, th, b, zero)
            u, v2, v = step(u, v, load(x, x2 + k, READ, like), au, av, th, b, zero)
            u, v3, v = step(u, v, load(x, x3 + k, READ, like), au, av, th, b, zero)
            store(state, k, STATES, u)
            store(state, R1 + k, STATES, v)
            store(out, o0 + k, ROW0, on if v0 > th else off)
            store(out, o1 + k, ROW1, on if v1 > th else off)
            store(out, o2 + k, ROW2, on if v2 > th else off)
            store(out, o3 + k, ROW3, on if v3 > th else off)
            if bits is not None:
                low = two_bits(v0, th, half, on, off) + two_bits(v1, th, half, four, off)
                high = two_bits(v2, th, half, sixteen, off) + two_bits(v3, th, half, sixty_four, off)
                store(bits, byte + k, BITS, np.uint8(np.int32(low + high)))
        if by_way:
            put_rows(address(near), s, x0 + q, columns, rows, m, past, like)


@compiled
def forward_share(share, each, x, s, bits, steps, columns, past, like, zero, keep_u, keep_v, v_th, bias, run):
    """x -> s, both [T, M] of `like`'s type, and bits, uint8 [ceil(T / 4), M], if it is not None. zero: of the states'
    type. past: is s written past the caches? Then its rows are made of whole lines."""
    first, last = share_of(share, each, columns)
    near, spare, state = scratch(4 * NEAR, like), scratch(4 * PITCH, zero), scratch(2 * PITCH, zero)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        a_u, a_v, ths, bs = spread_all(keep_u, keep_v, v_th, bias, spare, n, start, run)
        state[:] = zero
        for t in range(0, steps, 4):
            ahead = ahead_of(t, steps, columns, start)
            _forward_pass(x, s, bits, near, state, a_u, a_v, ths, bs, t, steps, columns, start, n, past, ahead)
