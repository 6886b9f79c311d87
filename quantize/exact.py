"""Convolution and product of integers held in floats, exact whatever algorithm the device picks.

Forward in float64 and rounded: TF32, Winograd and FFT kernels come nowhere near an error of one half there. Backward
in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.grad as conv_grad
from torch import Tensor, nn


class _ExactConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        out = F.conv2d(x.double(), weight.double(), None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return out.round_().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        geometry = (ctx.layer.stride, ctx.layer.padding, ctx.layer.dilation, ctx.layer.groups)
        grad_x = conv_grad.conv2d_input(x.shape, weight, grads[0], *geometry) if ctx.needs_input_grad[0] else None
        grad_weight = conv_grad.conv2d_weight(x, weight.shape, grads[0], *geometry) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None


class _ExactLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.double(), weight.double()).round_().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grads[0] @ weight, grads[0].T @ x


def exact_synapse(x: Tensor, weight_int: Tensor, layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The layer's product of spikes x [N, ...] with `weight_int` (whole numbers in float32), every sum exact."""
    if isinstance(layer, nn.Conv2d):
        return _ExactConv.apply(x, weight_int, layer)
    return _ExactLinear.apply(x, weight_int)
