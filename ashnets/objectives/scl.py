"""Spiking contrastive learning (SCL): similar inputs should spike alike, and sparsely.

The papers do not publish its formula; this one is ours: z = norm(g(rate)), rate the mean of s_out over time (and
grid), positives are the second view of an image and every image with the same id, plus a penalty |rate - target| that
keeps the spikes few.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ashnets.config import ModelConfig
from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective, Temperature, info_nce


class SpikingContrast(Objective):
    """InfoNCE between the spike rates of two views, plus `rate_weight` * |mean rate - `rate_target`|."""

    needs_view = True
    rate_target = 0.1
    rate_weight = 1.0

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = (config.abstract.dense or tuple(c for c, _ in config.abstract.convs))[-1]
        self.project = nn.Sequential(
            nn.Linear(width, config.embedding), nn.ReLU(), nn.Linear(config.embedding, config.embedding)
        )
        self.temperature = Temperature()

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if inputs.view is None:
            raise ValueError("scl needs a second view of each image; Inputs.view is None")
        z, z_view = self.embed(vision.s_out), self.embed(model.spikes(inputs.view))
        same = inputs.image_ids[:, None] == inputs.image_ids[None, :]
        loss = info_nce(z @ z_view.T / self.temperature(), same)
        rate = torch.stack([vision.s_in.mean(), vision.s_out.mean()])
        return loss + self.rate_weight * (rate - self.rate_target).abs().mean(), {"contrast": loss.detach()}

    def embed(self, s: Tensor) -> Tensor:
        """Spikes [T, B, C, ...] -> unit vectors [B, embedding]."""
        return F.normalize(self.project(s.mean(0).flatten(2).mean(2) if s.ndim > 3 else s.mean(0)), dim=-1)
