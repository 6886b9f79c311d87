"""Image-text matching (ITM): does this text fit this image, or is it a near miss (ALBEF, Li et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective, same_image, same_text
from ashnets.ranks import current, everyone, share


class ImageTextMatching(Objective):
    """Cross-entropy of `AshNet.match` over all pairs that fit, one image that does not for each text, and one text
    that does not for each image.

    What does not fit is drawn by softmax(z_i z_t^T / temperature) over what is of another image: the nearer, the more
    often. Images and texts without any are left out. The embeddings learn nothing from it. Where ranks share the batch
    it may be another rank's; each rank has the pairs of its own texts and images.
    """

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            images, texts = model.embed_images(vision.v), model.embed_texts(w, inputs.tokens)
            image_of = drawn(texts @ everyone(images, "images").T / self.losses.temperature, same_text(inputs))
            text_of = drawn(images @ everyone(texts, "texts").T / self.losses.temperature, same_image(inputs))
        has_image, has_text = (image_of >= 0).nonzero()[:, 0], (text_of >= 0).nonzero()[:, 0]
        split = current()
        first_image, first_text = (split.own_images.start, split.own_texts.start) if split else (0, 0)
        every = torch.arange(len(w), device=w.device)
        text = torch.cat([first_text + every, first_text + has_image, text_of[has_text]])
        image = torch.cat([first_image + inputs.text_image, image_of[has_image], first_image + has_text])
        fits = (torch.arange(len(text), device=w.device) < len(every)).long()
        v, w, padding = everyone(vision.v, "images"), everyone(w, "texts"), everyone(inputs.tokens.padding, "texts")
        if split:  # most images of the others are in no pair of this rank
            used, image = image.unique(return_inverse=True)
            v = v[used]
        found = model.match(w[text], padding[text], v, image)
        right = (found.argmax(1) == fits).float().sum()
        wrong = F.cross_entropy(found, fits, reduction="sum")
        return share(wrong, len(fits)), {"accuracy": share(right, len(fits))}


def drawn(logits: Tensor, excluded: Tensor) -> Tensor:
    """For each row [B] a column that is not `excluded` [B, M], drawn by the softmax of `logits` [B, M]; -1 where all
    are."""
    none = excluded.all(1)
    weights = logits.float().masked_fill(excluded, -torch.inf).masked_fill(none[:, None], 0).softmax(1)
    return torch.multinomial(weights, 1)[:, 0].masked_fill(none, -1)
