"""Image-text matching (ITM): does this text fit this image, or is it a near miss (ALBEF, Li et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective, same_image


class ImageTextMatching(Objective):
    """Cross-entropy of `AshNet.match` over all pairs that fit, one image that does not for each text, and one text
    that does not for each image.

    What does not fit is drawn by softmax(z_i z_t^T / temperature) over what is of another image: the nearer, the more
    often. Images and texts without any are left out. The embeddings learn nothing from it.
    """

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            images, texts = model.embed_images(vision.v), model.embed_texts(w, inputs.tokens)
            logits = (images @ texts.T).float() / self.losses.temperature
            image_of, text_of = hard_pairs(logits, same_image(inputs))
        has_image, has_text = (image_of >= 0).nonzero()[:, 0], (text_of >= 0).nonzero()[:, 0]
        every = torch.arange(len(w), device=w.device)
        text = torch.cat([every, has_image, text_of[has_text]])
        image = torch.cat([inputs.text_image, image_of[has_image], has_text])
        fits = (torch.arange(len(text), device=w.device) < len(every)).long()
        found = model.match(w[text], inputs.tokens.padding[text], vision.v, image)
        right = (found.argmax(1) == fits).float().mean()
        return F.cross_entropy(found, fits), {"accuracy": right.detach()}


def hard_pairs(logits: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """For each text an image and for each image a text that are not `same` [B, M], drawn by the softmax of `logits`
    [B, M]: indices [M] and [B], -1 where all are the same."""

    def drawn(rows: Tensor, excluded: Tensor) -> Tensor:
        none = excluded.all(1)
        weights = rows.masked_fill(excluded, -torch.inf).masked_fill(none[:, None], 0).softmax(1)
        return torch.multinomial(weights, 1)[:, 0].masked_fill(none, -1)

    return drawn(logits.T, same.T), drawn(logits, same)
