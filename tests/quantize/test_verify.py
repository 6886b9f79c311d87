"""Counting mismatching spikes, and the comparison over batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ashnets.config import AbstractConfig
from ashnets.stack import SpikingStack
from hw.errors import BackendError, UserError
from quantize import QuantizedStack, lower
from quantize.verify import Joint, mismatching_spikes, verify


def test_every_unequal_spike_counts_once_by_layer():
    left = {"a": np.zeros((2, 3)), "b": np.ones((2, 3))}
    right = {"a": np.zeros((2, 3)), "b": np.ones((2, 3))}
    right["b"][0, 1] = right["b"][1, 2] = 0
    assert mismatching_spikes(left, right) == {"a": 0, "b": 2}


def test_layers_that_are_not_there_are_never_equal():
    with pytest.raises(BackendError, match="different layers"):
        mismatching_spikes({"a": np.zeros(2)}, {})
    with pytest.raises(BackendError, match="shapes"):
        mismatching_spikes({"a": np.zeros(2)}, {"a": np.zeros(3)})


def test_a_joint_that_compared_nothing_is_not_equal():
    nothing = Joint(left="qat", right="reference", samples=0, mismatches={"a": 0}, compared={"a": 0})
    assert (nothing.well, nothing.output_equal) == (False, None)
    assert replace(nothing, refused="it has delays").well
    some = replace(nothing, samples=1, compared={"a": 2})
    assert (some.well, some.output_equal) == (True, True)


def test_verify_counts_over_all_batches_and_finds_a_stack_that_differs():
    torch.manual_seed(3)
    stack = QuantizedStack(SpikingStack(AbstractConfig(steps=3, convs=((4, 1),), dense=(5,)), (2, 4, 4)).eval())
    program = lower(stack)
    batches = [(torch.rand(3, n, 2, 4, 4) < 0.5).float() for n in (4, 2)]
    (joint,) = verify(program, batches, {"qat": None}, stack=stack)
    assert (joint.samples, joint.total) == (6, 0)
    assert joint.compared == {"conv1": 3 * 6 * 4 * 16, "dense1": 3 * 6 * 5}
    with torch.no_grad():
        stack.layers.conv1.synapse.weight.mul_(-1)
    (joint,) = verify(program, batches, {"qat": None}, stack=stack)
    assert joint.mismatches["conv1"] > 0


def test_a_program_that_lava_cannot_hold_is_a_row_and_a_missing_lava_is_none(monkeypatch):
    torch.manual_seed(3)
    config = AbstractConfig(steps=3, convs=((4, 1),), dense=(5,), decays_per_channel=True)
    stack = SpikingStack(config, (2, 4, 4)).eval()
    with torch.no_grad():
        for layer in stack.neural_layers.values():
            layer.neuron.decay_v_logit.copy_(torch.linspace(-1, 1, len(layer.neuron.decay_v_logit)))
    program = lower(QuantizedStack(stack))
    batches = [(torch.rand(3, 2, 2, 4, 4) < 0.5).float()]
    lava, events = verify(program, batches, {"lava": None, "events": None})
    assert "differs by channel" in (lava.refused or "")
    assert (lava.samples, events.samples, events.total) == (0, 2, 0)

    def absent() -> None:
        raise UserError("backend 'lava' needs lava-nc")

    monkeypatch.setattr("hw.lava.backend.require_lava", absent)
    plain = lower(QuantizedStack(SpikingStack(AbstractConfig(steps=3, convs=(), dense=(5,)), (2, 4, 4)).eval()))
    with pytest.raises(UserError, match="needs lava-nc"):
        verify(plain, batches, {"lava": None})
