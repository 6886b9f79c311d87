"""STUA, spiking-to-text uni-alignment: the spiking side learns from text features; the text learns nothing from it.

ASH-Nets (arXiv 2308.09455) names the method and not its formula; this reading, `spike_to_text`, is ours:
one-directional InfoNCE from the pooled readout E to the text embeddings, through which no gradient flows.
"""

from torch import Tensor

from ashnets.config import ModelConfig
from ashnets.heads import EmbeddingHead
from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective, Temperature, info_nce


class SpikeToText(Objective):
    """L = InfoNCE(norm(P mean_l E_l), stop_gradient(text embedding)); captions of the same image are all positives."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.head = EmbeddingHead(config)
        self.temperature = Temperature()

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.head(vision.e.mean(1)) @ model.embed_texts(w, inputs.tokens).detach().T / self.temperature()
        positive = inputs.image_ids[:, None] == inputs.image_ids[inputs.text_image][None, :]
        return info_nce(logits, positive), {}
