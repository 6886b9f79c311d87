"""CUBA-LIF on integers inside torch: the forward pass is the chip's recursion (`hw.program`), the backward pass is
the real neuron's.

Real and integer units of one layer with weight scale 2**e:

    x = a 2**e      u = u_int 2**e / 64      v = v_int 2**e / 64      v_th = v_th_mant 2**e      b = bias_mant 2**e
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ashnets.kernels.lif import DEVICES, lif_backward, lif_forward
from ashnets.neurons import LIFParams
from hw import loihi


class IntegerLIFParams(NamedTuple):
    """decay_u_int, decay_v_int, v_th_mant, bias_mant: int64, each [] or shaped to broadcast against one step [B,
    ...]."""

    decay_u_int: Tensor
    decay_v_int: Tensor
    v_th_mant: Tensor
    bias_mant: Tensor


def round_params(p: LIFParams, scale: Tensor) -> IntegerLIFParams:
    """The nearest integers, held by the chip or not: decays in 1/4096, threshold and bias in units of the weight
    scale."""

    def rounded(value: Tensor) -> Tensor:
        return value.detach().double().round().clamp(-(2.0**62), 2.0**62).long()

    return IntegerLIFParams(
        rounded(p.decay_u * loihi.DECAY_UNITY),
        rounded(p.decay_v * loihi.DECAY_UNITY),
        rounded(p.v_th / scale),
        rounded(p.bias / scale),
    )


def quantize_params(p: LIFParams, scale: Tensor) -> IntegerLIFParams:
    """The nearest integers that the chip holds: those of `round_params`, clamped."""
    q = round_params(p, scale)
    return IntegerLIFParams(
        q.decay_u_int.clamp(1, loihi.DECAY_UNITY),
        q.decay_v_int.clamp(0, loihi.DECAY_UNITY),
        q.v_th_mant.clamp(0, loihi.V_TH_MANT_MAX),
        q.bias_mant.clamp(loihi.BIAS_MANT_MIN, loihi.BIAS_MANT_MAX),
    )


def dequantize_params(q: IntegerLIFParams, scale: Tensor, like: LIFParams) -> LIFParams:
    """The real values that the integers stand for."""
    values = (
        q.decay_u_int / loihi.DECAY_UNITY,
        q.decay_v_int / loihi.DECAY_UNITY,
        q.v_th_mant * scale,
        q.bias_mant * scale,
    )
    return LIFParams(*(value.to(old.dtype) for value, old in zip(values, like, strict=True)))


class _IntegerLIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, scale: Tensor, surrogate: str, *params: Tensor) -> Tensor:
        ctx.save_for_backward(a, scale, *params)
        ctx.surrogate = surrogate
        return lif_forward(a, *_states_parameters(quantize_params(LIFParams(*params), scale)), surrogate, False)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, scale, *params = ctx.saved_tensors
        q = quantize_params(LIFParams(*params), scale)
        real = dequantize_params(q, scale, LIFParams(*params))
        unit = scale / (1 << loihi.STATE_SHIFT)
        grad_x, sums = lif_backward(
            grads[0], a, a.new_empty(0, dtype=torch.int32), *real, ctx.surrogate, True, _states_parameters(q), unit
        )
        found = [row[: p.numel()].view_as(p) for row, p in zip(sums, params, strict=True)]
        return grad_x * scale, None, None, *found


def _states_parameters(q: IntegerLIFParams) -> list[Tensor]:
    """As `ashnets.kernels.lif` takes them, v_th and bias in the unit of the states."""
    values = (q.decay_u_int, q.decay_v_int, q.v_th_mant << loihi.STATE_SHIFT, q.bias_mant << loihi.NETX_BIAS_EXP)
    return [value.int() for value in values]


def integer_cuba_lif(
    a: Float[Tensor, "T B *rest"], scale: Float[Tensor, ""], p: LIFParams, surrogate: str
) -> Float[Tensor, "T B *rest"]:
    """Spikes of the integer recursion for summed inputs `a` (whole numbers), with gradients to `a` and to the real
    parameters.

    The parameters are rounded to the chip's grid inside (straight-through: the gradient passes the rounding unchanged).
    """
    if a.device.type not in DEVICES:  # there is no kernel: on the processor
        here = LIFParams(*(value.cpu() for value in p))
        return integer_cuba_lif(a.cpu(), scale.cpu(), here, surrogate).to(a.device)
    return _IntegerLIF.apply(a, scale, surrogate, *p)
