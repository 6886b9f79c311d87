"""`SpikingProgram`: a spiking network as the chip holds it, in integers and nothing else.

One time step of a layer with input spikes `s`, all arithmetic on integers (bit-exact with Lava's `fixed_pt` models):

    a[t] = sum_d (W_d s[t-d]) << weight_exp + (R s'[t-1]) << weight_exp
    u = trunc(u (4096 - decay_u_int) / 4096) + (a << 6)       u wraps once beyond +-2**23
    v = trunc(v (4096 - decay_v_int) / 4096) + u + (bias_mant << bias_exp)      v saturates at +-(2**23 - 1)
    s' = v > (v_th_mant << 6)                                 strictly;   v = 0 where s' = 1

`W_d` are the weights of delay d (all of them for d = 0 where a layer has no delays), `R` the weights of a recurrent
layer. `trunc` rounds toward zero; a negative exponent shifts to the right, rounding down, each sum by itself. Spikes
are 0 or 1, or, with `input_bits` > 0, the input's are integers below 2**input_bits in magnitude. A sample is T steps
with all states zero at its start, in every layer.
"""

from dataclasses import dataclass, replace

from hw.errors import UserError
from hw.layers import Conv, Dense, Flatten, Input, Layer, Recurrent, Shape, settle_integers

__all__ = ["Conv", "Dense", "Flatten", "Input", "Layer", "Recurrent", "Shape", "SpikingProgram"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpikingProgram:
    """An ordered chain of layers. `input_shape` is one step's (C, H, W) or (N,); `steps` is T, the length of a
    sample; `input_bits` is 0 for binary input spikes, else the bits of a graded one's magnitude."""

    input_shape: Shape
    steps: int
    layers: tuple[Layer, ...]
    input_bits: int = 0

    def __post_init__(self) -> None:
        settle_integers(self, "")
        if self.steps < 1 or not self.synaptic or min(self.input_shape, default=0) < 1:
            raise UserError(
                f"a program needs steps >= 1, a positive input shape and at least one Dense or Conv layer; "
                f"found steps={self.steps}, input_shape={self.input_shape}, {len(self.layers)} layers"
            )
        if any(isinstance(layer, Input) for layer in self.layers[1:]):
            raise UserError("an input layer stands behind another; it is the first, or there is none")
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

    def part(self, first: int, stop: int | None = None) -> "SpikingProgram":
        """The program of the layers from `first` up to `stop`; its spikes are graded where they still are the input."""
        before = self.layers[:first]
        shape = self.shapes[before[-1].name] if before else self.input_shape
        bits = self.input_bits if all(isinstance(layer, Flatten) for layer in before) else 0
        return replace(self, input_shape=shape, input_bits=bits, layers=self.layers[first:stop])

    @property
    def output_shape(self) -> Shape:
        return self.shapes[self.layers[-1].name]
