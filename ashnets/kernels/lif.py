"""CUBA-LIF as one operator of torch, `torch.ops.ashnets.cuba_lif`, which autograd, torch.compile and autocast see.

It computes the plain loop of `ashnets.neurons`. x is [T, B, C, ...], channels first or last in memory, and s lies as x
does; decay_u, decay_v, v_th and bias have one value or C, in any shape. States are float32 where x has 16 bits. For
the backward pass these inputs are saved and nothing else; or two bits per element instead of x.

Where they are int32, x holds whole numbers and the recursion is the chip's, see `hw.simulate.reference`: the decays are
d_u_int and d_v_int, and v_th and bias have the unit of the states. Autograd does not
differentiate that form; `quantize.integer_lif` does, by `lif_backward`.

Where nothing looks at operators, `cuba_lif` calls the kernels without torch's dispatcher, which a pass forward and
backward waits for as long as for a small layer's work.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ashnets.kernels import cpu
from ashnets.kernels.layout import channels_of, dense, flat_shape, states_type
from ashnets.kernels.recursion import STEPS_PER_BYTE

DEVICES = ("cpu", "cuda") if importlib.util.find_spec("triton") else ("cpu",)
"""Types of devices that there are kernels for."""


def kernels(device: str) -> Any:
    """The module that does the work on a type of device: `forward` and `backward` as in `ashnets.kernels.cpu`."""
    if device == "cpu":
        return cpu
    from ashnets.kernels import cuda  # triton is not on every machine

    return cuda


def cuba_lif(x: Tensor, decay_u: Tensor, decay_v: Tensor, v_th: Tensor, bias: Tensor, surrogate: str) -> Tensor:
    """Spikes [T, B, C, ...] of x; differentiable. The rectangle of fixed parameters saves bits, not x."""
    fixed = not any(p.requires_grad for p in (decay_u, decay_v, v_th, bias))
    bits = surrogate == "rectangle" and fixed and x.requires_grad and torch.is_grad_enabled()
    if _watched(x):
        return lif_forward(x, decay_u, decay_v, v_th, bias, surrogate, bits)[0]
    return _Unwatched.apply(x, decay_u, decay_v, v_th, bias, surrogate, bits)


def _watched(x: Any) -> bool:
    """Does something look at operators: a compiler, a trace, a mode, a transform, a subclass of tensors, a profiler? Or
    is x torch's zeros without memory, of which the dispatcher makes some that have it?"""
    return (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.profiler._is_profiler_enabled
        or x._is_zerotensor()
    )


def _forward(
    x: Tensor, decay_u: Tensor, decay_v: Tensor, v_th: Tensor, bias: Tensor, surrogate: str, save_bits: bool
) -> tuple[Tensor, Tensor]:
    """x [T, B, C, ...] -> spikes of the same shape and type; bits, uint8 [ceil(T / 4), M] or empty. The surrogate
    counts in the backward pass."""
    params = (decay_u, decay_v, v_th, bias)
    _check(x, params)
    x = dense(x)
    s, bits = torch.empty_like(x), _bits_of(x, save_bits)
    kernels(x.device.type).forward(x, s, bits, params)
    return s, bits


def _backward(
    grad_s: Tensor,
    x: Tensor,
    bits: Tensor,
    decay_u: Tensor,
    decay_v: Tensor,
    v_th: Tensor,
    bias: Tensor,
    surrogate: str,
    parameters: bool,
    whole: Sequence[Tensor],
    unit: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of decay_u, decay_v, v_th and bias: [4, C], a single value's in the first column; empty where
    `parameters` says that none is wanted.

    bits: if not empty, x's values do not count. whole: of the integer form, its four parameters, int32; x is its
    input, `unit` [] what one of u and v is to the real parameters, and the gradient that of the real neuron's input.
    """
    params = (decay_u, decay_v, v_th, bias)
    _check(x, [*params, *whole])
    x = dense(x)
    grad_x = torch.empty_like(x)
    sums = _sums_of(x, parameters)
    kernels(x.device.type).backward(grad_s, x, grad_x, sums, bits, params, surrogate, whole, unit)
    return grad_x, sums


lif_forward = torch.library.custom_op("ashnets::cuba_lif", _forward, mutates_args=())
lif_backward = torch.library.custom_op("ashnets::cuba_lif_backward", _backward, mutates_args=())


@lif_forward.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    x = dense(x)
    return torch.empty_like(x), _bits_of(x, rest[-1])


@lif_backward.register_fake
def _(grad_s: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    x = dense(x)
    return torch.empty_like(x), _sums_of(x, rest[-3])


def _check(x: Tensor, params: Sequence[Tensor]) -> None:
    """`ValueError` where a parameter is neither one value nor one per channel: the kernels index without a look."""
    for p in params:
        if p.numel() not in (1, channels_of(x)):
            raise ValueError(
                f"CUBA-LIF: a parameter has {p.numel()} values, and the input {list(x.shape)} {channels_of(x)} "
                f"channels (axis 2); make the neurons for {channels_of(x)}"
            )


def _bits_of(x: Tensor, wanted: bool) -> Tensor:
    steps, columns = flat_shape(x)
    rows = -(-steps // STEPS_PER_BYTE) if wanted else 0
    return torch.empty((rows, columns), dtype=torch.uint8, device=x.device)


def _sums_of(x: Tensor, wanted: bool) -> Tensor:
    return torch.empty((4, channels_of(x) if wanted else 0), dtype=states_type(x), device=x.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *params, ctx.surrogate, save_bits = inputs
    ctx.save_for_backward(output[0] if save_bits else x, output[1], *params)


def _save_of_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    _save(ctx, inputs, output)


def _gradients(ctx: Any, grad_s: Tensor, _: Any = None) -> tuple[Tensor | None, ...]:
    x, bits, *params = ctx.saved_tensors
    wanted = any(ctx.needs_input_grad[1:5])
    backward: Any = lif_backward if _watched(grad_s) else _backward
    grad_x, sums = backward(grad_s, x, bits, *params, ctx.surrogate, wanted, [], None)
    pairs = zip(sums, params, strict=True)
    grads = [row[: p.numel()].view(p.shape).to(p.dtype) for row, p in pairs] if wanted else [None] * 4
    return grad_x, *grads, None, None


lif_forward.register_autograd(_gradients, setup_context=_save_of_operator)


class _Unwatched(torch.autograd.Function):
    """The same without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _forward(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return _gradients(ctx, *grads)
