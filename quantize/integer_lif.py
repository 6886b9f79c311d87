"""CUBA-LIF on integers inside torch: the forward pass is the chip's recursion (`hw.program`), the backward pass is
the real neuron's.

Real and integer units of one layer with weight scale 2**e:

    x = a 2**e      u = u_int 2**e / 64      v = v_int 2**e / 64      v_th = v_th_mant 2**e      b = bias_mant 2**e
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ashnets.neurons import LIFParams, cuba_lif_backward
from ashnets.surrogate import SURROGATES
from hw import loihi


class IntegerLIFParams(NamedTuple):
    """decay_u_int, decay_v_int, v_th_mant, bias_mant: int64, each [] or shaped to broadcast against one step [B,
    ...]."""

    decay_u_int: Tensor
    decay_v_int: Tensor
    v_th_mant: Tensor
    bias_mant: Tensor


def quantize_params(p: LIFParams, scale: Tensor) -> IntegerLIFParams:
    """The nearest integers that the chip holds: decays in 1/4096, threshold and bias in units of the weight scale."""

    def rounded(value: Tensor, low: int, high: int) -> Tensor:
        return value.detach().double().round().clamp(low, high).long()

    return IntegerLIFParams(
        rounded(p.decay_u * loihi.DECAY_UNITY, 1, loihi.DECAY_UNITY),
        rounded(p.decay_v * loihi.DECAY_UNITY, 1, loihi.DECAY_UNITY),
        rounded(p.v_th / scale, 0, loihi.V_TH_MANT_MAX),
        rounded(p.bias / scale, loihi.BIAS_MANT_MIN, loihi.BIAS_MANT_MAX),
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


def _decay(x: Tensor, decay_int: Tensor) -> Tensor:
    return x.sign() * ((x.abs() * (loihi.DECAY_UNITY - decay_int)) >> 12)


def integer_states(a: Int[Tensor, "T B *rest"], q: IntegerLIFParams) -> tuple[Tensor, Tensor]:
    """u and v (before its reset) of all T steps, int64 [T, B, ...], from zero states; a is the summed input."""
    limit = loihi.STATE_LIMIT
    threshold = q.v_th_mant << loihi.STATE_SHIFT
    bias = q.bias_mant << loihi.NETX_BIAS_EXP
    us, vs = torch.empty_like(a), torch.empty_like(a)
    u = v = torch.zeros_like(a[0])
    for t in range(len(a)):
        u = _decay(u, q.decay_u_int) + (a[t] << loihi.STATE_SHIFT)
        u = torch.where(u > limit, u - 2 * limit, torch.where(u <= -limit, u + 2 * limit, u))
        v = (_decay(v, q.decay_v_int) + u + bias).clamp(-limit + 1, limit - 1)
        us[t], vs[t] = u, v
        v = v * (v <= threshold)
    return us, vs


class _IntegerLIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, scale: Tensor, surrogate: str, *params: Tensor) -> Tensor:
        real = LIFParams(*params)
        q = quantize_params(real, scale)
        u, v = integer_states(a.long(), q)
        unit = scale.double() / (1 << loihi.STATE_SHIFT)
        ctx.save_for_backward((u * unit).to(a.dtype), (v * unit).to(a.dtype), scale, *dequantize_params(q, scale, real))
        ctx.surrogate = SURROGATES[surrogate]
        return (v > (q.v_th_mant << loihi.STATE_SHIFT)).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, v, scale, *params = ctx.saved_tensors
        grad_x, grad_p = cuba_lif_backward(grads[0], u, v, LIFParams(*params), ctx.surrogate)
        return grad_x * scale, None, None, *grad_p


def integer_cuba_lif(
    a: Float[Tensor, "T B *rest"], scale: Float[Tensor, ""], p: LIFParams, surrogate: str
) -> Float[Tensor, "T B *rest"]:
    """Spikes of the integer recursion for summed inputs `a` (whole numbers), with gradients to `a` and to the real
    parameters.

    The parameters are rounded to the chip's grid inside (straight-through: the gradient passes the rounding unchanged).
    """
    return _IntegerLIF.apply(a, scale, surrogate, *p)
