"""What an objective looks like, and the contrastive loss that several share."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ashnets.config import LossConfig, ModelConfig
from ashnets.model import AshNet, Inputs, Vision
from ashnets.ranks import everyone, share


class Objective(nn.Module, ABC):
    """`needs_view`: whether `Inputs.view` must be there. `needs_answers`: whether `Inputs.answers` must be."""

    needs_view = False
    needs_answers = False

    def __init__(self, config: ModelConfig, losses: LossConfig) -> None:
        super().__init__()
        self.losses = losses

    @abstractmethod
    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log beside it), from one forward pass; w [M, N, D] are the text features. Where ranks share
        a batch it is a rank's part of them: their mean over ranks is that of the batch (`ashnets.ranks`)."""

    def begin(self, model: AshNet) -> None:
        """What is done before each training step, outside of its forward pass: nothing for most."""


class _Within(torch.autograd.Function):
    """value.clamp(least, most), whose gradient is kept from leading further out, and not from leading back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, least: float, most: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.limits = least, most
        return value.clamp(least, most)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ((value,), (least, most), g) = ctx.saved_tensors, ctx.limits, grads[0]
        out = ((value <= least) & (g > 0)) | ((value >= most) & (g < 0))
        return g.masked_fill(out, 0), None, None


class Temperature(nn.Module):
    """A temperature that is learned between `temperature_least` and 0.5; the start where that is the least."""

    def __init__(self, losses: LossConfig) -> None:
        super().__init__()
        start, self.least = losses.temperature, losses.temperature_least
        self.most = 0.5 if start > self.least else self.least
        self.value = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        return _Within.apply(self.value, self.least, self.most)


def same_image(inputs: Inputs) -> Bool[Tensor, "b M"]:
    """Which texts, of all ranks, are about which of this rank's images; images with one id are the same."""
    return inputs.image_ids[:, None] == everyone(inputs.image_ids[inputs.text_image], "texts")[None, :]


def same_text(inputs: Inputs) -> Bool[Tensor, "m B"]:
    """Which images, of all ranks, this rank's texts are about."""
    return inputs.image_ids[inputs.text_image][:, None] == everyone(inputs.image_ids, "images")[None, :]


def info_nce(
    logits: Float[Tensor, "B M"], positive: Bool[Tensor, "B M"], negatives: Float[Tensor, "B X"] | None = None
) -> Tensor:
    """Mean over rows of -(1 / |P|) sum_{j in P} log softmax(logits)_j over positives P, each against the negatives
    and itself.

    Positives do not compete with each other: what belongs together is never a negative. Rows without a positive do
    not count. negatives: logits of each row's negatives, by default those of `logits` that are not positive.
    """
    negatives = logits.masked_fill(positive, -torch.inf) if negatives is None else negatives
    loss = F.softplus(negatives.logsumexp(1, keepdim=True) - logits)  # = -log(exp(l) / (exp(l) + sum of negatives))
    count = positive.sum(1)
    per_row = (loss * positive).sum(1) / count.clamp(min=1)
    return share(per_row.sum(), (count > 0).sum())
