"""What quantizing costs a layer before anything runs: how far its integers are from the real values they stand for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hw.errors import UserError
from quantize.integer_lif import dequantize_params, quantize_params
from quantize.qat import QuantizedLayer, QuantizedStack

SURVIVORS_MIN = 0.01


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """bits: of a weight; memory_bits: of all. sqnr: 10 log10(mean w**2 / mean (w_int scale - w)**2), dB. zeros and
    clipped: shares of the weights that became 0, and that lie beyond the format's range by more than half a step.
    decay_u, decay_v: largest absolute errors. v_th, bias: largest errors in units of v_th."""

    name: str
    quantizer: str
    bits: int
    memory_bits: int
    scale: float
    sqnr: float
    zeros: float
    clipped: float
    decay_u: float
    decay_v: float
    v_th: float
    bias: float


@torch.no_grad()
def layer_errors(layer: QuantizedLayer, before: Tensor | None = None) -> LayerErrors:
    """The errors of one layer as its forward pass has them. before: the real weights where they are not the layer's
    own, which GPTQ and GPFQ have rounded."""
    weight_int, scale = layer.weight()
    real = (layer.synapse.weight if before is None else before).double()
    format_, step = layer.quantizer.holds, layer.quantizer.holds.step
    noise = (weight_int.double() * scale - real).square().mean()
    whole = real / (scale * step)
    p = layer.neuron.params(2, exact=True)
    q = dequantize_params(quantize_params(p, scale), scale, p)

    def worst(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max())

    return LayerErrors(
        name=layer.name,
        quantizer=str(layer.quantizer),
        bits=format_.bits,
        memory_bits=format_.bits * weight_int.numel(),
        scale=float(scale) * step,
        sqnr=float(10 * torch.log10(real.square().mean() / noise)) if noise else float("inf"),
        zeros=float((weight_int == 0).double().mean()),
        clipped=float(((whole < format_.lowest - 0.5) | (whole > format_.highest + 0.5)).double().mean()),
        decay_u=worst(q.decay_u, p.decay_u),
        decay_v=worst(q.decay_v, p.decay_v),
        v_th=worst(q.v_th, p.v_th) / float(p.v_th),
        bias=worst(q.bias, p.bias) / float(p.v_th),
    )


def stack_errors(stack: QuantizedStack, before: QuantizedStack | None = None) -> list[LayerErrors]:
    """One for every layer with neurons. before: the stack with the real weights, where `stack` has them no more."""
    pairs = zip(_layers(stack), _layers(before or stack), strict=True)
    return [layer_errors(layer, real.synapse.weight) for layer, real in pairs]


def _layers(stack: QuantizedStack) -> list[QuantizedLayer]:
    return [layer for layer in stack.layers.children() if isinstance(layer, QuantizedLayer)]


@torch.no_grad()
def refuse_crushed(stack: QuantizedStack) -> None:
    """`UserError` for a layer of which almost nothing is left: an outlier has set its scale."""
    for layer in _layers(stack):
        zeros, weight = float((layer.weight()[0] == 0).double().mean()), layer.synapse.weight.abs()
        if 1 - zeros < SURVIVORS_MIN:
            raise UserError(
                f"layer '{layer.name}': {100 * zeros:.1f} % of its weights are zero as {layer.quantizer}, since the "
                f"largest is {float(weight.max()):.3g} and the median {float(weight.median()):.3g}; clip the outliers, "
                "or take more bits"
            )
