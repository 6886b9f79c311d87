"""The readable truth: the integer recursion of `hw.program`, step by step in numpy.

Convolutions and products go through float64 BLAS. That is exact: validated programs keep every partial sum far below
2**53.
"""

import numpy as np

from hw import loihi
from hw.program import Conv, Dense, Flatten, Recurrent, SpikingProgram
from hw.simulate.base import LayerState, Result, State, check_spikes, check_state, initial_state
from hw.validate import validate


def trunc_decay(x: np.ndarray, decay_int: np.ndarray) -> np.ndarray:
    """trunc(x (4096 - decay) / 4096), rounding toward zero. int64 holds the product: |x| < 2**31."""
    product = np.abs(x) * (loihi.DECAY_UNITY - decay_int)
    return np.sign(x) * (product >> 12)


def _held(x: np.ndarray) -> np.ndarray:
    """As a 32-bit register of Lava's models holds it. Differs only for inputs far beyond the 24 bits of the states."""
    return x.astype(np.int32).astype(np.int64)


def lif_step(
    a: np.ndarray, u: np.ndarray, v: np.ndarray, layer: Conv | Dense
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of the layer's neurons: input a, states u and v [B, channels, ...] -> spikes (bool), u, v."""

    def channelwise(value: np.ndarray) -> np.ndarray:
        return value.reshape(-1, *[1] * (a.ndim - 2))

    u = _held(trunc_decay(u, channelwise(layer.decay_u_int)) + (a << loihi.STATE_SHIFT))
    u = np.where(
        u > loihi.STATE_LIMIT,
        u - 2 * loihi.STATE_LIMIT,
        np.where(u <= -loihi.STATE_LIMIT, u + 2 * loihi.STATE_LIMIT, u),
    )
    v = _held(trunc_decay(v, channelwise(layer.decay_v_int)) + u + (channelwise(layer.bias_mant) << layer.bias_exp))
    v = v.clip(-loihi.STATE_LIMIT + 1, loihi.STATE_LIMIT - 1)
    s = v > (channelwise(layer.v_th_mant) << loihi.STATE_SHIFT)
    return s, u, np.where(s, 0, v)


def shift(a: np.ndarray, exponent: int) -> np.ndarray:
    """a << exponent, or a >> -exponent, rounding down."""
    return a << exponent if exponent >= 0 else a >> -exponent


def synapse(s: np.ndarray, layer: Conv | Dense) -> np.ndarray:
    """Summed input of one step, without delays: spikes s [B, ...] -> a int64 [B, channels, ...]."""
    if isinstance(layer, Dense):
        return _product(s, layer.weight_int, layer.weight_exp)
    return shift(
        _conv(s.astype(np.float64), layer.weight_int.astype(np.float64), layer).astype(np.int64), layer.weight_exp
    )


def _product(s: np.ndarray, weight_int: np.ndarray, exponent: int) -> np.ndarray:
    a = s.astype(np.float64) @ weight_int.T.astype(np.float64)
    return shift(a.astype(np.int64), exponent)


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


def run_layer(
    layer: Conv | Dense, s: np.ndarray, state: LayerState
) -> tuple[np.ndarray, np.ndarray, np.ndarray, LayerState]:
    """Spikes s [T, B, ...] -> output spikes (bool), u and v after each step [T, B, channels, ...], and the state at the
    end."""
    steps, longest = len(s), len(state.waiting)
    if isinstance(layer, Dense):
        s = np.concatenate([state.waiting, s])  # s[longest + t] is the spike of step t
    u, v, last = state.u, state.v, state.last
    series = []
    for t in range(steps):
        if isinstance(layer, Conv):
            a = synapse(s[t], layer)
        else:
            parts = [_product(s[longest + t - d], layer.weight_of_delay(d), layer.weight_exp) for d in layer.delays]
            a = np.sum(parts, axis=0)
        if isinstance(layer, Recurrent):
            a = a + _product(last, layer.weight_rec_int, layer.weight_exp)
        last, u, v = lif_step(a, u, v, layer)
        series.append((last, u, v))
    outs, us, vs = (np.stack(values) for values in zip(*series, strict=True))
    waiting = s[len(s) - longest :] if longest else state.waiting
    return outs, us, vs, LayerState(u=u, v=v, waiting=waiting, last=last.astype(np.int64))


class ReferenceBackend:
    """`run_layer` over all layers, behind the interface that all backends share."""

    name = "reference"

    def __init__(self, program: SpikingProgram) -> None:
        self.program = validate(program)

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result:
        s = check_spikes(self.program, spikes, stream=state is not None)
        check_state(self.program, state or {}, s.shape[1])
        kept, us, vs, after = {}, {}, {}, {}
        for layer in self.program.layers:
            if isinstance(layer, Flatten):
                s = s.reshape(*s.shape[:2], -1)
                continue
            shape = self.program.shapes[layer.name]
            before = state[layer.name] if state else initial_state(layer, s.shape[1], shape)
            s, us[layer.name], vs[layer.name], after[layer.name] = run_layer(layer, s, before)
            kept[layer.name] = s.astype(np.uint8)
        return Result(
            output=s.astype(np.uint8),
            layers=kept if layers else {},
            u=us if states else {},
            v=vs if states else {},
            state=after if state is not None else {},
        )
