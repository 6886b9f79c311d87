"""Brevitas weight quantizers whose integers Loihi holds: signed, symmetric, one power-of-two scale per layer."""

from brevitas.quant.base import IntQuant, MaxStatsScaling, PerTensorPoTScaling8bit
from brevitas.quant.solver import WeightQuantSolver


class LoihiWeight(IntQuant, MaxStatsScaling, PerTensorPoTScaling8bit, WeightQuantSolver):
    """int8 in [-127, 127]: w_int = round(w / scale), scale the smallest power of two that fits max |w|.

    Lava keeps every such integer of a layer with weights of both signs (stored with exponent -1). A scale of a power
    of two folds into the threshold, so that the chip needs no exponent.
    """

    bit_width = 8
    narrow_range = True
    signed = True


WEIGHT_QUANTIZERS = {"int8": LoihiWeight}
"""Name -> Brevitas quantizer. A new one is a class here and a line in this table."""
