"""Where the two visual encoders meet (V' = F + r E), and where vision meets text."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
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


class Groups(NamedTuple):
    """Which image each of M texts is about, and the text's place among the texts of that image, of which there are at
    most `most`. What texts ask of one image then goes there together, and the image's tokens are there once."""

    image: Int[Tensor, " M"]
    place: Int[Tensor, " M"]
    images: int
    most: int

    def together(self, q: Float[Tensor, "M N D"]) -> Float[Tensor, "B KN D"]:
        """The tokens of each image's texts in one row, zeros where an image has fewer texts than another."""
        row = q.new_zeros(self.images, self.most, *q.shape[1:])
        row[self.image, self.place] = q
        return row.flatten(1, 2)

    def apart(self, row: Float[Tensor, "B KN D"]) -> Float[Tensor, "M N D"]:
        """Inverse of `together`."""
        return row.unflatten(1, (self.most, -1))[self.image, self.place]


def groups_of(text_image: Int[Tensor, " M"], images: int) -> Groups:
    """Groups by `text_image`, in any order."""
    order = text_image.argsort(stable=True)
    count = text_image.bincount(minlength=images)
    first = count.cumsum(0) - count
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - first[text_image[order]]
    return Groups(text_image, place, images, int(count.max()))


class CrossModalLayer(nn.TransformerDecoderLayer):
    """Text tokens attend to themselves and then to visual tokens, pre-norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)

    def forward(self, w: Tensor, padding: Tensor, v: Tensor, groups: Groups | None) -> Tensor:  # pyright: ignore
        h = self.norm1(w)
        w = w + self.dropout1(self.self_attn(h, h, h, key_padding_mask=padding, need_weights=False)[0])
        w = w + self.dropout2(self.look(self.norm2(w), v, groups))
        return w + self.dropout3(self.linear2(self.dropout(F.gelu(self.linear1(self.norm3(w))))))

    def look(self, w: Tensor, v: Tensor, groups: Groups | None) -> Tensor:
        """`multihead_attn` of w [M, N, D] to v [M, L, D], or [B, L, D] of the images that `groups` names."""
        m, d = self.multihead_attn, w.shape[-1]
        q = F.linear(w, m.in_proj_weight[:d], m.in_proj_bias[:d])
        k, value = F.linear(v, m.in_proj_weight[d:], m.in_proj_bias[d:]).chunk(2, -1)
        q = groups.together(q) if groups else q
        q, k, value = (x.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for x in (q, k, value))
        seen = F.scaled_dot_product_attention(q, k, value, dropout_p=m.dropout if self.training else 0.0)
        seen = seen.transpose(1, 2).flatten(2)
        return m.out_proj(groups.apart(seen) if groups else seen)


class CrossModalEncoder(nn.Module):
    """Text tokens W [M, N, D] attend to themselves and to visual tokens V' [M, L, D]: pre-norm transformer decoder
    layers, with torch's weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.fusion
        self.layers = nn.ModuleList(CrossModalLayer(config.width, c.heads, c.dropout) for _ in range(c.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self, w: Float[Tensor, "M N D"], padding: Bool[Tensor, "M N"], v: Float[Tensor, "B L D"], groups: Groups | None
    ) -> Float[Tensor, "M N D"]:
        """padding is True where there is no token. v: of each text, or with `groups` of each image."""
        for layer in self.layers:
            w = layer(w, padding, v, groups)
        return self.norm(w)
