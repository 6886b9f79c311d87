"""Image-text contrast (ITC): CLIP's symmetric loss, in which pairs of the same image are positives, never negatives.
The soft half goes by the likeness of texts alone."""

from torch import Tensor

from ashnets.config import LossConfig, ModelConfig
from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective, Temperature, info_nce, same_image, same_text
from ashnets.ranks import current, everyone, share_of


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
        texts, images = model.embed_texts(w, inputs.tokens), model.embed_images(vision.v)
        every_text, split = everyone(texts, "texts"), current()
        by_image = images @ every_text.T / self.temperature()  # [b, M]
        by_text, text_image = by_image.T, inputs.text_image  # [m, B], and the place of each text's image there
        if split:
            by_text = texts @ everyone(images, "images").T / self.temperature()
            text_image = everyone(text_image + split.own_images.start, "texts")
        hard = (info_nce(by_image, same_image(inputs)) + info_nce(by_text, same_text(inputs))) / 2
        q = (texts @ every_text.T / self.soft_temperature).softmax(1).detach()  # [m, M], text to text
        per_text = share_of(-(q * by_text.log_softmax(1)[:, text_image]).sum(1).mean(), "texts")
        per_image = share_of(-(q * by_image.log_softmax(1)[inputs.text_image]).sum(1).mean(), "texts")
        soft = self.losses.soft
        loss = (1 - soft) * hard + soft * (per_text + per_image) / 2
        return loss, {"temperature": self.temperature().detach(), "contrast": hard.detach()}
