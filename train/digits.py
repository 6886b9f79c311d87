"""The worked example of bringing one's own network: scikit-learn's digits, 8x8 images of ten classes, on a small CUBA
network that is plain torch."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ashnets.neurons import CubaLIF

STEPS, CLASSES, TEST_SHARE = 8, 10, 0.3
_GAIN = 10.0  # from firing rates to logits


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Spikes [T, B, 64] and labels [B] of two halves of the data, which share no image."""

    train_spikes: Tensor
    train_labels: Tensor
    test_spikes: Tensor
    test_labels: Tensor


def load_digits(seed: int = 0) -> Digits:
    """The 1,797 images, split by `seed` into 70 % and 30 %, each class alike."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    parts = train_test_split(images, labels, test_size=TEST_SHARE, random_state=seed, stratify=labels)
    train, test, train_labels, test_labels = (torch.as_tensor(part) for part in parts)
    return Digits(
        train_spikes=encode(train),
        train_labels=train_labels.long(),
        test_spikes=encode(test),
        test_labels=test_labels.long(),
    )


def encode(images: Tensor, steps: int = STEPS) -> Tensor:
    """Grey levels 0..16 [B, 64] -> spikes [T, B, 64], as many as level T / 16, evenly spread:

    s[t] = floor((t + 1) level / 16) - floor(t level / 16)
    """
    level = images.float() / 16
    passed = [torch.floor(t * level + 1e-6) for t in range(steps + 1)]
    return torch.stack([later - sooner for sooner, later in pairwise(passed)])


def network(seed: int = 0, hidden: int = 64) -> nn.Sequential:
    """64 -> hidden -> 10 CUBA-LIF neurons, untrained."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, hidden, bias=False),
        CubaLIF(hidden, decay_u=0.5, decay_v=0.25),
        nn.Linear(hidden, CLASSES, bias=False),
        CubaLIF(CLASSES, decay_u=0.5, decay_v=0.25),
    )


def train(
    spiking: Callable[[Tensor], Tensor] | nn.Module,
    parameters: list[nn.Parameter],
    data: Digits,
    *,
    epochs: int,
    rate: float,
    seed: int = 0,
    teacher: nn.Module | None = None,
) -> None:
    """Cross entropy of the spike counts; with a teacher, half of it towards the teacher's counts (distillation)."""
    shuffle = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_labels), generator=shuffle).split(64):
            spikes = data.train_spikes[:, batch]
            logits = counts(spiking(spikes))
            loss = F.cross_entropy(logits, data.train_labels[batch])
            if teacher is not None:
                with torch.no_grad():
                    taught = counts(teacher(spikes)).softmax(1)
                loss = (loss + F.cross_entropy(logits, taught)) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()


def counts(spikes: Tensor) -> Tensor:
    """Logits [B, 10] of output spikes [T, B, 10]: the mean over time, times a gain."""
    return _GAIN * spikes.mean(0)


@torch.no_grad()
def accuracy(spiking: Callable[[Tensor], Tensor] | nn.Module, data: Digits) -> float:
    """Percent of the test images whose class has the most spikes; of classes with as many, the first."""
    given = spiking(data.test_spikes).sum(0).argmax(1)
    return 100 * int((given == data.test_labels).sum()) / len(given)
