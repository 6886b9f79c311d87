"""From the quantized stack to the integers that the chip holds."""

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from hw.program import Conv, Dense, Flatten, Layer, SpikingProgram
from hw.validate import validate
from quantize.qat import QuantizedLayer, QuantizedStack


def lower(stack: QuantizedStack, *, clamped: bool = True) -> SpikingProgram:
    """The program that spikes as `stack` does, checked against the chip's limits. clamped: a threshold, bias or decay
    that training drove beyond them is the nearest within, as in the stack's forward pass; else it is refused."""
    layers = tuple(
        _lower_layer(name, layer, clamped) if isinstance(layer, QuantizedLayer) else Flatten(name=name)
        for name, layer in stack.layers.named_children()
    )
    return validate(SpikingProgram(input_shape=stack.input_shape, steps=stack.steps, layers=layers))


def _lower_layer(name: str, layer: QuantizedLayer, clamped: bool) -> Layer:
    weight_int, neuron = layer.integers(clamped)
    scale = float(layer.weight()[1])
    common: dict[str, Any] = {
        "name": name,
        "weight_int": _numpy(weight_int),
        "decay_u_int": _numpy(neuron.decay_u_int),
        "decay_v_int": _numpy(neuron.decay_v_int),
        "v_th_mant": _numpy(neuron.v_th_mant),
        "bias_mant": _numpy(neuron.bias_mant),
        "weight_bits": layer.quantizer.holds.bits,
        "scale_exp": round(math.log2(scale)),
    }
    synapse = layer.synapse
    if isinstance(synapse, nn.Conv2d):
        geometry: dict[str, Any] = {key: tuple(getattr(synapse, key)) for key in ("stride", "padding", "dilation")}
        return Conv(**common, **geometry, groups=synapse.groups)
    return Dense(**common)


def _numpy(value: Tensor) -> np.ndarray:
    return value.cpu().numpy()
