"""The readable truth: the integer recursion of `hw.program`, step by step in numpy.

Convolutions and products go through float64 BLAS. That is exact: validated programs keep every partial sum far below
2**53.
"""

from collections.abc import Iterator

import numpy as np

from hw import loihi
from hw.program import Conv, Dense, Flatten, SpikingProgram
from hw.simulate.base import Result, check_spikes
from hw.validate import validate


def trunc_decay(x: np.ndarray, decay_int: np.ndarray) -> np.ndarray:
    """trunc(x (4096 - decay) / 4096), rounding toward zero. int64 holds the product: |x| < 2**24."""
    product = np.abs(x) * (loihi.DECAY_UNITY - decay_int)
    return np.sign(x) * (product >> 12)


def lif_step(
    a: np.ndarray, u: np.ndarray, v: np.ndarray, layer: Conv | Dense
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of the layer's neurons: input a, states u and v [B, channels, ...] -> spikes (bool), u, v."""

    def channelwise(value: np.ndarray) -> np.ndarray:
        return value.reshape(-1, *[1] * (a.ndim - 2))

    u = trunc_decay(u, channelwise(layer.decay_u_int)) + (a << loihi.STATE_SHIFT)
    u = np.where(
        u > loihi.STATE_LIMIT,
        u - 2 * loihi.STATE_LIMIT,
        np.where(u <= -loihi.STATE_LIMIT, u + 2 * loihi.STATE_LIMIT, u),
    )
    v = trunc_decay(v, channelwise(layer.decay_v_int)) + u + (channelwise(layer.bias_mant) << layer.bias_exp)
    v = v.clip(-loihi.STATE_LIMIT + 1, loihi.STATE_LIMIT - 1)
    s = v > (channelwise(layer.v_th_mant) << loihi.STATE_SHIFT)
    return s, u, np.where(s, 0, v)


def synapse(s: np.ndarray, layer: Conv | Dense) -> np.ndarray:
    """Summed input of one step: spikes s [B, ...] -> a int64 [B, channels, ...]."""
    x, weight = s.astype(np.float64), layer.weight_int.astype(np.float64)
    a = x @ weight.T if isinstance(layer, Dense) else _conv(x, weight, layer)
    a = a.astype(np.int64)
    return a << layer.weight_exp if layer.weight_exp >= 0 else a >> -layer.weight_exp


def _conv(x: np.ndarray, weight: np.ndarray, layer: Conv) -> np.ndarray:
    out, height, width = layer.output_shape(x.shape[1:])
    (sh, sw), (ph, pw), (dh, dw) = layer.stride, layer.padding, layer.dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    a = np.zeros((len(x), layer.groups, out // layer.groups, height, width))
    x = x.reshape(len(x), layer.groups, -1, *x.shape[2:])
    weight = weight.reshape(layer.groups, -1, *weight.shape[1:])
    for i, j in np.ndindex(*weight.shape[-2:]):
        tap = x[..., i * dh : i * dh + sh * height : sh, j * dw : j * dw + sw * width : sw]
        a += np.einsum("bgchw,goc->bgohw", tap, weight[..., i, j], optimize=True)
    return a.reshape(len(x), out, height, width)


def trace(program: SpikingProgram, spikes: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(name, s, u, v) of each layer with neurons, in order; each int64 [T, B, ...] (s is bool), v as it is after the
    reset."""
    s = check_spikes(program, spikes).astype(bool)
    for layer in program.layers:
        if isinstance(layer, Flatten):
            s = s.reshape(*s.shape[:2], -1)
            continue
        shape = (s.shape[1], *layer.output_shape(s.shape[2:]))
        u = v = np.zeros(shape, np.int64)
        steps = []
        for s_t in s:
            out = s_t, u, v = lif_step(synapse(s_t, layer), u, v, layer)
            steps.append(out)
        s, us, vs = (np.stack(series) for series in zip(*steps, strict=True))
        yield layer.name, s, us, vs


class ReferenceBackend:
    """`trace` behind the interface that all backends share."""

    name = "reference"

    def __init__(self, program: SpikingProgram) -> None:
        self.program = validate(program)

    def run(self, spikes: np.ndarray, *, layers: bool = False) -> Result:
        kept = {name: s.astype(np.uint8) for name, s, _, _ in trace(self.program, spikes)}
        output = kept[self.program.synaptic[-1].name]
        output = output.reshape(*output.shape[:2], *self.program.output_shape)
        return Result(output=output, layers=kept if layers else {})
