"""Masked language modelling (MLM) with the image in sight: words that are hidden are told from the rest and from what
is seen (BERT, Devlin et al. 2019; ALBEF, Li et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ashnets.config import LossConfig, ModelConfig
from ashnets.fusion import groups_of
from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective
from ashnets.ranks import share
from ashnets.text import Tokens


class MaskedLanguage(Objective):
    """Mean over hidden tokens n of -log softmax(E g(h_n) + b)_{token n}: h the cross-modal encoder's tokens, g a layer
    of its own, E the vectors of the text encoder's vocabulary.

    Each token is hidden with probability `masked`, those that frame and fill a text never. Of what is hidden, 80 % is
    shown as the mask, 10 % as any other token and 10 % as it is.
    """

    def __init__(self, config: ModelConfig, losses: LossConfig) -> None:
        super().__init__(config, losses)
        self.special, self.vocabulary = config.text.special, config.text.vocabulary
        width = config.width
        self.layer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(self.vocabulary))

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        shown, hidden = self.hide(inputs.tokens)
        groups = groups_of(inputs.text_image, len(vision.v))
        h = model.cross(model.text(shown), shown.padding, vision.v, groups)
        logits = self.layer(h[hidden]) @ model.text.embedding.T + self.bias
        wanted = inputs.tokens.ids[hidden]
        right, count = (logits.argmax(1) == wanted).float().sum(), hidden.sum()
        return share(F.cross_entropy(logits, wanted, reduction="sum"), count), {"accuracy": share(right, count)}

    def hide(self, tokens: Tokens) -> tuple[Tokens, Tensor]:
        """(tokens as they are shown, which of them are to be told [M, N])."""
        ids = tokens.ids
        ordinary = ~torch.isin(ids, torch.tensor(self.special, device=ids.device))
        hidden = ordinary & (torch.rand(ids.shape, device=ids.device) < self.losses.masked)
        lot = torch.rand(ids.shape, device=ids.device)
        anything = torch.randint_like(ids, self.vocabulary)
        shown = torch.where(hidden & (lot < 0.8), self.special[3], ids)
        shown = torch.where(hidden & (lot >= 0.9), anything, shown)
        return tokens._replace(ids=shown), hidden
