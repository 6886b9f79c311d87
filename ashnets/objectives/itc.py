"""Image-text contrast (ITC): CLIP's symmetric loss, in which pairs of the same image are positives, never negatives."""

from torch import Tensor

from ashnets.config import ModelConfig
from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective, Temperature, info_nce


class ImageTextContrast(Objective):
    """(L_i2t + L_t2i) / 2 over cosine similarities / temperature (Radford et al. 2021; positives as in ALBEF)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.temperature = Temperature()

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model.embed_images(vision.v) @ model.embed_texts(w, inputs.tokens).T / self.temperature()
        positive = inputs.image_ids[:, None] == inputs.image_ids[inputs.text_image][None, :]
        loss = (info_nce(logits, positive) + info_nce(logits.T, positive.T)) / 2
        return loss, {"temperature": self.temperature().detach()}
