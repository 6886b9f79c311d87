"""Current-based leaky integrate-and-fire neurons (CUBA-LIF), real-valued, for training.

    u[t] = (1 - d_u) u[t-1] + x[t]
    v[t] = (1 - d_v) v[t-1] + u[t] + b
    s[t] = 1 if v[t] > v_th else 0
    v[t] = 0 where s[t] = 1

Time is dimensionless steps, states start at zero. The integer form that the chip runs is `hw.program`; it follows the
same letters. Source of the neuron: Davies et al. 2018 (Loihi), as Lava's `LIF` process implements it.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ashnets.kernels import lif
from ashnets.surrogate import SURROGATES, Surrogate


class LIFParams(NamedTuple):
    """decay_u, decay_v: d_u, d_v in (0, 1]; v_th > 0; bias: b. Each broadcasts against one step x[t] of shape [B,
    ...]."""

    decay_u: Tensor
    decay_v: Tensor
    v_th: Tensor
    bias: Tensor


class LIFState(NamedTuple):
    """u: synaptic current, v: membrane potential after the reset, both [B, ...]."""

    u: Tensor
    v: Tensor


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.surrogate = surrogate
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (distance,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate(distance), None


def cuba_lif_step(x: Tensor, state: LIFState, p: LIFParams, surrogate: Surrogate) -> tuple[Tensor, LIFState]:
    """One step of the equations above: x [B, ...] -> spikes [B, ...] in {0, 1} and the next state.

    The reset is not differentiated (no gradient flows through the spike into the reset). This is the readable truth
    that the fast form below is tested against.
    """
    u = (1 - p.decay_u) * state.u + x
    v = (1 - p.decay_v) * state.v + u + p.bias
    s = _Spike.apply(v - p.v_th, surrogate)
    return s, LIFState(u, torch.where(s.detach() > 0, torch.zeros_like(v), v))


def cuba_lif_loop(x: Float[Tensor, "T B *rest"], p: LIFParams, surrogate: Surrogate) -> Float[Tensor, "T B *rest"]:
    """`cuba_lif_step` over all T steps from zero states: the plain loop."""
    state = LIFState(torch.zeros_like(x[0]), torch.zeros_like(x[0]))
    spikes = []
    for x_t in x:
        s, state = cuba_lif_step(x_t, state, p, surrogate)
        spikes.append(s)
    return torch.stack(spikes)


def cuba_lif_backward(
    grad_s: Tensor, u: Tensor, v: Tensor, p: LIFParams, surrogate: Surrogate
) -> tuple[Tensor, LIFParams]:
    """Backpropagation through the T steps. u and v [T, B, ...] are the forward's states, v before its reset.

        g_v[t] = g_s[t] s'(v[t] - v_th) + (1 - d_v) g_v[t+1] [v[t] <= v_th]      g_u[t] = g_v[t] + (1 - d_u) g_u[t+1]

    Returns the gradient of x [T, B, ...] and of each parameter, summed to the parameter's shape.
    """
    silent = v <= p.v_th
    slope = grad_s * surrogate(v - p.v_th)
    grad_x = torch.empty_like(slope)
    grad_v = grad_u = torch.zeros_like(slope[0])
    zero = torch.zeros_like(slope[0])
    grad_decay_u, grad_decay_v, grad_bias = zero.clone(), zero.clone(), zero.clone()
    for t in range(len(slope) - 1, -1, -1):
        grad_v = slope[t] + (1 - p.decay_v) * grad_v * silent[t]
        grad_u = grad_v + (1 - p.decay_u) * grad_u
        grad_x[t] = grad_u
        grad_bias += grad_v
        if t:
            grad_decay_u -= grad_u * u[t - 1]
            grad_decay_v -= grad_v * (v[t - 1] * silent[t - 1])
    grads = LIFParams(grad_decay_u, grad_decay_v, -slope.sum(0), grad_bias)
    return grad_x, LIFParams(*(g.sum_to_size(value.shape) for g, value in zip(grads, p, strict=True)))


class _CubaLIF(torch.autograd.Function):
    """All T steps by torch's own operations, for devices that there is no kernel for."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate, *params: Tensor) -> Tensor:
        p = LIFParams(*params)
        u, v = torch.empty_like(x), torch.empty_like(x)
        state_u = state_v = torch.zeros_like(x[0])
        for t in range(len(x)):
            state_u = torch.add(x[t], state_u * (1 - p.decay_u), out=u[t])
            torch.add(state_v * (1 - p.decay_v) + state_u, p.bias, out=v[t])
            state_v = v[t] * (v[t] <= p.v_th)
        ctx.save_for_backward(u, v, *params)
        ctx.surrogate = surrogate
        return (v > p.v_th).to(x.dtype)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, v, *params = ctx.saved_tensors
        grad_x, grad_p = cuba_lif_backward(grads[0], u, v, LIFParams(*params), ctx.surrogate)
        return grad_x, None, *grad_p


def cuba_lif(x: Float[Tensor, "T B *rest"], p: LIFParams, surrogate: str) -> Float[Tensor, "T B *rest"]:
    """Spikes of all T steps from zero states, forward and backward in one pass each; equals `cuba_lif_loop`.

    p: each a single value, or one per channel, axis 2 of x. Where there is no kernel for x's device, torch's
    own operations are used.
    """
    if x.device.type not in lif.DEVICES:
        return cuba_lif_torch(x, p, surrogate)
    return lif.cuba_lif(x, *p, surrogate)


def cuba_lif_torch(x: Float[Tensor, "T B *rest"], p: LIFParams, surrogate: str) -> Float[Tensor, "T B *rest"]:
    """`cuba_lif` by torch's own operations, on any device."""
    return _CubaLIF.apply(x, SURROGATES[surrogate], *p)


class CubaLIF(nn.Module):
    """CUBA-LIF neurons with learnable decays and a learnable bias per channel.

    channels: size of the axis after [T, B].    decay_u, decay_v: initial d_u, d_v in (0, 1).    v_th: threshold, fixed
    until `learn_threshold`.
    per_channel: one pair of decays per channel; otherwise one per layer, which is what a `.net` file holds.

    >>> CubaLIF(3)(torch.ones(4, 2, 3)).shape
    torch.Size([4, 2, 3])
    """

    v_th: Tensor

    def __init__(
        self,
        channels: int,
        *,
        decay_u: float = 0.5,
        decay_v: float = 0.25,
        v_th: float = 1.0,
        per_channel: bool = False,
        surrogate: str = "arctan",
    ) -> None:
        super().__init__()
        size = (channels,) if per_channel else ()
        self.decay_u_logit = nn.Parameter(torch.full(size, decay_u).logit())
        self.decay_v_logit = nn.Parameter(torch.full(size, decay_v).logit())
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("v_th", torch.tensor(v_th))
        self.surrogate = surrogate

    def learn_threshold(self) -> None:
        """Make `v_th` a parameter. Beside weights of any size it adds nothing; beside weights of few bits it does."""
        v_th = self.v_th
        del self.v_th
        self.v_th = nn.Parameter(v_th.clone())

    def params(self, rank: int, *, exact: bool = False) -> LIFParams:
        """The parameters, shaped to broadcast against one step of `rank` dimensions [B, channels, ...].

        exact: decays by way of float64, for those that become integers: float32's sigmoid ends in another bit on
        another processor.
        """

        def shaped(value: Tensor) -> Tensor:
            return value.reshape(-1, *[1] * (rank - 2)) if value.ndim else value

        def decay(logit: Tensor) -> Tensor:
            return shaped(logit.double().sigmoid().to(logit.dtype) if exact else logit.sigmoid())

        return LIFParams(decay(self.decay_u_logit), decay(self.decay_v_logit), self.v_th, shaped(self.bias))

    def forward(self, x: Float[Tensor, "T B *rest"]) -> Float[Tensor, "T B *rest"]:
        return cuba_lif(x, self.params(x.ndim - 1), self.surrogate)
