"""Random batches for a model of any configuration."""

import torch

from ashnets.model import Inputs
from ashnets.text import Tokens


def tokens(ids: torch.Tensor, padding: torch.Tensor) -> Tokens:
    """Tokens with some spellings."""
    return Tokens(ids, padding, torch.randint(1, 9, (len(ids), 3)))


def inputs(config, images: int = 6, texts: int = 8) -> Inputs:
    size = config.concrete.image_size
    return Inputs(
        images=torch.rand(images, 3, size, size) * 2 - 1,
        view=torch.rand(images, 3, size, size) * 2 - 1,
        tokens=tokens(
            torch.randint(4, config.text.vocabulary, (texts, 5)),
            torch.tensor([[False] * 4 + [k % 2 == 0] for k in range(texts)]),
        ),
        text_image=torch.arange(texts) % images,
        image_ids=torch.tensor([0, 1, 2, 3, 4, 4])[:images],
        answers=torch.randint(0, 5, (texts,)),
        scores=torch.randint(0, 2, (texts, 5)).float(),
    )
