"""CUBA-LIF as one operator of torch, `torch.ops.ashnets.cuba_lif`, which autograd, torch.compile and autocast see.

It computes the plain loop of `ashnets.neurons`. x is [T, B, C, ...], channels first or last in memory, and s lies as x
does; keep_u = 1 - d_u, keep_v = 1 - d_v, v_th and bias are [1] or [C]. States are float32 where x has 16 bits. For
the backward pass nothing is saved but these inputs.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ashnets.kernels import cpu

DEVICES = ("cpu",)
"""Types of devices that there are kernels for."""


@torch.library.custom_op("ashnets::cuba_lif", mutates_args=(), device_types="cpu")
def lif_forward(x: Tensor, keep_u: Tensor, keep_v: Tensor, v_th: Tensor, bias: Tensor, surrogate: str) -> Tensor:
    """x [T, B, C, ...] -> spikes of the same shape and type. The surrogate counts in the backward pass."""
    x = dense(x)
    wide = x.float() if x.dtype.itemsize < 4 else x
    s = torch.empty_like(wide)
    numbers = [_number(p, wide) for p in (keep_u, keep_v, v_th, bias)]
    cpu.forward(flat(wide).numpy(), flat(s).numpy(), numbers, run_of(wide), torch.get_num_threads())
    return s.to(x.dtype)


@torch.library.custom_op("ashnets::cuba_lif_backward", mutates_args=(), device_types="cpu")
def lif_backward(
    grad_s: Tensor,
    x: Tensor,
    keep_u: Tensor,
    keep_v: Tensor,
    v_th: Tensor,
    bias: Tensor,
    surrogate: str,
    parameters: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of keep_u, keep_v, v_th and bias: [4, C], a single value's in the first column; empty where
    `parameters` says that none is wanted."""
    x = dense(x)
    wide = x.float() if x.dtype.itemsize < 4 else x
    grad = torch.empty_like(wide).copy_(grad_s)  # lies as x does
    grad_x = torch.empty_like(wide)
    numbers = [_number(p, wide) for p in (keep_u, keep_v, v_th, bias)]
    sums = torch.zeros(_sums_of(x, parameters), dtype=torch.float64)
    cpu.backward(
        flat(grad).numpy(),
        flat(wide).numpy(),
        flat(grad_x).numpy(),
        numbers,
        run_of(wide),
        surrogate,
        torch.get_num_threads(),
        sums.numpy(),
    )
    return grad_x.to(x.dtype), sums.to(wide.dtype)


@lif_forward.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(dense(x))


@lif_backward.register_fake
def _(grad_s: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    x = dense(x)
    wide = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    return torch.empty_like(x), x.new_empty(_sums_of(x, rest[-1]), dtype=wide)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.surrogate = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad_s: Tensor) -> tuple[Tensor | None, ...]:
    x, *params = ctx.saved_tensors
    wanted = any(ctx.needs_input_grad[1:5])
    grad_x, sums = lif_backward(grad_s, x, *params, ctx.surrogate, wanted)
    grads = [row[: p.numel()].to(p.dtype) for row, p in zip(sums, params, strict=True)] if wanted else [None] * 4
    return grad_x, *grads, None


lif_forward.register_autograd(_gradients, setup_context=_save)


def dense(x: Tensor) -> Tensor:
    """x itself where its elements lie without gaps, channels first or last; else a copy, channels first."""
    return x if x.is_contiguous() or (x.ndim > 3 and x.movedim(2, -1).is_contiguous()) else x.contiguous()


def flat(x: Tensor) -> Tensor:
    """A dense x as [T, M], in the order of its memory."""
    return (x if x.is_contiguous() else x.movedim(2, -1)).view(len(x), -1)


def run_of(x: Tensor) -> int:
    """How many neighbours in memory belong to one channel, of a dense x."""
    return math.prod(x.shape[3:]) if x.is_contiguous() else 1


def _sums_of(x: Tensor, parameters: bool) -> tuple[int, int]:
    return 4, (x.shape[2] if x.ndim > 2 else 1) if parameters else 0


def _number(p: Tensor, x: Tensor) -> Any:
    """What the kernel takes for a parameter: a number or an array, of x's type."""
    array = p.detach().to(x.dtype).contiguous().numpy()
    return array if len(array) > 1 else array[0]
