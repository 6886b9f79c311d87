"""What `hw.simulate.events` compiles with numba: a layer's steps, samples spread over threads.

Grids are channels last here, so that the weights of one spike and the neurons that hear it lie side by side. Sums are
held in 32 bits, as in Lava's models.
"""

import numba
import numpy as np

from hw import loihi

_LIMIT = loihi.STATE_LIMIT
WIDTH = 64  # neurons in a row of a layer's parameters, at least: short rows would leave the processor's lanes empty
_inline = numba.njit(inline="always")


@_inline
def _neurons(a, u, v, decays, levels, s):
    """One step of all neurons, in place: a, u, v, s [neurons]. Row k of decays (float64: what a step keeps of u, of v)
    and of levels (int32: bias, threshold) [2, width] is for neurons k, k + width, ...

    trunc(x keep / 4096) goes through float64, which holds x keep exactly, and the cast rounds toward zero.
    """
    width = decays.shape[1]
    for start in range(0, a.shape[0], width):
        n = min(width, a.shape[0] - start)
        ak, uk, vk, sk = a[start : start + n], u[start : start + n], v[start : start + n], s[start : start + n]
        for k in range(n):
            ui = np.int32(np.int32(np.float64(uk[k]) * decays[0, k]) + np.int32(ak[k] << 6))
            ui = np.int32(ui - 2 * _LIMIT) if ui > _LIMIT else ui
            ui = np.int32(ui + 2 * _LIMIT) if ui <= -_LIMIT else ui
            vi = np.int32(np.int32(np.float64(vk[k]) * decays[1, k]) + ui + levels[0, k])
            vi = np.int32(min(max(vi, np.int32(1 - _LIMIT)), np.int32(_LIMIT - 1)))
            fired = vi > levels[1, k]
            sk[k] = fired
            uk[k] = ui
            vk[k] = np.int32(0) if fired else vi


@_inline
def _find(x, found):
    """The places of the nonzero x go to found[:n]; n. Without a branch, which a processor would guess wrong."""
    n = 0
    for j in range(x.shape[0]):
        found[n] = j
        n += x[j] != 0
    return n


@_inline
def _add(a, row, value):
    """a += value row, for all neurons that one spike reaches."""
    if value == 1:
        for k in range(row.shape[0]):
            a[k] += row[k]
    else:
        for k in range(row.shape[0]):
            a[k] += np.int32(value * row[k])


@_inline
def _shift(a, exponent):
    if exponent > 0:
        for k in range(a.shape[0]):
            a[k] <<= exponent
    elif exponent < 0:
        for k in range(a.shape[0]):
            a[k] >>= -exponent


@_inline
def _move(part, a, exponent):
    """a += part << exponent; part = 0."""
    _shift(part, exponent)
    for k in range(a.shape[0]):
        a[k] += part[k]
        part[k] = 0


@numba.njit(cache=True, nogil=True, parallel=True)
def run_dense(x, rows, row_of, delays, recurrent, exponent, decays, levels, u, v, last, s, us, vs):
    """x [B, longest delay + T, in] -> s [B, T, out]; u, v, last [B, out] are changed; us, vs as s, or empty.

    rows int16 [R, out]: row_of[k, j] is the row of input j's weights of delay delays[k], -1 where it has none.
    """
    samples, steps, out = s.shape
    longest = x.shape[1] - steps
    for b in numba.prange(samples):
        a, part = np.zeros(out, np.int32), np.zeros(out, np.int32)
        found = np.empty(max(x.shape[2], recurrent.shape[0]), np.int32)
        shifted = exponent != 0  # then each sum is shifted by itself before it counts
        for t in range(steps):
            a[:] = 0
            for d in range(delays.shape[0]):
                events = x[b, longest + t - delays[d]]
                for k in range(_find(events, found)):
                    row = row_of[d, found[k]]
                    if row >= 0:
                        _add(part if shifted else a, rows[row], events[found[k]])
                if shifted:
                    _move(part, a, exponent)
            if recurrent.shape[0]:
                for k in range(_find(last[b], found)):
                    _add(part if shifted else a, recurrent[found[k]], last[b, found[k]])
                if shifted:
                    _move(part, a, exponent)
            _neurons(a, u[b], v[b], decays, levels, s[b, t])
            last[b] = s[b, t]
            if us.shape[0]:
                us[b, t] = u[b]
                vs[b, t] = v[b]


@numba.njit(cache=True, nogil=True, parallel=True)
def run_conv(x, inputs, rows, down, across, size, exponent, decays, levels, u, v, s, us, vs):
    """x [B, T, h * w * inputs] -> s [B, T, H * W * out].

    rows int16 [inputs, kH, kW * out / groups]: the weights of an input channel. down [h], across [w]: the runs of each
    axis, see `hw.simulate.events`. size: (H, W, out, out / groups, inputs / groups).
    """
    samples, steps, neurons = s.shape
    _, width, out, group, group_inputs = size
    for b in numba.prange(samples):
        a = np.zeros(neurons, np.int32)
        found = np.empty(x.shape[2], np.int32)
        for t in range(steps):
            a[:] = 0
            for e in range(_find(x[b, t], found)):
                place, channel = divmod(np.uint32(found[e]), np.uint32(inputs))
                y, left = divmod(place, np.uint32(across.shape[0]))
                value, first = x[b, t, found[e]], channel // group_inputs * group
                for i in range(down.shape[1]):
                    if down[y, i, 2] == 0:
                        break
                    taps = rows[channel, down[y, i, 1]]
                    for j in range(across.shape[1]):
                        place, tap, count = across[left, j]
                        if count == 0:
                            break
                        start = (down[y, i, 0] * width + place) * out + first
                        n = count * group
                        _add(a[start : start + n], taps[tap * group : tap * group + n], value)
            _shift(a, exponent)
            _neurons(a, u[b], v[b], decays, levels, s[b, t])
            if us.shape[0]:
                us[b, t] = u[b]
                vs[b, t] = v[b]
