"""The joint between torch and the chip: a quantized stack spikes as its program does, every one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ashnets.config import AbstractConfig
from ashnets.neurons import CubaLIF
from ashnets.stack import SpikingLayer, SpikingStack, layer_spikes
from hw.errors import UserError
from hw.program import Dense, SpikingProgram
from hw.simulate import open_backend
from quantize import QuantizedStack, as_stack, from_program, lower, ptq
from quantize.exact import exact_synapse
from quantize.integer_lif import quantize_params
from quantize.qat import QuantizedLayer, folded_weight
from quantize.quantizers import WeightQuantizer
from quantize.verify import mismatching_spikes, verify


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


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("bias", 5000.0, r"bias_mant is 5000, Loihi holds -4096..4095; rescale"),
        ("bias", -5000.0, r"bias_mant is -5000, Loihi holds"),
        ("v_th", 200_000.0, r"v_th_mant is 200000, Loihi holds 0..131071"),
        ("v_th", -3.0, r"v_th_mant is -3, Loihi holds"),
    ],
)
def test_a_value_beyond_the_chip_is_refused_where_training_did_not_drive_it_there(key, value, reason):
    network = nn.Sequential(nn.Linear(6, 5, bias=False), CubaLIF(5))
    with torch.no_grad():
        network[0].weight.fill_(1 / 64)
        getattr(network[1], key).fill_(value / 8192)  # 8192: int8 takes 2**-13 as its scale then
    s = (torch.rand(4, 8, 6) < 0.4).float()
    stack = QuantizedStack(as_stack(network, (6,), 4), "int8")
    assert all(joint.well for joint in verify(lower(stack), [s], {"qat": None}, stack=stack))
    for make in (lambda: lower(stack, clamped=False), lambda: ptq(network, s, "int8", "plain")):
        with pytest.raises(UserError, match=f"layer 0 '0': {reason}"):
            make()


def test_a_membrane_without_leak_stays_one():
    layer = Dense(name="a", weight_int=np.array([[127, 3]]), decay_u_int=9, decay_v_int=0, v_th_mant=64)
    program = SpikingProgram(input_shape=(2,), steps=3, layers=(layer,))
    assert lower(ptq(from_program(program), torch.ones(3, 1, 2), "int8", "plain")).layers[0].decay_v_int == 0


@pytest.mark.parametrize("quantizer", ["int8", "int4"])
@pytest.mark.parametrize("key", ["weight", "bias"])
def test_values_that_are_no_numbers_are_refused_by_layer(key, quantizer):
    network = nn.Sequential(nn.Linear(6, 5, bias=False), CubaLIF(5))
    s = torch.ones(4, 1, 6)
    stack = ptq(network, s, quantizer, "plain")
    for odd, part in (
        (network, network[key == "bias"]),
        (stack, stack.layers[0].get_submodule("neuron" if key == "bias" else "synapse")),
    ):
        with torch.no_grad():
            getattr(part, key)[0] = torch.nan
        with pytest.raises(UserError, match=rf"layer '0': \w+\.{key} holds nan, the chip holds finite values"):
            lower(odd) if odd is stack else ptq(odd, s, quantizer, "plain")


def test_decays_at_a_tie_are_integers_that_do_not_hang_on_the_processor(monkeypatch):
    """Next to a tie the last bit of a float32 sigmoid decides, and processors differ in it."""
    ties = torch.special.logit((torch.arange(4096, dtype=torch.float64) + 0.5) / 4096).float()
    logits = torch.cat([ties.view(torch.int32) + k for k in range(-8, 9)]).view(torch.float32)
    channels = len(logits)
    expected = ((1 / (1 + np.exp(-logits.numpy().astype(np.float64)))).astype(np.float32) * 4096).round()
    neuron = CubaLIF(channels, per_channel=True)
    with torch.no_grad():
        neuron.decay_v_logit.copy_(logits)
    layer = SpikingLayer(nn.Linear(1, channels, bias=False), neuron, nn.Identity())
    quantized = QuantizedLayer("a", layer, WeightQuantizer.named("int8"))
    np.testing.assert_array_equal(quantized.integers().neuron.decay_v_int.numpy(), expected)
    taken, names = [], QuantizedLayer.forward.__globals__
    monkeypatch.setitem(names, "integer_cuba_lif", lambda a, scale, p, _: taken.append(quantize_params(p, scale)) or a)
    quantized(torch.ones(1, 1, 1))
    np.testing.assert_array_equal(taken[0].decay_v_int.reshape(-1).numpy(), np.clip(expected, 0, 4096))
