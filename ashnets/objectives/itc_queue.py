"""Image-text contrast with momentum: the negatives are embeddings of many earlier batches, made by averaged encoders,
which give soft targets as well (ALBEF, Li et al. 2021, arXiv 2107.07651)."""

from torch import Tensor

from ashnets.config import LossConfig, ModelConfig
from ashnets.model import AshNet, Inputs, Vision
from ashnets.momentum import MomentumEncoders, Queue
from ashnets.objectives.base import Objective, Temperature, info_nce
from ashnets.ranks import Of, everyone, share_of

SIDES: tuple[Of, Of] = ("images", "texts")


class QueuedContrast(Objective):
    """(L_i2t + L_t2i) / 2, each (1 - soft) InfoNCE(z k^T / tau) + soft CE(softmax(z_m k^T / tau), z k^T / tau).

    z embeds the batch, z_m does so by the averaged encoders, k are z_m of the other side and what its queue holds. Of
    one image no two are negatives of each other, in the queue neither.
    """

    def __init__(self, config: ModelConfig, losses: LossConfig) -> None:
        super().__init__(config, losses)
        self.temperature = Temperature(losses)
        self.momentum = MomentumEncoders(config, losses.momentum)
        self.images = Queue(losses.queue, config.embedding)
        self.texts = Queue(losses.queue, config.embedding)

    def begin(self, model: AshNet) -> None:
        self.momentum.follow(model)

    def forward(self, model: AshNet, inputs: Inputs, vision: Vision, w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        averaged = self.momentum(inputs)
        ids = inputs.image_ids, inputs.image_ids[inputs.text_image]
        new = [(everyone(averaged[k], of), everyone(ids[k], of)) for k, of in enumerate(SIDES)]
        queues = self.images, self.texts
        found = model.embed_images(vision.v), model.embed_texts(w, inputs.tokens)
        temperature, hard, loss = self.temperature(), 0.0, 0.0
        for side, other in ((0, 1), (1, 0)):
            keys, key_ids = queues[other].with_new(*new[other])
            logits = found[side] @ keys.T / temperature
            contrast = info_nce(logits, ids[side][:, None] == key_ids)
            target = (averaged[side] @ keys.T / temperature).softmax(1).detach()
            soft = share_of(-(target * logits.log_softmax(1)).sum(1).mean(), SIDES[side])
            hard = hard + contrast / 2
            loss = loss + ((1 - self.losses.soft) * contrast + self.losses.soft * soft) / 2
        if self.training:
            for queue, (values, of) in zip(queues, new, strict=True):
                queue.put(values, of)
        return loss, {"temperature": temperature.detach(), "contrast": hard.detach()}
