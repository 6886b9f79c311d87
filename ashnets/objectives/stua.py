"""STUA, spiking-to-text uni-alignment: the spiking side learns from text features; the text learns nothing from it.

ASH-Nets (arXiv 2308.09455) names the method and not its formula ("relies only on text features"); both readings are
ours. z are text embeddings, through which no gradient flows, and P heads of this objective.

    spike_to_text    InfoNCE from norm(P mean_l E_l), E the readout of an image's spikes, to the z of its texts; of a
                     pair of images the mean over both
    text_spike       the same with E the readout of the spikes that z itself makes, each token that the abstract encoder
                     reads being Q z: a text must be told from the others by its spikes
"""

from torch import Tensor, nn

from ashnets.config import LossConfig, ModelConfig
from ashnets.heads import EmbeddingHead
from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective, Temperature, info_nce, same_image
from ashnets.ranks import everyone
from ashnets.stack import unmoved_norms


class SpikeToText(Objective):
    """L = InfoNCE(norm(P mean_l E_l), z); texts of the same image are all positives."""

    def __init__(self, config: ModelConfig, losses: LossConfig) -> None:
        super().__init__(config, losses)
        self.head = EmbeddingHead(config)
        self.temperature = Temperature(losses)
        self.spread = nn.Linear(config.embedding, config.width) if losses.stua == "text_spike" else None

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z = model.embed_texts(w, inputs.tokens).detach()
        e, positive = vision.e.mean(1).unflatten(0, (-1, model.config.fusion.images)).mean(1), same_image(inputs)
        if self.spread is not None:
            tokens = self.spread(z)[:, None].expand(-1, vision.f0.shape[1], -1)
            with unmoved_norms(model.abstract):
                e, positive = model.abstract(tokens)[2].mean(1), positive[inputs.text_image]
        return info_nce(self.head(e) @ everyone(z, "texts").T / self.temperature(), positive), {}
