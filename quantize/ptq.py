"""Post-training quantization on recorded spikes: each layer by itself, over all T steps, its input what the quantized
layers before it give.

    gptq      weights are rounded one column after the other, later ones making up for earlier ones (Frantar et al.
              2023; Brevitas' implementation)
    gpfq      likewise, greedily along the path of the float layer's output (Lybrand and Saab 2021; Brevitas')
    bias      b += k e, e the mean over t, samples and positions of u_float - u_quantized, by channel
    balance   v_th *= k

k is the factor, of a few, with which the layer's spike counts are nearest to the float layer's.

Methods are joined by +, and run in the order in which they are given.
"""

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ashnets.stack import LayerStack, SpikingLayer
from hw.errors import UserError
from quantize.exact import exact_synapse
from quantize.lower import lower
from quantize.qat import QuantizedLayer, QuantizedStack
from quantize.quantizers import quantizers_of

METHODS = ("gptq", "gpfq", "bias", "balance")
PLAIN, BEST = "plain", "gptq+bias+balance"
BIAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BALANCE = tuple(2 ** (k / 32) for k in sorted(range(-32, 33), key=abs))  # 1/2 to 2, the smallest change first


def steps_of(method: str) -> tuple[str, ...]:
    """The steps of a method by its name: 'plain' (none), 'best', or some of `METHODS` joined by +."""
    names = {PLAIN: "", "best": BEST}.get(method, method)
    steps = tuple(names.split("+")) if names else ()
    unknown = [step for step in steps if step not in METHODS]
    if unknown or {"gptq", "gpfq"} <= set(steps) or len(set(steps)) != len(steps):
        raise UserError(
            f"PTQ method '{method}' is not known; choose plain, best, or some of {', '.join(METHODS)} joined by + "
            "(gptq or gpfq, not both)"
        )
    return steps


def settled(quantizer: str, layers: Iterable[str], method: str) -> str:
    """The quantizer of each layer under a method, by name. gptq and gpfq move weights, so that a scale that follows
    max |w| would move with them: it becomes the mse one."""
    chosen = quantizers_of(quantizer, list(layers))
    if not {"gptq", "gpfq"} & set(steps_of(method)) or all(q.scale != "max" for q in chosen.values()):
        return quantizer
    return ",".join(f"{name}={replace(q, scale='mse') if q.scale == 'max' else q}" for name, q in chosen.items())


@torch.no_grad()
def calibrated(stack: LayerStack, spikes: Tensor, quantizer: str, method: str = "best") -> QuantizedStack:
    """`stack` quantized after training on input spikes [T, B, ...], its quantizers as they are `settled`. `UserError`
    names the layer and the value that the chip does not hold."""
    steps = steps_of(method)
    stack = deepcopy(stack).eval()  # its norms must not learn from the calibration
    made = QuantizedStack(stack, settled(quantizer, stack.neural_layers, method)).eval()
    s_float = s_quantized = spikes.float()
    for layer, quantized in zip(stack.layers.children(), made.layers.children(), strict=True):
        wanted = layer(s_float)
        if isinstance(layer, SpikingLayer) and isinstance(quantized, QuantizedLayer):
            for step in steps:
                if step in ("gptq", "gpfq"):
                    _round_weights(quantized, s_quantized, step)
                elif step == "bias":
                    error = _bias_error(layer, quantized, s_float, s_quantized)
                    _take_nearest(
                        quantized.neuron.bias, lambda b, k, e=error: b + k * e, BIAS, quantized, s_quantized, wanted
                    )
                else:
                    _take_nearest(
                        quantized.neuron.v_th, lambda v_th, k: v_th * k, BALANCE, quantized, s_quantized, wanted
                    )
        s_float, s_quantized = wanted, quantized(s_quantized)
    lower(made, clamped=False)  # refuses what the forward pass only clamps
    return made


def filtered(x: Tensor, decay_u: Tensor) -> Tensor:
    """x~[t] = (1 - d_u) x~[t-1] + x[t] over the first axis, from zero."""
    out, last = torch.empty_like(x), torch.zeros_like(x[0])
    for t in range(len(x)):
        last = (1 - decay_u) * last + x[t]
        out[t] = last
    return out


def weight_modes() -> dict[str, Any]:
    """Brevitas' two context managers, by method. Their import warns of what Brevitas itself imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brevitas.graph.gpfq import gpfq_mode
        from brevitas.graph.gptq import gptq_mode

    return {"gptq": gptq_mode, "gpfq": gpfq_mode}


def _round_weights(layer: QuantizedLayer, s: Tensor, method: str) -> None:
    """Run one of Brevitas' methods on the layer's synapses alone, with every step's input at once. To give it the input
    as the current filters it was tried, and is no better (digits, six seeds)."""
    seen = s.flatten(0, 1)
    seen = torch.cat([seen, torch.full_like(seen[:1], 0.1)])  # or weights of inputs that stayed silent would become 0
    holder: Any = nn.Sequential(layer.synapse)
    options: dict[str, Any] = {"num_blocks": 1, "create_weight_orig": False} if method == "gptq" else {}
    with weight_modes()[method](holder, use_quant_activations=False, act_order=True, **options) as running:
        for _ in range(running.num_layers):
            running.model(seen)
            running.update()
    if hasattr(layer.synapse, "weight_orig"):
        del layer.synapse.weight_orig


def _bias_error(layer: SpikingLayer, quantized: QuantizedLayer, s_float: Tensor, s_quantized: Tensor) -> Tensor:
    """Mean of u_float - u_quantized [channels]."""
    decay_u = quantized.neuron.params(s_float.ndim - 1).decay_u
    weight_int, scale = quantized.weight()
    of_float = layer.norm(layer.synapse(s_float.flatten(0, 1))).unflatten(0, s_float.shape[:2])
    x = scale * exact_synapse(s_quantized.flatten(0, 1), weight_int, quantized.synapse)
    error = filtered(of_float, decay_u) - filtered(x.unflatten(0, s_quantized.shape[:2]), decay_u)
    return error.mean([d for d in range(error.ndim) if d != 2])


def _take_nearest(
    value: Tensor,
    changed: Callable[[Tensor, float], Tensor],
    factors: Iterable[float],
    layer: QuantizedLayer,
    s: Tensor,
    wanted: Tensor,
) -> None:
    """Set `value` of the layer to changed(value, k) for the k with the smallest squared error of each neuron's spike
    count in each sample; of two that are as good, the first."""
    start, counts = value.clone(), wanted.sum(0)

    def error(k: float) -> float:
        value.copy_(changed(start, k))
        return float((layer(s).sum(0) - counts).square().mean())

    value.copy_(changed(start, min(factors, key=error)))
