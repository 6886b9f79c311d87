"""Zero-shot classification: the class whose name is nearest to the picture (Radford et al. 2021)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ashnets.model import AshNet
from ashnets.text import TextCodec
from hw.errors import UserError
from train.data import ImageTextData
from train.evaluate import Evaluation, check_pictures, image_batches, images_of, visions
from train.metrics.retrieval import ranks
from train.ranks import joined_rows, own_part

TEMPLATES = ("{}",)
TEXTS = 256  # classes at a time


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
    if not templates:
        raise UserError('--templates are empty; give at least one, such as "a photo of a {}"')
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"template '{template}' needs {{}} once, where the class goes")
    check_pictures(model, data)
    model.eval()
    classes = sorted({text for i in range(len(data)) for text in data.texts(i)})
    column = {name: k for k, name in enumerate(classes)}
    parts = [classes[k : k + TEXTS] for k in range(0, len(classes), TEXTS)]
    names = torch.cat([_embedded(model, codec, part, templates) for part in parts])
    batches = own_part(list(image_batches(data, samples)))
    seen = visions(model, (images_of(data, indices, names.device) for indices in batches))
    found = []
    for indices, vision in zip(batches, seen, strict=True):
        scores = (model.embed_images(vision.v) @ names.T).float().cpu().numpy()
        relevant = np.zeros(scores.shape, bool)
        for row, i in enumerate(indices):
            relevant[row, [column[text] for text in data.texts(i)]] = True
        found.append(np.stack([ranks(scores, relevant), scores.argmax(1)], 1))
    placed, first = joined_rows(found).T
    metrics = {"accuracy": 100 * float(np.mean(placed == 0)), "top5": 100 * float(np.mean(placed < 5))}
    return Evaluation(
        metrics={**metrics, "classes": float(len(classes)), "images": float(len(placed))},
        predictions=first,
        names=classes,
    )


def _embedded(model: AshNet, codec: TextCodec, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """[N, K], the mean direction of each name in every template."""
    device = next(model.parameters()).device
    by_template = []
    for template in templates:
        tokens = codec.encode([template.replace("{}", name) for name in names]).to(device)
        by_template.append(model.embed_texts(model.text(tokens), tokens))
    return F.normalize(torch.stack(by_template).mean(0), dim=-1)
