"""What an objective looks like, and the contrastive loss that several share."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ashnets.config import ModelConfig
from ashnets.model import AshNet, Inputs, Vision


class Objective(nn.Module, ABC):
    """`needs_view`: whether `Inputs.view` must be there. `needs_answers`: whether `Inputs.answers` must be."""

    needs_view = False
    needs_answers = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log beside it), from one forward pass; w [M, N, D] are the text features."""


class Temperature(nn.Module):
    """A learned temperature, 0.1 at first, kept within [0.1, 0.5]: a lower one learns small data by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.1))

    def forward(self) -> Tensor:
        return self.value.clamp(0.1, 0.5)


def info_nce(logits: Float[Tensor, "B M"], positive: Bool[Tensor, "B M"]) -> Tensor:
    """Mean over rows of -(1 / |P|) sum_{j in P} log softmax(logits)_j over positives P, each against the negatives
    and itself.

    Positives do not compete with each other: what belongs together is never a negative. Rows without a positive do
    not count.
    """
    negatives = logits.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)
    loss = F.softplus(negatives - logits)  # = -log(exp(l) / (exp(l) + sum of negatives))
    count = positive.sum(1)
    per_row = (loss * positive).sum(1) / count.clamp(min=1)
    return per_row.sum() / (count > 0).sum().clamp(min=1)
