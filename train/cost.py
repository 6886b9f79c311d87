"""What training costs on paper: parameters, operations and memory, counted on one real step of a few images."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ashnets.config import ModelConfig
from ashnets.model import Inputs, parameters
from ashnets.objectives import OBJECTIVES
from ashnets.text import Tokens
from train.config import RunConfig
from train.run import Bundle

ADAM_BYTES = 16  # of a trained number: itself, its gradient, two moments, float32
PEAK = 989e12  # dense bf16 operations a second of an H100 SXM, NVIDIA's data sheet
SHARE = 0.4  # of the peak, as large transformers reach on one GPU


@dataclass(frozen=True, kw_only=True)
class Cost:
    """parameters: trained numbers by part. flops: of one image with its text, forward and backward, with all
    objectives; a multiplication and an addition are two. state_bytes: weights, gradients, AdamW's moments, averaged
    encoders and queues; activations come on top."""

    parameters: dict[str, int]
    flops: float
    state_bytes: int
    images: int

    @property
    def gpu_hours(self) -> float:
        """On paper, of one H100 at 40 % of its peak."""
        return self.flops * self.images / (PEAK * SHARE) / 3600

    def summary(self) -> dict[str, Any]:
        total = sum(self.parameters.values())
        return {
            "parameters": total,
            "parameters_by_part": self.parameters,
            "gigaflops_per_image": round(self.flops / 1e9, 2),
            "images": self.images,
            "state_gib": round(self.state_bytes / 2**30, 2),
            "gpu_hours_on_paper": round(self.gpu_hours, 2),
        }


def cost(config: RunConfig, images: int = 2, answers: int = 2) -> Cost:
    """Count one training step of `images` random images, and of so many answers where any are learned. The large model
    takes some 10 GiB and a minute for it."""
    torch.manual_seed(0)
    answered = any(OBJECTIVES[name].needs_answers for name in config.train.objectives)
    bundle = Bundle(config, answers=answers if answered else 0).train()
    inputs = random_inputs(config.model, images, config.train.texts_per_image, answers)
    with FlopCounterMode(display=False) as counter:
        bundle(inputs)[0].backward()
    held = sum(p.numel() * p.element_size() for p in bundle.parameters() if not p.requires_grad)
    held += sum(b.numel() * b.element_size() for b in bundle.buffers())
    parts = {name: parameters(part) for name, part in bundle.model.named_children()}
    return Cost(
        parameters={name: count for name, count in parts.items() if count},
        flops=counter.get_total_flops() / images,
        state_bytes=ADAM_BYTES * parameters(bundle) + held,
        images=config.train.steps * config.train.batch,
    )


def random_inputs(model: ModelConfig, images: int, texts: int = 1, answers: int = 2) -> Inputs:
    """Random images, each with so many texts of full length, which ask for one of so many answers."""
    size, length, many = model.concrete.image_size, model.text.length, model.fusion.images
    ids = torch.randint(4, model.text.vocabulary, (images * texts, length))
    bags = torch.randint(0, model.text.lexicon + 1, (images * texts, 20))
    return Inputs(
        images=torch.rand(many * images, 3, size, size) * 2 - 1,
        view=torch.rand(many * images, 3, size, size) * 2 - 1,
        tokens=Tokens(ids, torch.zeros_like(ids, dtype=torch.bool), bags),
        text_image=torch.arange(images).repeat_interleave(texts),
        image_ids=torch.arange(images),
        answers=torch.zeros(images * texts, dtype=torch.int64),
        scores=torch.zeros(images * texts, answers),
    )
