"""Zero-shot classification: the class whose name is nearest to the picture (Radford et al. 2021)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ashnets.model import AshNet
from ashnets.text import TextCodec
from hw.errors import UserError
from train.data import ImageTextData
from train.evaluate import Evaluation, image_batches, images_of, visions
from train.metrics.retrieval import ranks
from train.ranks import joined_rows, own_part

TEMPLATES = ("{}",)


@torch.no_grad()
def evaluate_zero_shot(
    model: AshNet,
    data: ImageTextData,
    codec: TextCodec,
    templates: Sequence[str] = TEMPLATES,
    samples: int | None = None,
) -> Evaluation:
    """'accuracy' and 'top5' in percent over the first `samples` pictures. The classes are the texts of all the data; a
    class is the mean of its embeddings in every template, such as "a photo of a {}". Of equally near classes the right
    one comes last."""
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"template '{template}' needs {{}} once, where the class goes")
    model.eval()
    device = next(model.parameters()).device
    classes = sorted({text for i in range(len(data)) for text in data.texts(i)})
    by_template = []
    for template in templates:
        tokens = codec.encode([template.replace("{}", name) for name in classes]).to(device)
        by_template.append(model.embed_texts(model.text(tokens), tokens))
    names = F.normalize(torch.stack(by_template).mean(0), dim=-1)
    batches = list(image_batches(data, samples))
    seen = visions(model, (images_of(data, indices, device) for indices in own_part(batches)))
    scores = joined_rows([(model.embed_images(vision.v) @ names.T).float().cpu().numpy() for vision in seen])
    relevant = np.array([[name in data.texts(i) for name in classes] for indices in batches for i in indices])
    found = ranks(scores, relevant)
    metrics = {"accuracy": 100 * float(np.mean(found == 0)), "top5": 100 * float(np.mean(found < 5))}
    return Evaluation(
        metrics={**metrics, "classes": float(len(classes)), "images": float(len(scores))},
        predictions=scores.argmax(1),
        scores=scores,
        names=classes,
    )
