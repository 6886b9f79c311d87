"""Spiking contrastive learning (SCL): similar inputs should spike alike, and sparsely.

The papers do not publish its formula; this one is ours: z = norm(g(rate)), rate the mean of s_out over time (and
grid), positives are the second view of an image and every image with the same id, plus a penalty that keeps the spikes
few and so the network cheap: the mean of |rate - target| over the code and every layer. Hard samples are augmented in
two ways:

    weight of a negative j of image i    exp(beta cos_ij) / mean_j exp(beta cos_ij)    (Robinson et al. 2021)
    mixed negatives of image i           norm(a n_j + (1 - a) n_k), a uniform, n_j and n_k of its hardest negatives
                                         (MoCHi, Kalantidis et al. 2020)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ashnets.config import LossConfig, ModelConfig
from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective, Temperature, info_nce
from ashnets.ranks import everyone, mean_of_images
from ashnets.stack import layer_rates


class SpikingContrast(Objective):
    """InfoNCE between the spike rates of two views, plus `rate_weight` * mean over layers |rate - `rate_target`|."""

    needs_view = True

    def __init__(self, config: ModelConfig, losses: LossConfig) -> None:
        super().__init__(config, losses)
        width = (config.abstract.dense or tuple(c for c, _ in config.abstract.convs))[-1]
        self.project = nn.Sequential(
            nn.Linear(width, config.embedding), nn.ReLU(), nn.Linear(config.embedding, config.embedding)
        )
        self.temperature = Temperature(losses)

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if inputs.view is None:
            raise ValueError("scl needs a second view of each image; Inputs.view is None")
        s_in, stack = model.code(inputs.view), model.abstract.stack
        with layer_rates(stack) as rates:
            s_out = stack(s_in)
        z, z_view = self.embed(vision.s_out), everyone(self.embed(s_out), "images")
        ids = inputs.image_ids if inputs.picture_ids is None else inputs.picture_ids
        same = ids[:, None] == everyone(ids, "images")[None, :]
        temperature = self.temperature()
        logits = z @ z_view.T / temperature
        negatives = hard_negatives(z, z_view.detach(), same, temperature, self.losses)
        loss = info_nce(logits, same, negatives)
        rate = mean_of_images(torch.stack([s_in.mean(), *rates]))
        distance = (rate - self.losses.rate_target).abs().mean()
        return loss + self.losses.rate_weight * distance, {"contrast": loss.detach()}

    def embed(self, s: Tensor) -> Tensor:
        """Spikes [T, B, C, ...] -> unit vectors [B, embedding]."""
        return F.normalize(self.project(s.mean(0).flatten(2).mean(2) if s.ndim > 3 else s.mean(0)), dim=-1)


def hard_negatives(z: Tensor, keys: Tensor, same: Tensor, temperature: Tensor, losses: LossConfig) -> Tensor | None:
    """Logits of each image's negatives [B, B + mixed], weighted and with mixed ones; -inf where there is none. None
    where the config asks for neither."""
    if not losses.hardness and not losses.mixed:
        return None
    cosine = z @ keys.T
    weight = (losses.hardness * cosine.detach()).masked_fill(same, -torch.inf)
    weight = weight - (weight.logsumexp(1, keepdim=True) - (~same).sum(1, keepdim=True).log())  # mean weight 1
    logits = torch.where(same, -torch.inf, cosine / temperature + weight)
    if not losses.mixed:
        return logits
    hardest = min(2 * losses.mixed, len(keys))
    nearest = cosine.detach().masked_fill(same, -torch.inf).topk(hardest, dim=1).indices  # [B, hardest]
    pairs = torch.randint(hardest, (2, len(z), losses.mixed), device=z.device)
    first, second = (nearest.gather(1, pair) for pair in pairs)
    share = torch.rand(len(z), losses.mixed, 1, device=z.device)
    made = F.normalize(share * keys[first] + (1 - share) * keys[second], dim=-1)
    usable = ~(same.gather(1, first) | same.gather(1, second))  # where there are fewer negatives than were asked for
    mixed = torch.where(usable, (z[:, None] * made).sum(2) / temperature, -torch.inf)
    return torch.cat([logits, mixed], 1)
