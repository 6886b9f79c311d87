"""`SpikingProgram`: a spiking network as the chip holds it, in integers and nothing else.

One time step of a layer with input spikes `s` in {0, 1}, all arithmetic on integers (bit-exact with Lava's `fixed_pt`
models):

    a = (W s) << weight_exp                                   (>> for a negative exponent, rounding down)
    u = trunc(u (4096 - decay_u_int) / 4096) + (a << 6)       u wraps once beyond +-2**23
    v = trunc(v (4096 - decay_v_int) / 4096) + u + (bias_mant << bias_exp)      v saturates at +-(2**23 - 1)
    s' = v > (v_th_mant << 6)                                 strictly;   v = 0 where s' = 1

`trunc` rounds toward zero. A sample is T steps with all states zero at its start, in every layer.
"""

from dataclasses import dataclass, field
from math import prod

import numpy as np

from hw.errors import UserError
from hw.loihi import NETX_BIAS_EXP

Shape = tuple[int, ...]


def _int_array(value: object, what: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise UserError(f"{what} holds {array.dtype}, a program holds integers only; quantize first")
    return np.array(array, dtype=np.int64, order="C")


@dataclass(frozen=True, kw_only=True, eq=False)
class Synaptic:
    """What `Dense` and `Conv` share: weights in front of CUBA-LIF neurons. Every per-neuron value is one per channel.

    weight_int: int64, the layer's own shape.    weight_exp: a power of two for the summed input.
    bias_mant: int64 [channels], added to v as `bias_mant << bias_exp`.
    decay_u_int, decay_v_int: int64 [] or [channels], 1..4096.    v_th_mant: int64 [] or [channels], 0..131071.
    """

    name: str
    weight_int: np.ndarray
    decay_u_int: np.ndarray
    decay_v_int: np.ndarray
    v_th_mant: np.ndarray
    bias_mant: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    bias_exp: int = NETX_BIAS_EXP
    weight_exp: int = 0

    def __post_init__(self) -> None:
        for key in ("weight_int", "decay_u_int", "decay_v_int", "v_th_mant", "bias_mant"):
            object.__setattr__(self, key, _int_array(getattr(self, key), f"layer '{self.name}': {key}"))
        if self.bias_mant.size == 0:
            object.__setattr__(self, "bias_mant", np.zeros(self.weight_int.shape[:1], np.int64))

    @property
    def channels(self) -> int:
        return self.weight_int.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Synaptic):
    """Fully connected: weight_int [out, in], input shape (in,), output shape (out,)."""

    def output_shape(self, shape: Shape) -> Shape:
        if self.weight_int.ndim != 2 or shape != (self.weight_int.shape[1],):
            raise UserError(
                f"layer '{self.name}': dense weight {self.weight_int.shape} takes inputs of shape "
                f"({self.weight_int.shape[-1]},), found {shape}; put a Flatten in front or mend the weight"
            )
        return (self.channels,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Synaptic):
    """2-d convolution: weight_int [out, in / groups, kH, kW], input (in, H, W), output (out, H', W'). Pairs are (H,
    W)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output_shape(self, shape: Shape) -> Shape:
        if self.weight_int.ndim != 4 or len(shape) != 3:
            raise UserError(
                f"layer '{self.name}': conv needs a weight of rank 4 and an input (C, H, W), "
                f"found weight {self.weight_int.shape} and input {shape}"
            )
        out, per_group, *kernel = self.weight_int.shape
        if self.groups < 1 or per_group * self.groups != shape[0] or out % self.groups:
            raise UserError(
                f"layer '{self.name}': conv weight {self.weight_int.shape} with groups={self.groups} "
                f"takes {per_group * self.groups} input channels, found {shape[0]}"
            )
        if min(*self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise UserError(
                f"layer '{self.name}': stride {self.stride} and dilation {self.dilation} must be at least 1, "
                f"padding {self.padding} at least 0"
            )
        grid = tuple(
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(shape[1:], kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        if min(grid) < 1:
            raise UserError(
                f"layer '{self.name}': a {kernel} kernel does not fit its input {shape}; pad it or shrink it"
            )
        return (out, *grid)


@dataclass(frozen=True, kw_only=True)
class Flatten:
    """(C, H, W) -> (C*H*W,) in C order, as torch does it. No neurons."""

    name: str = "flatten"

    def output_shape(self, shape: Shape) -> Shape:
        return (prod(shape),)


Layer = Conv | Dense | Flatten


@dataclass(frozen=True, kw_only=True, eq=False)
class SpikingProgram:
    """An ordered chain of layers. `input_shape` is one step's (C, H, W) or (N,); `steps` is T, the length of a
    sample."""

    input_shape: Shape
    steps: int
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.synaptic or min(self.input_shape, default=0) < 1:
            raise UserError(
                f"a program needs steps >= 1, a positive input shape and at least one Dense or Conv layer; "
                f"found steps={self.steps}, input_shape={self.input_shape}, {len(self.layers)} layers"
            )
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise UserError(f"layer names must differ, found {names}")
        _ = self.shapes  # refuses layers that do not fit each other

    @property
    def synaptic(self) -> tuple[Conv | Dense, ...]:
        """The layers that hold neurons, in order."""
        return tuple(layer for layer in self.layers if not isinstance(layer, Flatten))

    @property
    def shapes(self) -> dict[str, Shape]:
        """Output shape of every layer, by name."""
        shapes, shape = {}, self.input_shape
        for layer in self.layers:
            shapes[layer.name] = shape = layer.output_shape(shape)
        return shapes

    @property
    def output_shape(self) -> Shape:
        return self.shapes[self.layers[-1].name]
