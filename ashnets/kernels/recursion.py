"""One step of CUBA-LIF, forward and back, for the kernels that numba compiles.

Multiplications and additions are not contracted and follow the plain loop's order: the spikes are its spikes, each.
Where the parameters are int32, so are the states: the chip's recursion, as `hw.simulate.reference` has it, to the bit.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import overload

from ashnets.kernels.columns import inlined

STEPS_PER_BYTE = 4
"""Steps whose two bits share a byte: whether v was above the threshold, and whether the rectangle's slope is 1."""
UNITY_BITS, INPUT_SHIFT, LIMIT = 12, 6, 1 << 23
"""The chip's: decays are in 1 / 2**12, inputs are shifted by 6, states have 24 bits. As in `hw.loihi`."""


class Rectangle(NamedTuple):
    """Surrogates are types, so that each has a loop of its own."""


class Arctan(NamedTuple):
    pass


class FastSigmoid(NamedTuple):
    pass


SLOPES = {"rectangle": Rectangle(), "arctan": Arctan(), "fast_sigmoid": FastSigmoid()}
"""The surrogates of `ashnets.surrogate`."""


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


def next_u(keep_u: Any, u: Any, x: Any) -> Any:
    """u[t] from u[t-1] and x[t]."""


@overload(next_u, inline="always")
def _next_u_(keep_u, u, x):
    if isinstance(u, types.Integer):
        return lambda keep_u, u, x: _whole_u(keep_u, u, x)
    return lambda keep_u, u, x: keep_u * u + x


def next_v(keep_v: Any, v: Any, u: Any, bias: Any) -> Any:
    """v[t] from v[t-1] and u[t]."""


@overload(next_v, inline="always")
def _next_v_(keep_v, v, u, bias):
    if isinstance(u, types.Integer):
        return lambda keep_v, v, u, bias: _whole_v(keep_v, v, u, bias)
    return lambda keep_v, v, u, bias: keep_v * v + u + bias


@inlined
def step(u, v, x, a_u, a_v, th, b, zero):
    """u[t], v[t] before its reset, and v[t]."""
    u = next_u(a_u, u, x)
    above = next_v(a_v, v, u, b)
    return u, above, zero if above > th else above


@inlined
def two_bits(above, th, half, weight, zero):
    """The bits of one step, times `weight`. Real, as v is: four steps' are summed and made whole once, while whole
    numbers of a byte would be packed each by itself."""
    return (zero if above <= th else weight) + (weight + weight if abs(above - th) < half else zero)


def slope(surrogate: Any, g: Any, distance: Any) -> Any:
    """g times the surrogate's slope, see `ashnets.surrogate`."""


@overload(slope)
def _slope_(surrogate, g, distance):
    zero, half, one, pi, four = (distance.cast_python_value(value) for value in (0, 0.5, 1, np.pi, 4))
    if surrogate.instance_class is Rectangle:
        return lambda surrogate, g, distance: g if abs(distance) < half else zero
    if surrogate.instance_class is Arctan:
        return lambda surrogate, g, distance: g / (one + (pi * distance) * (pi * distance))
    return lambda surrogate, g, distance: g / ((one + four * abs(distance)) * (one + four * abs(distance)))


@inlined
def after_reset(v, th, zero):
    return v if v <= th else zero


@inlined
def back(surrogate, g, v, gu, gv, a_u, a_v, th, zero):
    """Gradients of u[t] and of v[t], before its reset, from those of s[t] and of u and v a step later; and the part of
    v[t]'s that came through s[t]."""
    through = slope(surrogate, g, v - th)
    gv = through + a_v * (gv if v <= th else zero)
    return gv + a_u * gu, gv, through


@inlined
def back_of_bits(g, byte, k, gu, gv, a_u, a_v, zero):
    """As `back`, of the rectangle and the byte's step k. A bit is looked at where int32 has its sign, which processors
    select by."""
    through = g if np.int32(byte << (30 - 2 * k)) < 0 else zero
    gv = through + a_v * (zero if np.int32(byte << (31 - 2 * k)) < 0 else gv)
    return gv + a_u * gu, gv
