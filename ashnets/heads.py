"""Task heads: embeddings for retrieval, answers for VQA."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ashnets.config import ModelConfig
from ashnets.text import Tokens


class EmbeddingHead(nn.Module):
    """Features [M, D] -> unit vectors [M, embedding]; similarity is their dot product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Dropout(0.5), nn.Linear(config.width, config.embedding))

    def forward(self, x: Float[Tensor, "M D"]) -> Float[Tensor, "M K"]:
        return F.normalize(self.project(x), dim=-1)


class TokenEmbeddingHead(nn.Module):
    """(W, tokens) -> unit vectors [M, embedding]: z = norm(P mean_n W_n), the mean over the text's tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.width, config.embedding)

    def learn_lexicon(self, lexicon: dict[str, float]) -> None:
        """It has none."""

    def forward(self, w: Float[Tensor, "M N D"], tokens: Tokens) -> Float[Tensor, "M K"]:
        words = (~tokens.padding).unsqueeze(2).to(w.dtype)
        return F.normalize(self.project((w * words).sum(1) / words.sum(1)), dim=-1)


class SpellingEmbeddingHead(nn.Module):
    """(W, tokens) -> unit vectors [M, embedding]: z = norm(sum_g q_g E_g) over the words and n-grams g of a text.

    For data of a few thousand captions, which a transformer learns by heart: a word that was never seen in training
    ("baseball") shares n-grams with words that were. W is not used. q: see `ashnets.text.train_lexicon`.
    """

    rarity: Tensor
    dropped = 0.4  # so that no single spelling carries a text

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.text.lexicon
        self.spellings = nn.EmbeddingBag(size + 1, config.embedding, mode="sum", padding_idx=0)
        nn.init.normal_(self.spellings.weight, std=0.02)
        with torch.no_grad():
            self.spellings.weight[0] = 0
        self.register_buffer("rarity", torch.zeros(size + 1))

    def learn_lexicon(self, lexicon: dict[str, float]) -> None:
        """Take over the lexicon's weights; they are part of the model's from then on."""
        self.rarity[1 : len(lexicon) + 1] = torch.tensor(list(lexicon.values()))

    def forward(self, w: Float[Tensor, "M N D"], tokens: Tokens) -> Float[Tensor, "M K"]:
        q = F.dropout(self.rarity[tokens.bags], self.dropped, self.training)
        return F.normalize(self.spellings(tokens.bags, per_sample_weights=q), dim=-1)


class AnswerHead(nn.Module):
    """(h, v) -> logits: h [M, K, D] is [CLS] of the cross-modal encoder for each of a text's K images, v [M, K, D] the
    mean visual token of each, A the answers.

        logits = MLP([h_1 ; tanh(P h_1) * tanh(Q v_1) ; h_2 ; ...])

    The product lets a question's word be compared with what is seen ("is there a red shape?"), which sums learn slowly
    (low-rank bilinear pooling, Kim et al. 2017). Of a pair each image is read with the text by itself (UNITER, Chen et
    al. 2020): what a model learned to see in single images is of use at once, and the order tells left from right.
    """

    def __init__(self, config: ModelConfig, answers: int) -> None:
        super().__init__()
        width = config.width
        self.from_text, self.from_vision = nn.Linear(width, width), nn.Linear(width, width)
        self.classify = nn.Sequential(
            nn.Linear(2 * width * config.fusion.images, 2 * width),
            nn.GELU(),
            nn.LayerNorm(2 * width),
            nn.Linear(2 * width, answers),
        )

    def forward(self, h: Float[Tensor, "M K D"], v: Float[Tensor, "M K D"]) -> Float[Tensor, "M A"]:
        product = self.from_text(h).tanh() * self.from_vision(v).tanh()
        return self.classify(torch.cat([h, product], -1).flatten(1))
