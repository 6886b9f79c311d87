"""The joint between torch and the chip: a quantized stack spikes as its program does, every one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ashnets.config import AbstractConfig
from ashnets.stack import SpikingLayer, SpikingStack, layer_spikes
from hw.errors import UserError
from hw.simulate import open_backend
from quantize import QuantizedStack, lower
from quantize.exact import exact_synapse
from quantize.qat import folded_weight
from quantize.verify import mismatching_spikes


def trained_like(config: AbstractConfig, shape: tuple[int, int, int], seed: int) -> SpikingStack:
    """A stack whose norms, biases and decays are not at their initial values."""
    torch.manual_seed(seed)
    stack = SpikingStack(config, shape)
    for _ in range(3):
        stack((torch.rand(config.steps, 4, *shape) < 0.3).float())
    with torch.no_grad():
        for name, p in stack.named_parameters():
            if "neuron" in name:
                p.add_(torch.randn_like(p) * 0.2)
    return stack.eval()


@given(
    seed=st.integers(0, 2**31),
    steps=st.integers(1, 6),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    convs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3)), max_size=3),
    dense=st.lists(st.integers(1, 9), max_size=2),
    per_channel=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_program_from_qat_matches_reference_spike_for_spike(seed, steps, channels, size, convs, dense, per_channel):
    if not convs and not dense:
        convs = [(3, 1)]
    config = AbstractConfig(steps=steps, convs=tuple(convs), dense=tuple(dense), decays_per_channel=per_channel)
    stack = QuantizedStack(trained_like(config, (channels, *size), seed))
    s_in = (torch.rand(steps, 3, channels, *size) < 0.4).float()
    with torch.no_grad():
        qat = {name: s.numpy() for name, s in layer_spikes(stack, s_in).items()}
    reference = open_backend("reference", lower(stack)).run(s_in.numpy().astype(np.uint8), layers=True)
    assert sum(mismatching_spikes(qat, reference.layers).values()) == 0


def small_stack() -> QuantizedStack:
    return QuantizedStack(trained_like(AbstractConfig(steps=4, convs=((6, 2),), dense=(5,)), (3, 6, 6), 1))


def test_one_changed_weight_is_a_mismatch():
    """The comparison above can fail."""
    stack = small_stack()
    s_in = (torch.rand(4, 32, 3, 6, 6) < 0.4).float()
    program = lower(stack)
    program.layers[0].weight_int[0, 0, 1, 1] += 40
    with torch.no_grad():
        qat = {name: s.numpy() for name, s in layer_spikes(stack, s_in).items()}
    reference = open_backend("reference", program).run(s_in.numpy().astype(np.uint8), layers=True)
    assert mismatching_spikes(qat, reference.layers)["conv1"] > 0


def test_quantizing_folds_the_norm_and_keeps_the_float_layer_untouched():
    stack = trained_like(AbstractConfig(steps=4, convs=((6, 2),), dense=(5,)), (3, 6, 6), 1)
    before = {name: value.clone() for name, value in stack.state_dict().items()}
    quantized = QuantizedStack(stack)
    conv = stack.layers.conv1
    assert isinstance(conv, SpikingLayer)
    assert torch.equal(quantized.layers.conv1.synapse.weight, folded_weight(conv))
    with torch.no_grad():
        for p in quantized.parameters():
            p.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in stack.state_dict().items())


def test_int8_quantization_stays_close_to_the_float_stack():
    stack = trained_like(AbstractConfig(steps=4, convs=((8, 1),), dense=()), (3, 6, 6), 2)
    s_in = (torch.rand(4, 16, 3, 6, 6) < 0.4).float()
    with torch.no_grad():
        differing = (stack(s_in) != QuantizedStack(stack)(s_in)).float().mean()
    assert 0 < differing < 0.05


def test_the_scale_is_a_power_of_two_and_the_weights_are_int8():
    weight_int, scale = small_stack().layers.conv1.weight()
    assert torch.equal(torch.log2(scale), torch.log2(scale).round())
    assert torch.equal(weight_int, weight_int.round())
    assert 63 <= weight_int.abs().max() <= 127


def test_training_lowers_a_loss_through_the_integer_forward():
    stack = small_stack().train()
    s_in = (torch.rand(4, 16, 3, 6, 6) < 0.4).float()
    optimizer = torch.optim.Adam(stack.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = (stack(s_in).mean(0) - torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    lower(stack)  # and it still fits the chip


def test_autocast_does_not_touch_the_integers():
    stack, s_in = small_stack(), (torch.rand(4, 8, 3, 6, 6) < 0.4).float()
    plain = stack(s_in)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stack(s_in), plain)


def test_exact_products_equal_integer_arithmetic_and_have_the_usual_gradients():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    x = (torch.rand(5, 4, 9, 7) < 0.5).float().requires_grad_()
    weight = torch.randint(-128, 128, conv.weight.shape).float().requires_grad_()
    exact = exact_synapse(x, weight, conv)
    torchs = nn.functional.conv2d(x, weight, None, 2, 1, 1, 2)
    assert torch.equal(exact, torchs.double().round().float())
    (exact * exact).sum().backward()
    ours = x.grad, weight.grad
    x.grad = weight.grad = None
    (torchs * torchs).sum().backward()
    assert torch.allclose(ours[0], x.grad, rtol=1e-4)
    assert torch.allclose(ours[1], weight.grad, rtol=1e-4)


def test_a_layer_of_zeros_is_refused_by_name():
    stack = small_stack()
    with torch.no_grad():
        stack.layers.dense1.synapse.weight.zero_()
    with pytest.raises(UserError, match="layer 'dense1': all weights are zero"):
        lower(stack)
