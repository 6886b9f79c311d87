"""Averaged encoders and the queue that they fill (MoCo, He et al. 2020; ALBEF, Li et al. 2021)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ashnets.config import ModelConfig
from ashnets.model import AshNet, Inputs


class MomentumEncoders(nn.Module):
    """A second model whose weights follow the first: theta_m <- m theta_m + (1 - m) theta, without gradient, and
    without dropout. It starts as a copy."""

    started: Tensor

    def __init__(self, config: ModelConfig, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.model = AshNet(config, 0).requires_grad_(False).eval()
        del self.model.cross, self.model.match_head  # which embeddings do not need
        self.register_buffer("started", torch.tensor(False))

    def train(self, mode: bool = True) -> "MomentumEncoders":
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def follow(self, model: AshNet) -> None:
        share = 1 - self.momentum if self.started else 1.0
        for name, value in self.model.named_parameters():
            value.lerp_(model.get_parameter(name), share)
        for name, value in self.model.named_buffers():
            value.copy_(model.get_buffer(name))
        self.started.fill_(True)

    @torch.no_grad()
    def forward(self, inputs: Inputs) -> tuple[Float[Tensor, "B K"], Float[Tensor, "M K"]]:
        """Embeddings of the batch's images and texts."""
        images = self.model.embed_images(self.model.vision(inputs.images).v)
        return images, self.model.embed_texts(self.model.text(inputs.tokens), inputs.tokens)


class Queue(nn.Module):
    """The newest `size` embeddings that were put in, with their image ids; the oldest leave first."""

    values: Tensor
    ids: Tensor
    total: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(size, width))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("total", torch.zeros((), dtype=torch.int64))

    def with_new(self, values: Float[Tensor, "B K"], ids: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """The given embeddings, then all that are waiting: (values, ids)."""
        held = min(int(self.total), len(self.ids))
        return torch.cat([values, self.values[:held].to(values.dtype)]), torch.cat([ids, self.ids[:held]])

    @torch.no_grad()
    def put(self, values: Float[Tensor, "B K"], ids: Int[Tensor, " B"]) -> None:
        size = len(self.ids)
        places = (self.total + torch.arange(len(ids), device=ids.device)) % size
        newest = slice(max(0, len(ids) - size), None)
        self.values[places[newest]] = values[newest].to(self.values.dtype)
        self.ids[places[newest]] = ids[newest]
        self.total += len(ids)
