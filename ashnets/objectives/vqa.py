"""Visual question answering as classification over the answers that the training data holds."""

import torch.nn.functional as F
from torch import Tensor

from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives.base import Objective
from ashnets.ranks import share, share_of


class AnswerCrossEntropy(Objective):
    """Cross-entropy of the answer logits, over the questions whose answer the model can give; logs the share of right
    answers in the batch."""

    needs_answers = True

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if inputs.answers is None:
            raise ValueError("vqa needs answers; Inputs.answers is None")
        logits = model.answer(w, inputs.tokens.padding, vision.v, inputs.text_image)
        right = (logits.argmax(1) == inputs.answers).float().mean()
        wrong = F.cross_entropy(logits, inputs.answers, ignore_index=-1, reduction="sum")
        return share(wrong, (inputs.answers >= 0).sum()), {"accuracy": share_of(right.detach(), "texts")}


class SoftAnswers(Objective):
    """Every answer judged for itself against what it is worth (Teney et al. 2018): with p = sigmoid(logits) [M, A],

        loss = -1/M sum_m sum_a  y_ma log p_ma + (1 - y_ma) log(1 - p_ma)

    Logs the mean worth of the answers given, which is VQA's accuracy but for its rounding.
    """

    needs_answers = True

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if inputs.scores is None:
            raise ValueError("vqa_soft needs scores; Inputs.scores is None")
        logits = model.answer(w, inputs.tokens.padding, vision.v, inputs.text_image)
        worth = inputs.scores.gather(1, logits.argmax(1, keepdim=True)).mean()
        loss = F.binary_cross_entropy_with_logits(logits, inputs.scores, reduction="sum") / len(logits)
        return share_of(loss, "texts"), {"accuracy": share_of(worth.detach(), "texts")}
