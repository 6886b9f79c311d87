"""Chip in the loop: the chip's spikes forward, the surrogate's gradients backward, and training for a chip's flaws."""

import numpy as np
import pytest
import torch

from ashnets.config import AbstractConfig
from ashnets.stack import layer_spikes
from hw import UserError
from hw.simulate import open_backend
from quantize import QuantizedStack, lower
from quantize.loop import ChipInTheLoop
from tests.quantize.test_qat import trained_like

CONFIG = AbstractConfig(steps=4, channels=3, convs=((6, 2), (5, 1)), dense=(12,))


@pytest.fixture
def stack() -> QuantizedStack:
    made = trained_like(CONFIG, (3, 6, 6), 1)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if name.endswith("neuron.bias"):
                p.add_(0.3)  # so that every layer spikes
    return QuantizedStack(made)


def spikes(samples: int = 5) -> torch.Tensor:
    return (torch.rand(4, samples, 3, 6, 6) < 0.4).float()


def gradients(stack: QuantizedStack, s: torch.Tensor) -> dict[str, torch.Tensor]:
    stack.zero_grad()
    (stack(s).mean(0) * torch.linspace(-1, 1, 12)).sum().backward()
    return {name: p.grad.clone() for name, p in stack.named_parameters() if p.grad is not None}


def test_a_perfect_chip_in_the_loop_changes_neither_spikes_nor_gradients(stack):
    s = spikes()
    expected, truth = stack(s), gradients(stack, s)
    assert expected.any()
    for backend in ("reference", "events"):
        stack.chip = ChipInTheLoop(backend)
        assert torch.equal(stack(s), expected)
        found = gradients(stack, s)
        assert found.keys() == truth.keys()
        assert all(torch.equal(found[name], truth[name]) for name in truth)
    assert sum(float(g.abs().sum()) for g in truth.values()) > 0


def test_the_output_is_the_flawed_chips_and_each_layer_learns_from_the_chips_spikes(stack):
    s, name = spikes(), "imperfect:dead=0.2,stuck=0.1,spread=0.2,seed=1"
    chip = open_backend(name, lower(stack)).run(s.numpy().astype(np.uint8), layers=True)
    perfect = stack(s)
    stack.chip = ChipInTheLoop(name)
    found = stack(s)
    assert torch.equal(found, torch.from_numpy(chip.output).float())
    assert not torch.equal(found, perfect)
    # The last layer's gradient is that of the layer alone, fed with what the chip's layer before it gave.
    last = list(stack.layers.named_children())[-1]
    before = torch.from_numpy(chip.layers["conv2"]).float().flatten(2)
    whole = gradients(stack, s)
    stack.zero_grad()
    (last[1](before).mean(0) * torch.linspace(-1, 1, 12)).sum().backward()
    for key, p in last[1].named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, whole[f"layers.{last[0]}.{key}"], rtol=1e-5, atol=1e-7)


def test_training_through_a_flawed_chip_wins_back_what_it_cost(stack):
    """Towards the rates of the perfect chip: the distance shrinks on the flawed chip."""
    s, name = spikes(40), "imperfect:dead=0.1,stuck=0.05,spread=0.2,seed=3"
    with torch.no_grad():
        target = stack(s).mean(0)
    stack.chip = ChipInTheLoop(name)
    optimizer = torch.optim.Adam(stack.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = (stack(s).mean(0) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.005
    assert np.mean(losses[-5:]) < 0.75 * losses[0]


def test_an_unknown_chip_is_refused_at_once():
    with pytest.raises(UserError, match="backend 'odd' is not known"):
        ChipInTheLoop("odd")


def test_layer_spikes_are_those_of_torch_even_with_a_chip(stack):
    stack.chip = ChipInTheLoop("imperfect:dead=1")
    assert any(v.any() for v in layer_spikes(stack, spikes()).values())
