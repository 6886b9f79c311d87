"""Task heads: embeddings for retrieval, answers for VQA."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ashnets.config import ModelConfig


class EmbeddingHead(nn.Module):
    """Features [M, D] -> unit vectors [M, embedding]; similarity is their dot product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.width, config.embedding)

    def forward(self, x: Float[Tensor, "M D"]) -> Float[Tensor, "M K"]:
        return F.normalize(self.project(x), dim=-1)


class AnswerHead(nn.Sequential):
    """[CLS] of the cross-modal encoder [M, D] -> one logit for each answer of the vocabulary [M, A]."""

    def __init__(self, config: ModelConfig, answers: int) -> None:
        width = config.width
        super().__init__(nn.Linear(width, 2 * width), nn.GELU(), nn.LayerNorm(2 * width), nn.Linear(2 * width, answers))
