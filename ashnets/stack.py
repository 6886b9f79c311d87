"""The spiking stack: the part that goes to the chip. Binary spikes in, binary spikes out, [T, B, ...] -> [T, B,
...]."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ashnets.config import AbstractConfig
from ashnets.kernels.layout import states_type
from ashnets.neurons import CubaLIF
from ashnets.ranks import channel_moments, current


class _OverRms(torch.autograd.Function):
    """(x, gain, eps) -> (y = gain r x, m) with m = mean x^2 of each channel and r = (m + eps)^-1/2.

        dx = gain r dy - gain r^3 mean(x dy) x      dgain = r sum(x dy)

    Differentiated by torch, x^2 and y apart, this takes 1.7 to 3.5 times as long, forward and backward, on a processor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.axes = [axis for axis in range(x.ndim) if axis != 1]
        m = x.to(states_type(x)).square().mean(ctx.axes)
        r = torch.rsqrt(m + eps)
        ctx.save_for_backward(x, gain, r)
        ctx.mark_non_differentiable(m)
        return x * _along(gain * r, x), m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        x, gain, r = ctx.saved_tensors
        dy, wide = grads[0], x.to(grads[0].dtype)
        total = (wide * dy).sum(ctx.axes)
        down = gain * r**3 * total / (x.numel() // len(r))
        dx = (dy * _along(gain * r, x)).addcmul_(wide, _along(down, x), value=-1)
        return dx.to(x.dtype), r * total, None


def _along(values: Tensor, x: Tensor) -> Tensor:
    """One value per channel, to broadcast along axis 1 of x."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


class FoldableNorm(nn.Module):
    """x -> gain * x / rms(x), rms over everything but the channel axis 1; running statistics in evaluation.

    There is no centring on purpose: a mean taken off the synaptic input is filtered by the current's decay, so that
    it cannot be folded into a bias of the membrane exactly. A pure scale folds into the weights, and the neuron has a
    bias of its
    own.
    """

    mean_square: Tensor

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.register_buffer("mean_square", torch.ones(channels))
        self.momentum, self.eps = momentum, eps

    def scale(self) -> Float[Tensor, " C"]:
        """The factor per channel that evaluation applies, and that folding multiplies into the weights."""
        return self.gain * torch.rsqrt(self.mean_square + self.eps)

    def forward(self, x: Float[Tensor, "N C *rest"]) -> Float[Tensor, "N C *rest"]:
        if not self.training:
            return x * _along(self.scale(), x)
        if current():
            mean_square = channel_moments(x)[1].to(self.gain.dtype)
            y = x * _along(self.gain * torch.rsqrt(mean_square + self.eps), x)
        else:
            y, mean_square = _OverRms.apply(x, self.gain, self.eps)
        with torch.no_grad():
            self.mean_square.lerp_(mean_square, self.momentum)
        return y


@contextmanager
def unmoved_norms(module: nn.Module) -> Iterator[None]:
    """Within the block the running statistics of a module's norms stay, whatever runs through it: evaluation and
    folding are to know what images have alone."""
    momenta = {norm: norm.momentum for norm in module.modules() if isinstance(norm, FoldableNorm)}
    for norm in momenta:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


class SpikingLayer(nn.Module):
    """synapse (Conv2d or Linear without bias) -> norm -> CUBA-LIF, spikes [T, B, ...] -> spikes [T, B, ...].

    norm: by default a new `FoldableNorm`; `nn.Identity()` for none.
    """

    def __init__(
        self, synapse: nn.Conv2d | nn.Linear, neuron: CubaLIF, norm: FoldableNorm | nn.Identity | None = None
    ) -> None:
        super().__init__()
        self.synapse, self.neuron = synapse, neuron
        self.norm = norm if norm is not None else FoldableNorm(synapse.weight.shape[0])

    def forward(self, s: Float[Tensor, "T B *rest"]) -> Float[Tensor, "T B *rest2"]:
        x = self.norm(self.synapse(s.flatten(0, 1)))
        return self.neuron(x.unflatten(0, s.shape[:2]))


class LayerStack(nn.Module):
    """A chain of `SpikingLayer`s and `nn.Flatten(2)`s; `layers` holds them by name.

    input_shape: (C, H, W) or (N,) of one step.    output_shape: likewise.    steps: T of a sample.
    """

    def __init__(
        self,
        layers: OrderedDict[str, nn.Module],
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        steps: int,
    ) -> None:
        super().__init__()
        self.input_shape, self.output_shape, self.steps = input_shape, output_shape, steps
        self.layers = nn.Sequential(layers)

    @property
    def neural_layers(self) -> dict[str, SpikingLayer]:
        """The layers with neurons, by name, in order."""
        return {name: layer for name, layer in self.layers.named_children() if isinstance(layer, SpikingLayer)}

    def forward(self, s: Float[Tensor, "T B *in"]) -> Float[Tensor, "T B *out"]:
        return self.layers(s)


class SpikingStack(LayerStack):
    """Convolutional, then dense CUBA-LIF layers, with an `nn.Flatten` between the two kinds."""

    def __init__(self, config: AbstractConfig, input_shape: tuple[int, int, int]) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()

        def neuron(channels: int) -> CubaLIF:
            return CubaLIF(
                channels,
                decay_u=config.decay_u,
                decay_v=config.decay_v,
                per_channel=config.decays_per_channel,
                surrogate=config.surrogate,
            )

        c, h, w = input_shape
        for i, (out, stride) in enumerate(config.convs, 1):
            conv = nn.Conv2d(c, out, 3, stride=stride, padding=1, bias=False)
            layers[f"conv{i}"] = SpikingLayer(conv, neuron(out))
            c, h, w = out, (h - 1) // stride + 1, (w - 1) // stride + 1
        output_shape: tuple[int, ...] = (c, h, w)
        if config.dense:
            layers["flatten"] = nn.Flatten(2)
            size = c * h * w
            for i, out in enumerate(config.dense, 1):
                layers[f"dense{i}"] = SpikingLayer(nn.Linear(size, out, bias=False), neuron(out))
                size = out
            output_shape = (size,)
        super().__init__(layers, input_shape, output_shape, config.steps)


@torch.no_grad()
def synaptic_operations(stack: LayerStack, s_in: Tensor) -> float:
    """Synaptic operations per sample: over layers and steps, the sum over spikes of the weights that each one meets. As
    `hw.energy` counts them where no weight is zero."""
    total, spikes = 0.0, {"": s_in, **layer_spikes(stack, s_in)}
    for s, layer in zip(spikes.values(), stack.neural_layers.values(), strict=False):
        synapse = layer.synapse
        if isinstance(synapse, nn.Linear):
            total += float(s.sum()) * synapse.out_features
        else:
            ones = torch.ones_like(synapse.weight)
            met = F.conv2d(
                s.flatten(0, 1), ones, None, synapse.stride, synapse.padding, synapse.dilation, synapse.groups
            )
            total += float(met.sum())
    return total / s_in.shape[1]


@contextmanager
def layer_rates(stack: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, the mean firing rate of each layer with neurons is added to a list as spikes run through a
    float or quantized stack, with its gradient."""
    rates: list[Tensor] = []
    layers = [layer for layer in stack.get_submodule("layers").children() if not isinstance(layer, nn.Flatten)]
    hooks = [layer.register_forward_hook(lambda _, __, s: rates.append(s.mean())) for layer in layers]
    try:
        yield rates
    finally:
        for hook in hooks:
            hook.remove()


def layer_spikes(stack: nn.Module, s: Tensor) -> dict[str, Tensor]:
    """Spikes [T, B, ...] of each layer with neurons, by name, of a float or quantized stack."""
    kept = {}
    for name, layer in stack.get_submodule("layers").named_children():
        s = layer(s)
        if not isinstance(layer, nn.Flatten):
            kept[name] = s
    return kept
