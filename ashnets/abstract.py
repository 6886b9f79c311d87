"""Semantic abstract encoder: spike coding (host), spiking stack (chip), readout (host). Discrete latents.

Coding, T and readout are choices of ours: the papers (arXiv 2308.09455, 2501.19069) do not publish them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ashnets.config import ModelConfig
from ashnets.neurons import CubaLIF
from ashnets.stack import SpikingStack


class SpikeEncoder(nn.Module):
    """Tokens F0 [B, L, D] -> spikes s_in [T, B, C, h, w]: each channel's value drives a CUBA-LIF neuron for T steps
    (direct coding).

    Every sample is encoded on its own (layer norm over channels), so that the code of an image does not depend on its
    batch. Tokens of another grid than the code's are fitted to it, bilinearly.
    """

    def __init__(self, config: ModelConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        a = config.abstract
        self.tokens, self.steps = grid, a.steps
        self.grid = (a.grid, a.grid) if a.grid else grid
        self.project = nn.Linear(config.width, a.channels)
        self.norm = nn.LayerNorm(a.channels)
        self.neuron = CubaLIF(a.channels, decay_u=0.9, decay_v=a.decay_v, surrogate=a.surrogate)

    def forward(self, f0: Float[Tensor, "B L D"]) -> Float[Tensor, "T B C h w"]:
        x = self.drive(f0).movedim(1, -1)  # [B, h, w, C], as it lies in memory
        return self.neuron(x.expand(self.steps, *x.shape).contiguous().movedim(-1, 2))

    def drive(self, f0: Float[Tensor, "B L D"]) -> Float[Tensor, "B C h w"]:
        """What each neuron is given in every step."""
        x = self.project(f0)
        if self.grid != self.tokens:
            x = x.transpose(1, 2).unflatten(2, self.tokens)
            x = F.interpolate(x, self.grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        return self.norm(x).transpose(1, 2).unflatten(2, self.grid)


class SpikeReadout(nn.Module):
    """E = W_d sum_t w_t S_t: spikes [T, B, C', H', W'] or [T, B, N] -> E [B, L', D] with L' = H'W' or 1; w starts at
    1/T."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        steps = config.abstract.steps
        self.weight = nn.Parameter(torch.full((steps,), 1 / steps))
        self.project = nn.Linear(channels, config.width)

    def forward(self, s: Float[Tensor, "T B *out"]) -> Float[Tensor, "B L D"]:
        latent = torch.einsum("t,tb...->b...", self.weight, s)
        tokens = latent.flatten(2).transpose(1, 2) if latent.ndim == 4 else latent.unsqueeze(1)
        return self.project(tokens)


class SemanticAbstractEncoder(nn.Module):
    """encoder -> stack -> readout. `stack` is the float stack, the quantized one or a bridge; nothing here asks
    which."""

    def __init__(self, config: ModelConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = SpikeEncoder(config, grid)
        stack = SpikingStack(config.abstract, (config.abstract.channels, *self.encoder.grid))
        self.readout = SpikeReadout(config, stack.output_shape[0])
        self.output_grid = stack.output_shape[1:]
        self.stack: nn.Module = stack

    def forward(self, f0: Float[Tensor, "B L D"]) -> tuple[Tensor, Tensor, Float[Tensor, "B L2 D"]]:
        """(s_in, s_out, E)."""
        return self.begin(f0)()

    def begin(self, f0: Float[Tensor, "B L D"]) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
        """What gives `forward`'s result. A stack that can be asked ahead (`SpikeBridge`) is at work until then."""
        s_in = self.encoder(f0)
        ahead = getattr(self.stack, "begin", None)
        if ahead is None:
            s_out = self.stack(s_in)
            return lambda: (s_in, s_out, self.readout(s_out))
        pending = ahead(s_in)

        def finish() -> tuple[Tensor, Tensor, Tensor]:
            s_out = pending.result()
            return s_in, s_out, self.readout(s_out)

        return finish
