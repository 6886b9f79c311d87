"""Where the two visual encoders meet (V' = F + r E), and where vision meets text."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ashnets.config import ModelConfig


class Fusion(nn.Module):
    """V' = F + r E with r learned (GSHN, arXiv 2501.19069). E has one token for the whole image, or a grid of its own
    that is enlarged to F's by its nearest token. r = 0 is the artificial network alone.

    In training an image loses F with probability `spikes_alone`, so that the spiking encoder must learn to see by
    itself; 1 leaves V' = r E for good. r: a value that stays, None to learn it from 1 on.
    """

    def __init__(
        self, grid: tuple[int, int], spike_grid: tuple[int, ...], spikes_alone: float = 0.0, r: float | None = None
    ) -> None:
        super().__init__()
        self.spikes_alone = spikes_alone
        self.r = nn.Parameter(torch.tensor(1.0 if r is None else r), requires_grad=r is None)
        self.grid, self.spike_grid = grid, spike_grid

    def forward(self, f: Float[Tensor, "B L D"], e: Float[Tensor, "B L2 D"]) -> Float[Tensor, "B L D"]:
        if self.spike_grid and self.spike_grid != self.grid:
            e = F.interpolate(e.transpose(1, 2).unflatten(2, self.spike_grid), self.grid).flatten(2).transpose(1, 2)
        if self.spikes_alone == 1:
            f = torch.zeros_like(f)
        elif self.spikes_alone and self.training:
            f = f * (torch.rand(len(f), 1, 1, device=f.device) >= self.spikes_alone)
        return f + self.r * e


class CrossModalEncoder(nn.Module):
    """Text tokens W [M, N, D] attend to themselves and to visual tokens V' [M, L, D]: pre-norm transformer decoder
    layers of torch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.fusion
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                config.width, c.heads, 4 * config.width, c.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(c.depth)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self, w: Float[Tensor, "M N D"], padding: Bool[Tensor, "M N"], v: Float[Tensor, "M L D"]
    ) -> Float[Tensor, "M N D"]:
        """padding is True where there is no token."""
        for layer in self.layers:
            w = layer(w, v, tgt_key_padding_mask=padding)
        return self.norm(w)
