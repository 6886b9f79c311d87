"""The quantized stack: Brevitas weights, integer neurons, and the same signature as the float stack, spikes ->
spikes."""

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from brevitas.nn import QuantConv2d, QuantLinear
from jaxtyping import Float
from torch import Tensor, nn

from ashnets.stack import LayerStack, SpikingLayer
from hw.errors import UserError
from quantize.exact import exact_synapse
from quantize.integer_lif import IntegerLIFParams, integer_cuba_lif, quantize_params, round_params
from quantize.quantizers import WeightQuantizer, quantizers_of


class LayerIntegers(NamedTuple):
    """What the chip gets of one layer: weight_int in the layer's shape, neuron parameters [] or [channels], all
    int64."""

    weight_int: Tensor
    neuron: IntegerLIFParams


class QuantizedLayer(nn.Module):
    """A `SpikingLayer` with its norm folded into a Brevitas weight, running the chip's integer recursion.

    It starts from the float layer's weights, decays, threshold and biases (a post-training quantization), and all of
    them are trained from there.
    """

    def __init__(self, name: str, layer: SpikingLayer, quantizer: WeightQuantizer) -> None:
        super().__init__()
        refuse_not_finite(name, layer)
        self.name, self.quantizer, self.neuron = name, quantizer, deepcopy(layer.neuron)
        self.neuron.learn_threshold()
        quant = quantizer.brevitas()
        synapse = layer.synapse
        if isinstance(synapse, nn.Conv2d):
            keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
            geometry: dict[str, Any] = {key: getattr(synapse, key) for key in keys}
            self.synapse = QuantConv2d(**geometry, bias=False, weight_quant=quant)
        else:
            self.synapse = QuantLinear(synapse.in_features, synapse.out_features, bias=False, weight_quant=quant)
        with torch.no_grad():
            self.synapse.weight.copy_(folded_weight(layer))
        quantizer.start(self.synapse)

    def _refuse_hooks(self) -> None:
        """Brevitas' GPTQ and GPFQ modes over a whole network leave each layer after its first call. In a spiking
        network that is the first step, and nothing would say so; their hooks are how they are known."""
        if self.synapse._forward_pre_hooks or self.synapse._forward_hooks:
            raise UserError(
                f"layer '{self.name}': a hook waits on its synapses, as those of Brevitas' whole-model gptq_mode and "
                "gpfq_mode do, which see a spiking network's first step only; use quantize.ptq(..., method='gptq'), "
                "which goes layer by layer over all steps"
            )

    def weight(self) -> tuple[Tensor, Tensor]:
        """(weight_int, whole numbers in float32 with Brevitas' straight-through gradient; scale, a power of two)."""
        quantized = self.synapse.quant_weight()
        scale = quantized.scale.detach() / self.quantizer.holds.step
        weight_int = quantized.value / scale
        if not weight_int.detach().any():
            raise UserError(
                f"layer '{self.name}': all weights are zero as {self.quantizer}, which the chip cannot hold; train "
                "longer, take more bits or drop the layer"
            )
        return weight_int, scale

    @torch.no_grad()
    def integers(self, clamped: bool = True) -> LayerIntegers:
        """The integers that the forward pass uses and that lowering hands to the chip: the nearest that it holds; or,
        not clamped, the nearest."""
        refuse_not_finite(self.name, self)
        weight_int, scale = self.weight()
        params, made = self.neuron.params(2, exact=True), quantize_params if clamped else round_params
        return LayerIntegers(weight_int.round().long(), made(params, scale))

    def forward(self, s: Float[Tensor, "T B *rest"]) -> Float[Tensor, "T B *rest2"]:
        self._refuse_hooks()
        with torch.autocast(s.device.type, enabled=False):
            weight_int, scale = self.weight()
            a = exact_synapse(s.flatten(0, 1).float(), weight_int, self.synapse).unflatten(0, s.shape[:2])
            return integer_cuba_lif(a, scale, self.neuron.params(a.ndim - 1, exact=True), self.neuron.surrogate)


def refuse_not_finite(name: str, layer: nn.Module) -> None:
    """`UserError` where a value of the layer is infinite or no number."""
    for key, value in (*layer.named_parameters(), *layer.named_buffers()):
        odd = value[~value.isfinite()].tolist()
        if odd:
            raise UserError(
                f"layer '{name}': {key} holds {odd[0]}, the chip holds finite values; train or export it anew"
            )


def folded_weight(layer: SpikingLayer) -> Tensor:
    """The weight with the norm's scale of evaluation multiplied into its output channels."""
    weight = layer.synapse.weight
    if isinstance(layer.norm, nn.Identity):
        return weight
    return weight * layer.norm.scale().view(-1, *[1] * (weight.ndim - 1))


class QuantizedStack(nn.Module):
    """The stand-in of a `LayerStack` whose spikes are the chip's, every one; layers have the same names.

    quantizer: one for all layers, or some by name, see `quantize.quantizers.quantizers_of`.
    chip: takes the forward pass over, to train for a chip that is not perfect (`quantize.loop.ChipInTheLoop`).
    """

    def __init__(self, stack: LayerStack, quantizer: str = "int8") -> None:
        super().__init__()
        self.input_shape, self.output_shape, self.steps = stack.input_shape, stack.output_shape, stack.steps
        layers = dict(stack.layers.named_children())
        quantizers = quantizers_of(quantizer, list(stack.neural_layers))
        self.chip: Callable[[QuantizedStack, Tensor], Tensor] | None = None
        self.layers = nn.Sequential(
            OrderedDict(
                (name, QuantizedLayer(name, x, quantizers[name]) if isinstance(x, SpikingLayer) else nn.Flatten(2))
                for name, x in layers.items()
            )
        )

    def forward(self, s: Float[Tensor, "T B *in"]) -> Float[Tensor, "T B *out"]:
        return self.layers(s) if self.chip is None else self.chip(self, s)
