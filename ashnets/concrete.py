"""Visual concrete encoder: an artificial network with continuous latents."""

from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ashnets.config import ModelConfig
from ashnets.ranks import channel_moments, current


class BatchNorm(nn.BatchNorm2d):
    """torch's, whose statistics are of the whole batch where ranks share one. (torch's SyncBatchNorm runs on GPUs
    alone.)"""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        if not self.training or not current():
            return super().forward(input)
        mean, square, count = channel_moments(input)
        mean, variance = mean.to(self.weight.dtype), (square - mean.square()).to(self.weight.dtype)
        with torch.no_grad():
            share = cast(float, self.momentum)
            self.get_buffer("num_batches_tracked").add_(1)
            self.get_buffer("running_mean").lerp_(mean, share)
            self.get_buffer("running_var").lerp_(variance * (count / (count - 1)), share)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return input * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


class ConvStem(nn.Module):
    """Image [B, 3, H, W] -> tokens [B, L, D] by stages of two 3x3 convolutions with batch norm, the first of stride 2
    (after Xiao et al. 2021, "Early Convolutions Help Transformers See Better").

    Takes the place of timm's `PatchEmbed`, whose keywords it accepts; the patch size is the product of the strides.
    """

    def __init__(self, stem: tuple[int, ...], *, img_size: int, embed_dim: int, in_chans: int = 3, **_: Any) -> None:
        super().__init__()
        sizes = (in_chans, *stem, embed_dim)
        blocks: list[nn.Module] = []
        for i, o in pairwise(sizes):
            for inputs, stride in ((i, 2), (o, 1)):
                conv = nn.Conv2d(inputs, o, 3, stride=stride, padding=1, bias=False)
                blocks += [conv, BatchNorm(o), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks[:-1])
        side = img_size // 2 ** (len(stem) + 1)
        self.grid_size = (side, side)
        self.num_patches = side * side

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        return self.blocks(images).flatten(2).transpose(1, 2)


class VisualConcreteEncoder(nn.Module):
    """Image -> F0 [B, L, D], what the stem sees, and F [B, L, D], what the transformer makes of it. A Vision
    Transformer of timm.

    `grid` is (h, w) with h * w = L. A class token, where the backbone has one, is dropped from F.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        import timm
        from timm.models.vision_transformer import VisionTransformer

        c = config.concrete
        if c.backbone == "conv_stem":
            self.vit: Any = VisionTransformer(
                img_size=c.image_size,
                embed_dim=config.width,
                depth=c.depth,
                num_heads=c.heads,
                num_classes=0,
                proj_drop_rate=c.dropout,
                class_token=False,
                global_pool="avg",
                fc_norm=False,
                embed_layer=lambda **kwargs: ConvStem(c.stem, **kwargs),
            )
        else:
            self.vit = timm.create_model(c.backbone, img_size=c.image_size, num_classes=0, proj_drop_rate=c.dropout)
        if self.vit.embed_dim != config.width:
            raise ValueError(
                f"model.concrete.backbone {c.backbone} is {self.vit.embed_dim} wide; give that as model.width, which "
                f"is {config.width}"
            )
        self.grid: tuple[int, int] = self.vit.patch_embed.grid_size

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        f0 = self.stem(images)
        x = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(f0)))
        x = self.vit.norm(self.vit.blocks(x))
        return f0, x[:, self.vit.num_prefix_tokens :]

    def stem(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        """F0 alone, for a second view that only the spiking side looks at."""
        # Convolutions are faster with a pixel's channels side by side, and stay so from here on.
        return self.vit.patch_embed(images.contiguous(memory_format=torch.channels_last))
