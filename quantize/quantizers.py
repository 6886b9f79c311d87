"""Brevitas weight quantizers whose integers Loihi holds: signed, symmetric, one power-of-two scale per layer.

    w_int = step clip(round(w / (step scale))),  scale = 2**e        so that the scale folds into the threshold

The integers of a format of b bits are multiples of step = 2**(8 - b).

A quantizer is named FORMAT or FORMAT:SCALE, for example int8, int4, ternary:trained. Lava keeps every integer of a
format, also in a layer with weights of both signs (stored with exponent -1); `even8` survives even a `Dense` that is
given raw integers of both signs at exponent 0, where Lava drops the lowest bit.
"""

import math
from dataclasses import dataclass
from typing import Any

import brevitas.config
import torch
from brevitas.core.function_wrapper import RoundSte
from brevitas.inject.enum import ScalingImplType
from brevitas.quant.base import IntQuant, MaxStatsScaling, PerTensorPoTScaling8bit
from brevitas.quant.solver import WeightQuantSolver
from torch import Tensor

from hw import loihi
from hw.errors import UserError

# Or a state dict without a scale would make Brevitas forget it, and every one would make a new parameter of it, which
# no optimiser knows.
brevitas.config.REINIT_ON_STATE_DICT_LOAD = False


@dataclass(frozen=True, kw_only=True)
class Format:
    """bits: of Brevitas' integer. narrow: without its lowest value."""

    bits: int
    narrow: bool = False

    @property
    def step(self) -> int:
        """What the chip's integers are multiples of: they fill its 8 bits, so that threshold, bias and states, which
        are counted in the same unit, are as fine as they are for int8."""
        return 1 << loihi.WEIGHT_BITS_MAX - self.bits

    @property
    def scale(self) -> str:
        """The one of `SCALES` that is taken where none is named: with few bits, one that fits max |w| leaves almost
        nothing of the others."""
        return "max" if self.bits > 4 else "mse"

    @property
    def lowest(self) -> int:
        return self.narrow - (1 << self.bits - 1)

    @property
    def highest(self) -> int:
        return (1 << self.bits - 1) - 1


FORMATS = {
    "int8": Format(bits=8, narrow=True),
    "even8": Format(bits=7),
    "int6": Format(bits=6),
    "int4": Format(bits=4),
    "int3": Format(bits=3),
    "int2": Format(bits=2),
    "ternary": Format(bits=2, narrow=True),
}
SCALES = {
    "max": "the smallest power of two that fits max |w|, which follows the weights",
    "mse": "the power of two of the smallest squared error when the layer was quantized, kept from then on",
    "trained": "starts as mse and is trained with the weights",
}


class _FollowsMax(IntQuant, MaxStatsScaling, PerTensorPoTScaling8bit, WeightQuantSolver):
    pass


class _Parameter(_FollowsMax):
    scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS
    restrict_value_float_to_int_impl = RoundSte


@dataclass(frozen=True, kw_only=True)
class WeightQuantizer:
    """One layer's: `format` of `FORMATS`, `scale` of `SCALES`."""

    format: str
    scale: str

    @classmethod
    def named(cls, name: str) -> "WeightQuantizer":
        """By its name; a bare number of bits is the integer of so many."""
        kind, _, scale = name.partition(":")
        kind = f"int{kind}" if kind.isdigit() else kind
        if kind not in FORMATS or scale not in ("", *SCALES):
            raise UserError(
                f"quantizer '{name}' is not known; give FORMAT or FORMAT:SCALE, with a format of {', '.join(FORMATS)} "
                f"and a scale of {', '.join(SCALES)}"
            )
        return cls(format=kind, scale=scale or FORMATS[kind].scale)

    def __str__(self) -> str:
        return self.format if self.scale == self.holds.scale else f"{self.format}:{self.scale}"

    @property
    def holds(self) -> Format:
        return FORMATS[self.format]

    def brevitas(self) -> type:
        """The injector that a Brevitas layer takes as `weight_quant`."""
        base = _FollowsMax if self.scale == "max" else _Parameter
        return type(str(self), (base,), {"bit_width": self.holds.bits, "narrow_range": self.holds.narrow})

    @torch.no_grad()
    def start(self, synapse: Any) -> None:
        """Set a Brevitas layer's scale by its weights, where it is a parameter."""
        if self.scale == "max":
            return
        synapse.quant_weight()  # Brevitas fills its parameter on the first call
        threshold = synapse.weight_quant.tensor_quant.scaling_impl.value
        threshold.fill_(math.log2(self.best_scale(synapse.weight)) + self.holds.bits - 1)
        threshold.requires_grad_(self.scale == "trained")

    def best_scale(self, weight: Tensor) -> float:
        """The power of two with the smallest squared error, all of them tried."""
        largest, exact = float(weight.abs().max()), weight.double()
        top = math.ceil(math.log2(largest)) + 1 if largest else 0
        scales = [2.0**e for e in range(top, top - self.holds.bits - 9, -1)]
        low, high = self.holds.lowest, self.holds.highest
        errors = [float(((exact / s).round().clamp(low, high) * s - exact).square().sum()) for s in scales]
        return scales[errors.index(min(errors))]


def quantizers_of(spec: str, layers: list[str]) -> dict[str, WeightQuantizer]:
    """A quantizer for every layer, from one name for all, or LAYER=NAME,... with *=NAME for those not named.

    >>> {layer: str(q) for layer, q in quantizers_of("conv1=8,*=int4:trained", ["conv1", "dense1"]).items()}
    {'conv1': 'int8', 'dense1': 'int4:trained'}
    """
    if "=" not in spec:
        return dict.fromkeys(layers, WeightQuantizer.named(spec))
    parts = [part.partition("=") for part in spec.split(",")]
    given = {layer.strip(): WeightQuantizer.named(name.strip()) for layer, _, name in parts}
    if len(given) < len(parts):
        raise UserError(f"quantizer '{spec}': says twice what a layer's is; leave one out")
    if odd := sorted(set(given) - {*layers, "*"}):
        raise UserError(f"quantizer '{spec}': there is no layer '{odd[0]}'; the layers are {', '.join(layers)}")
    if missing := [layer for layer in layers if layer not in given and "*" not in given]:
        raise UserError(f"quantizer '{spec}': says nothing of layer '{missing[0]}'; add {missing[0]}=NAME or *=NAME")
    return {layer: given.get(layer) or given["*"] for layer in layers}
