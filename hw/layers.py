"""The layers of a `SpikingProgram`: synapses in front of CUBA-LIF neurons, as integers. Their arithmetic is told in
`hw.program`."""

from dataclasses import dataclass, field, fields
from math import prod
from operator import index
from typing import Any, get_args, get_origin

import numpy as np

from hw import loihi
from hw.errors import UserError
from hw.loihi import BIAS_MANT_MAX, BIAS_MANT_MIN, DECAY_UNITY, NETX_BIAS_EXP

Shape = tuple[int, ...]


def _int_array(value: object, what: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise UserError(f"{what} holds {array.dtype}, a program holds integers only; quantize first")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise UserError(f"{what} holds {array.max()}, beyond the 63 bits of a program's integers; mend or quantize it")
    return np.array(array, dtype=np.int64, order="C")


def settle_integers(item: Any, what: str) -> None:
    """Make the int fields of a frozen dataclass Python's own, those in its tuples too; numpy's are no JSON."""
    for key in fields(item):
        value = getattr(item, key.name)
        try:
            if key.type is int:
                object.__setattr__(item, key.name, index(value))
            elif get_origin(key.type) is tuple and int in get_args(key.type):
                object.__setattr__(item, key.name, tuple(map(index, value)))
        except TypeError as error:
            raise UserError(f"{what}{key.name} is {value!r}, a program holds integers only") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Synaptic:
    """What `Dense` and `Conv` share: weights in front of CUBA-LIF neurons. Every per-neuron value is one per channel.

    weight_int: int64, the layer's own shape.    weight_exp: a power of two for the summed input.
    bias_mant: int64 [channels], added to v as `bias_mant << bias_exp`.
    decay_u_int, decay_v_int: int64 [] or [channels], 1..4096.    v_th_mant: int64 [] or [channels], 0..131071.
    weight_bits: of one weight, without the low zeros that all share.    scale_exp: a weight of 1 stands for
    2**scale_exp in the network that it came from. Neither changes a spike.
    """

    name: str
    weight_int: np.ndarray
    decay_u_int: np.ndarray
    decay_v_int: np.ndarray
    v_th_mant: np.ndarray
    bias_mant: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    bias_exp: int = NETX_BIAS_EXP
    weight_exp: int = 0
    weight_bits: int = loihi.WEIGHT_BITS_MAX
    scale_exp: int = 0

    def __post_init__(self) -> None:
        settle_integers(self, f"layer '{self.name}': ")
        for key in ("weight_int", "decay_u_int", "decay_v_int", "v_th_mant", "bias_mant"):
            object.__setattr__(self, key, _int_array(getattr(self, key), f"layer '{self.name}': {key}"))
        if self.bias_mant.size == 0:
            object.__setattr__(self, "bias_mant", np.zeros(self.weight_int.shape[:1], np.int64))

    @property
    def channels(self) -> int:
        return self.weight_int.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Synaptic):
    """Fully connected: weight_int [out, in], input shape (in,), output shape (out,).

    delay: int64 [], [in] (of each input's axon) or [out, in] (of each synapse), steps that a spike waits.
    """

    delay: np.ndarray = field(default_factory=lambda: np.zeros((), np.int64))

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "delay", _int_array(self.delay, f"layer '{self.name}': delay"))

    @property
    def delays(self) -> np.ndarray:
        """The distinct delays, ascending; [0] for a layer without."""
        return np.unique(self.delay)

    def weight_of_delay(self, delay: int) -> np.ndarray:
        """W_d [out, in]: the weights of one delay, 0 elsewhere."""
        return np.where(self.delay == delay, self.weight_int, 0)

    def output_shape(self, shape: Shape) -> Shape:
        if self.weight_int.ndim != 2 or shape != (self.weight_int.shape[1],):
            raise UserError(
                f"layer '{self.name}': dense weight {self.weight_int.shape} takes inputs of shape "
                f"({self.weight_int.shape[-1]},), found {shape}; put a Flatten in front or mend the weight"
            )
        return (self.channels,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recurrent(Dense):
    """`Dense` whose neurons also hear each other's spikes of the step before: weight_rec_int [out, out]."""

    weight_rec_int: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"layer '{self.name}': weight_rec_int"
        object.__setattr__(self, "weight_rec_int", _int_array(self.weight_rec_int, what))

    def output_shape(self, shape: Shape) -> Shape:
        if self.weight_rec_int.shape != (self.channels, self.channels):
            raise UserError(
                f"layer '{self.name}': weight_rec_int has shape {self.weight_rec_int.shape}, its {self.channels} "
                f"neurons need ({self.channels}, {self.channels})"
            )
        return super().output_shape(shape)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Input(Conv):
    """Neurons without synapses, one for each pixel of an image (lava-dl's `input` layer), first in a program.

        x = trunc(image_weight image + image_bias)       u = x << 6       v = trunc(v (4096 - decay_v_int) / 4096) + u

    `encode` is the first line, done on the host; x is what the program takes, graded. The rest is what a depthwise
    convolution of weight 1 does, and it is held as one. Lava adds x to the neuron's bias, which is the same.
    """

    image_weight: int = 64
    image_bias: int = 0

    @classmethod
    def of(cls, channels: int, **values: Any) -> "Input":
        """The layer for images of so many channels; values: name, decay_v_int, v_th_mant, image_weight, image_bias."""
        ones = np.ones((channels, 1, 1, 1), np.int64)
        return cls(weight_int=ones, groups=channels, decay_u_int=np.array(DECAY_UNITY), **values)

    def encode(self, image: np.ndarray) -> np.ndarray:
        """x int64 of an image's numbers, of any shape; `UserError` where one is no 13-bit bias."""
        x = np.trunc(self.image_weight * np.asarray(image, np.float64) + self.image_bias)
        odd = x[~((x >= BIAS_MANT_MIN) & (x <= BIAS_MANT_MAX))]
        if odd.size:
            raise UserError(
                f"layer '{self.name}': {self.image_weight} image {self.image_bias:+d} is {odd.flat[0]:g}, a bias holds "
                f"{BIAS_MANT_MIN}..{BIAS_MANT_MAX}; scale the image, most networks take [0, 1]"
            )
        return x.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Flatten:
    """(C, H, W) -> (C*H*W,) in C order, as torch does it. No neurons."""

    name: str = "flatten"

    def output_shape(self, shape: Shape) -> Shape:
        return (prod(shape),)


Layer = Input | Conv | Dense | Recurrent | Flatten
