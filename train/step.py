"""What one step of training is given: its learning rate, its seed and its loss."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from ashnets.model import Inputs
from ashnets.ranks import among, share_of
from train.config import TrainConfig
from train.run import Bundle


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine that reaches zero after `steps`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def seed_step(seed: int, step: int, *rank: int) -> None:
    """Seed torch for one step: its dropout, and what its objectives draw. rank: which of several ranks draws."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, *rank]).generate_state(1, np.uint64)[0]))


class StepLoss(nn.Module):
    """inputs -> (the weighted sum of the objectives, what is logged of them, without gradient). teacher: the float
    stack whose firing rates a quantized one is drawn to, with weight `distill`."""

    def __init__(self, bundle: Bundle, teacher: nn.Module | None, distill: float) -> None:
        super().__init__()
        self.bundle, self.distill = bundle, distill
        self.teacher = [teacher] if teacher is not None else []  # not a module of this one: it is not trained

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        total, values, vision = self.bundle(inputs)
        with among(inputs.split):
            values = {
                "rate_in": share_of(vision.s_in.mean(), "images"),
                "rate": share_of(vision.s_out.mean(), "images"),
                **values,
            }
            for teacher in self.teacher:
                with torch.no_grad():
                    wanted = teacher(vision.s_in).mean(0)
                values["distill"] = share_of((vision.s_out.mean(0) - wanted).square().mean(), "images")
                total = total + self.distill * values["distill"]
        return total, {name: value.detach() for name, value in values.items()}
