"""Image-text contrast (ITC): CLIP's symmetric loss, in which pairs of the same image are positives, never negatives."""

from torch import Tensor

from ashnets.config import LossConfig, ModelConfig
from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective, Temperature, info_nce, same_image


class ImageTextContrast(Objective):
    """(L_i2t + L_t2i) / 2, each (1 - soft) InfoNCE + soft CE(q, softmax(z_i z_t^T / temperature)).

    q = softmax(z_t z_t^T / soft_temperature), without gradient, lets an image be near to texts that resemble its own:
    "flag for Peru" is no more wrong than it must be for another flag (Radford et al. 2021; SoftCLIP, Gao et al. 2023).
    """

    soft_temperature = 0.1

    def __init__(self, config: ModelConfig, losses: LossConfig) -> None:
        super().__init__(config, losses)
        self.temperature = Temperature(losses)

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        texts = model.embed_texts(w, inputs.tokens)
        logits = model.embed_images(vision.v) @ texts.T / self.temperature()
        positive = same_image(inputs)
        hard = (info_nce(logits, positive) + info_nce(logits.T, positive.T)) / 2
        q = (texts @ texts.T / self.soft_temperature).softmax(1).detach()  # [M, M], text to text
        per_text = -(q * logits.T.log_softmax(1)[:, inputs.text_image]).sum(1).mean()
        per_image = -(q * logits.log_softmax(1)[inputs.text_image]).sum(1).mean()
        soft = self.losses.soft
        loss = (1 - soft) * hard + soft * (per_text + per_image) / 2
        return loss, {"temperature": self.temperature().detach(), "contrast": hard.detach()}
