"""Gradients of CUBA-LIF: v is computed anew from x, tile by tile, or two bits of each step are read, and not even x."""

import numpy as np

from ashnets.kernels.columns import (
    NEAR,
    PITCH,
    R1,
    R2,
    R3,
    R4,
    R5,
    READ,
    ROW0,
    ROW1,
    ROW2,
    ROW3,
    STATES,
    TILE,
    ahead_back,
    ahead_of,
    at,
    collect,
    compiled,
    fetch_rows,
    inlined,
    put_rows,
    rows_near,
    rows_of,
    scratch,
    share_of,
    spread,
    spread_all,
    turned_row,
)
from ashnets.kernels.lines import LINE, address, load, per_line, store
from ashnets.kernels.recursion import after_reset, back, back_of_bits, next_u, next_v, step


@compiled
def _states_pass(x, vs, state, a_u, a_v, ths, bs, t, steps, columns, start, n, past, ahead):
    """v of four steps, before its resets -> vs[(t + 2) PITCH:]."""
    zero = state.dtype.type(0)
    x0, x1, x2, x3 = rows_of(t, steps, columns, start)
    v0, v1, v2, v3 = (t + 2) * PITCH, (t + 3) * PITCH, (t + 4) * PITCH, (t + 5) * PITCH
    chunk = NEAR if past else n
    for q in range(0, n, chunk):
        m = min(chunk, n - q)
        if past:
            fetch_rows(x, ahead + q, columns, m, zero)
        for k in range(q, q + m):
            au, av, th, b = at(a_u, k), at(a_v, k), at(ths, k), at(bs, k)
            u, v = load(state, k, STATES, zero), load(state, R1 + k, STATES, zero)
            u, above, v = step(u, v, load(x, x0 + k, READ, zero), au, av, th, b, zero)
            store(vs, v0 + k, ROW0, above)
            u, above, v = step(u, v, load(x, x1 + k, READ, zero), au, av, th, b, zero)
            store(vs, v1 + k, ROW1, above)
            u, above, v = step(u, v, load(x, x2 + k, READ, zero), au, av, th, b, zero)
            store(vs, v2 + k, ROW2, above)
            u, above, v = step(u, v, load(x, x3 + k, READ, zero), au, av, th, b, zero)
            store(vs, v3 + k, ROW3, above)
            store(state, k, STATES, u)
            store(state, R1 + k, STATES, v)


@compiled
def _whole_states(x, us, vs, whole, rows, unit, start, run, n, steps, columns):
    """v[t] of the chip's recursion, before its reset, -> vs[(t + 2) PITCH:], u[t] -> us[(t + 1) PITCH:], in units of
    the real neuron."""
    zero, like = np.int32(0), vs.dtype.type(0)
    a_u, a_v, ths, bs = spread_all(whole[0], whole[1], whole[2], whole[3], rows, n, start, run)
    rows[R4 : R4 + n] = zero
    rows[R5 : R5 + n] = zero
    for t in range(steps):
        row, to_u, to_v = t * columns + start, (t + 1) * PITCH, (t + 2) * PITCH
        for k in range(n):
            u = next_u(at(a_u, k), load(rows, R4 + k, STATES, zero), load(x, row + k, READ, like))
            v = next_v(at(a_v, k), load(rows, R5 + k, STATES, zero), u, at(bs, k))
            store(rows, R4 + k, STATES, u)
            store(rows, R5 + k, STATES, zero if v > at(ths, k) else v)
            store(us, to_u + k, ROW0, vs.dtype.type(u * unit))
            store(vs, to_v + k, ROW1, vs.dtype.type(v * unit))


@compiled
def _backward_pass(
    surrogate,
    g,
    gx,
    near,
    v,
    u,
    state,
    a_u,
    a_v,
    ths,
    bs,
    whole,
    sums,
    t,
    steps,
    columns,
    start,
    n,
    g_rows,
    past,
    ahead,
):
    """Four steps back. v[t PITCH:] are those of the two steps before them, and theirs; u[t PITCH:] that of the step
    before them, and theirs. state: gradients of u and v, and the four sums of the parameters' gradients."""
    like = zero = state.dtype.type(0)
    o0, o1, o2, o3 = rows_of(t, steps, columns, start)
    g0, g1, g2, g3 = g_rows
    first, rows, row = o0, min(4, steps - t), t * PITCH
    had = state.dtype.type(1 if t else 0)  # before the first step there is no bias in v
    by_way = past or rows < 4
    out, chunk = (address(near), NEAR) if by_way else (gx, n)
    for q in range(0, n, chunk):
        m = min(chunk, n - q)
        if past:
            fetch_rows(g, ahead + q, columns, m, like)
        if by_way:
            o0, o1, o2, o3 = rows_near(q)
        for k in range(q, q + m):
            au, av, th, b, p = at(a_u, k), at(a_v, k), at(ths, k), at(bs, k), row + k
            v2, v3 = load(v, R2 + p, READ, like), load(v, R3 + p, READ, like)
            v4, v5 = load(v, R4 + p, READ, like), load(v, R5 + p, READ, like)
            gu, gv = load(state, k, STATES, like), load(state, R1 + k, STATES, like)
            gu3, gv3, d3 = back(surrogate, load(g, g3 + k, READ, like), v5, gu, gv, au, av, th, zero)
            gu2, gv2, d2 = back(surrogate, load(g, g2 + k, READ, like), v4, gu3, gv3, au, av, th, zero)
            gu1, gv1, d1 = back(surrogate, load(g, g1 + k, READ, like), v3, gu2, gv2, au, av, th, zero)
            gu0, gv0, d0 = back(surrogate, load(g, g0 + k, READ, like), v2, gu1, gv1, au, av, th, zero)
            store(out, o0 + k, ROW0, gu0)
            store(out, o1 + k, ROW1, gu1)
            store(out, o2 + k, ROW2, gu2)
            store(out, o3 + k, ROW3, gu3)
            store(state, k, STATES, gu0)
            store(state, R1 + k, STATES, gv0)
            if sums is not None:
                v0, v1 = load(v, p, READ, like), load(v, R1 + p, READ, like)
                r0, r1, r2 = after_reset(v0, th, zero), after_reset(v1, th, zero), after_reset(v2, th, zero)
                r3, r4 = after_reset(v3, th, zero), after_reset(v4, th, zero)
                if whole is None:
                    u0, u1, u2, u3 = v1 - av * r0 - had * b, v2 - av * r1 - b, v3 - av * r2 - b, v4 - av * r3 - b
                else:
                    u0, u1 = load(u, p, READ, like), load(u, R1 + p, READ, like)
                    u2, u3 = load(u, R2 + p, READ, like), load(u, R3 + p, READ, like)
                _add_to(state, R2 + k, (gu0 * u0 + gu1 * u1) + (gu2 * u2 + gu3 * u3))
                _add_to(state, R3 + k, (gv0 * r1 + gv1 * r2) + (gv2 * r3 + gv3 * r4))
                _add_to(state, R4 + k, -((d0 + d1) + (d2 + d3)))
                _add_to(state, R5 + k, (gv0 + gv1) + (gv2 + gv3))
        if by_way:
            put_rows(address(near), gx, first + q, columns, rows, m, past, like)


@inlined
def _add_to(state, k, more):
    store(state, k, STATES, load(state, k, STATES, more) + more)


@compiled
def _gradient_rows(g, turned, t, steps, columns, start, n, inner, channels, run, like):
    """Where to find four steps of g: (from what address on, where each begins). Those that have the other layout, where
    `inner` is not 0, or are not all there, are put into `turned`, in rows of PITCH; zeros where there are none."""
    if inner == 0 and t + 4 <= steps:
        return g, rows_of(t, steps, columns, start)
    size = LINE // per_line(like)
    for row in range(4):
        to, source = address(turned) + row * PITCH * size, (t + row) * columns
        if t + row >= steps:
            turned[row * PITCH : row * PITCH + n] = 0
        elif inner:
            turned_row(g + source * size, to, n, start, inner, channels, run, like)
        else:
            put_rows(g + (source + start) * size, to, 0, 0, 1, n, False, like)
    return address(turned), (0, R1, R2, R3)


@compiled
def backward_share(
    share,
    each,
    g,
    inner,
    channels,
    x,
    gx,
    steps,
    columns,
    past,
    like,
    keep_u,
    keep_v,
    v_th,
    bias,
    whole,
    unit,
    run,
    surrogate,
    sums,
    part,
):
    """gx, the gradient of x, from g, that of s; all [T, M]. Those of keep_u, keep_v, v_th and bias are added to
    sums [parts, 4, channels], a part being `part` columns, of which a share has whole ones, if it is not None.

    whole: the chip's parameters, int32, whose recursion made s, of which one of u or v is `unit` in the unit of the
    real parameters; or None. Then gx is the gradient of the real neuron's input.
    inner: 0, or elements of each of the `channels` in a step of g, which then lies the other way round than x and gx.
    Real u[t-1], which keep_u's gradient needs, is not kept: it is v[t-1] - keep_v v[t-2] - b.
    """
    first, last = share_of(share, each, columns)
    fours = (steps + 3) // 4 * 4
    vs, us = scratch((fours + 2) * PITCH, like), scratch(0 if whole is None else (fours + 1) * PITCH, like)
    state, spare = scratch((2 if sums is None else 6) * PITCH, like), scratch(4 * PITCH, like)
    near, turned, rows = scratch(4 * NEAR, like), scratch(4 * PITCH, like), scratch(6 * PITCH, np.int32(0))
    vs[: 2 * PITCH if whole is None else len(vs)] = 0
    us[:] = 0
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        a_u, a_v, ths, bs = spread_all(keep_u, keep_v, v_th, bias, spare, n, start, run)
        if whole is None:
            state[: 2 * PITCH] = 0
            for t in range(0, steps, 4):
                ahead = ahead_of(t, steps, columns, start)
                _states_pass(x, vs, state, a_u, a_v, ths, bs, t, steps, columns, start, n, past, ahead)
        else:
            _whole_states(x, us, vs, whole, rows, unit, start, run, n, steps, columns)
        state[:] = 0
        for t in range(fours - 4, -1, -4):
            ahead = ahead_back(t, steps, columns, start)
            source, g_rows = _gradient_rows(g, turned, t, steps, columns, start, n, inner, channels, run, like)
            _backward_pass(
                surrogate,
                source,
                gx,
                near,
                vs,
                us,
                state,
                a_u,
                a_v,
                ths,
                bs,
                whole,
                sums,
                t,
                steps,
                columns,
                start,
                n,
                g_rows,
                past,
                ahead,
            )
        if sums is not None:
            to = sums[start // part]
            collect(to[0], state[R2 : R2 + n], keep_u, start, run)
            collect(to[1], state[R3 : R3 + n], keep_v, start, run)
            collect(to[2], state[R4 : R4 + n], v_th, start, run)
            collect(to[3], state[R5 : R5 + n], bias, start, run)


@compiled
def _backward_pass_of_bits(g, gx, bits, near, state, a_u, a_v, t, steps, columns, start, n, g_rows, past, ahead):
    like = zero = state.dtype.type(0)
    o0, o1, o2, o3 = rows_of(t, steps, columns, start)
    g0, g1, g2, g3 = g_rows
    first, rows, byte = o0, min(4, steps - t), t // 4 * columns + start
    by_way = past or rows < 4
    out, chunk = (address(near), NEAR) if by_way else (gx, n)
    for q in range(0, n, chunk):
        m = min(chunk, n - q)
        if past:
            fetch_rows(g, ahead + q, columns, m, like)
        if by_way:
            o0, o1, o2, o3 = rows_near(q)
        for k in range(q, q + m):
            au, av, eight = at(a_u, k), at(a_v, k), np.int32(load(bits, byte + k, READ, np.uint8(0)))
            gu, gv = load(state, k, STATES, like), load(state, R1 + k, STATES, like)
            gu, gv = back_of_bits(load(g, g3 + k, READ, like), eight, 3, gu, gv, au, av, zero)
            store(out, o3 + k, ROW3, gu)
            gu, gv = back_of_bits(load(g, g2 + k, READ, like), eight, 2, gu, gv, au, av, zero)
            store(out, o2 + k, ROW2, gu)
            gu, gv = back_of_bits(load(g, g1 + k, READ, like), eight, 1, gu, gv, au, av, zero)
            store(out, o1 + k, ROW1, gu)
            gu, gv = back_of_bits(load(g, g0 + k, READ, like), eight, 0, gu, gv, au, av, zero)
            store(out, o0 + k, ROW0, gu)
            store(state, k, STATES, gu)
            store(state, R1 + k, STATES, gv)
        if by_way:
            put_rows(address(near), gx, first + q, columns, rows, m, past, like)


@compiled
def backward_share_of_bits(share, each, g, inner, channels, bits, gx, steps, columns, past, like, keep_u, keep_v, run):
    """gx from g, which lies as in `backward_share`, and the bits of `forward`, for the rectangle."""
    first, last = share_of(share, each, columns)
    near, turned = scratch(4 * NEAR, like), scratch(4 * PITCH, like)
    spare, state = scratch(2 * PITCH, like), scratch(2 * PITCH, like)
    top = (steps - 1) // 4 * 4
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        a_u, a_v = spread(keep_u, spare[:n], start, run), spread(keep_v, spare[R1 : R1 + n], start, run)
        state[:] = 0
        for t in range(top, -1, -4):
            ahead = ahead_back(t, steps, columns, start)
            source, g_rows = _gradient_rows(g, turned, t, steps, columns, start, n, inner, channels, run, like)
            _backward_pass_of_bits(
                source, gx, bits, near, state, a_u, a_v, t, steps, columns, start, n, g_rows, past, ahead
            )
