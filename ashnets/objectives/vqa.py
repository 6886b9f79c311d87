"""Visual question answering as classification over the answers that the training data holds."""

import torch.nn.functional as F
from torch import Tensor

from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective


class AnswerCrossEntropy(Objective):
    """Cross-entropy of the answer logits; logs the share of right answers in the batch."""

    needs_answers = True

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if inputs.answers is None:
            raise ValueError("vqa needs answers; Inputs.answers is None")
        logits = model.answer(w, inputs.tokens.padding, vision.v[inputs.text_image])
        right = (logits.argmax(1) == inputs.answers).float().mean()
        return F.cross_entropy(logits, inputs.answers), {"accuracy": right.detach()}
