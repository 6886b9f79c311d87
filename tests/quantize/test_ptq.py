"""Post-training quantization: each step makes its own error smaller; Brevitas' whole-model modes are refused."""

import pytest
import torch
from torch import nn

import quantize
from ashnets.config import AbstractConfig
from ashnets.stack import layer_spikes
from hw.errors import UserError
from quantize.ptq import filtered, steps_of, weight_modes
from tests.quantize.test_qat import trained_like
from train.digits import accuracy, load_digits, network, train

CONFIG = AbstractConfig(steps=6, convs=((8, 1),), dense=(12,))


@pytest.fixture(scope="module")
def case():
    stack = trained_like(CONFIG, (2, 6, 6), 0)
    return stack, (torch.rand(6, 64, 2, 6, 6) < 0.3).float()


def drive_error(stack, made, s, layer: str) -> float:
    """Mean squared error of the layer's input sums, on the input that the quantized layer gets."""
    index = list(stack.layers._modules).index(layer)
    for each in list(made.layers)[:index]:
        s = each(s)
    x = s.flatten(0, 1)
    real, quantized = stack.layers[index], made.layers[index]
    weight = quantized.synapse.quant_weight().value
    wanted = real.norm(real.synapse(x))
    found = nn.functional.conv2d(x, weight, padding=1) if weight.ndim == 4 else x @ weight.T
    return float((wanted - found).square().mean())


@torch.no_grad()
@pytest.mark.parametrize("method", ["gptq", "gpfq"])
@pytest.mark.parametrize("bits", ["int4", "int3"])
def test_rounding_by_recorded_inputs_beats_rounding_each_weight_by_itself(case, method, bits):
    stack, s = case
    plain, rounded = quantize.ptq(stack, s, bits, "plain"), quantize.ptq(stack, s, bits, method)
    for layer in ("conv1", "dense1"):
        assert drive_error(stack, rounded, s, layer) < 0.97 * drive_error(stack, plain, s, layer)


@torch.no_grad()
def test_the_corrected_bias_takes_the_mean_error_off_the_current(case):
    stack, s = case

    def mean_error(made) -> float:
        layer, quantized = stack.layers[0], made.layers[0]
        wanted = layer.norm(layer.synapse(s.flatten(0, 1))).unflatten(0, (6, 64))
        x = nn.functional.conv2d(s.flatten(0, 1), quantized.synapse.quant_weight().value, padding=1).unflatten(
            0, (6, 64)
        )
        decay = layer.neuron.params(4).decay_u
        shift = (quantized.neuron.bias - layer.neuron.bias).view(-1, 1, 1)
        return float((filtered(wanted, decay) - filtered(x, decay) - shift).mean((0, 1, 3, 4)).abs().max())

    assert mean_error(quantize.ptq(stack, s, "int2", "plain")) > 0.01
    assert mean_error(quantize.ptq(stack, s, "int2", "bias")) < 1e-5


def count_errors(stack, made, s) -> list[float]:
    wanted, found = (layer_spikes(each, s) for each in (stack, made))
    return [float((wanted[k].sum(0) - found[k].sum(0)).square().mean()) for k in wanted]


@torch.no_grad()
def test_a_balanced_threshold_brings_the_spike_counts_nearer(case):
    stack, s = case
    plain, balanced = (count_errors(stack, quantize.ptq(stack, s, "ternary", m), s) for m in ("plain", "balance"))
    assert balanced[0] < 0.95 * plain[0]
    assert balanced[1] <= plain[1]


@torch.no_grad()
@pytest.mark.parametrize("quantizer", ["int8", "int4", "int2"])
def test_no_bias_is_moved_where_that_takes_the_spike_counts_further_off(quantizer):
    """A mean current of 0 error need not be the right number of spikes: on some of these stacks it is worse."""
    for seed in range(6):
        stack = trained_like(AbstractConfig(steps=6, convs=((8, 1),)), (2, 6, 6), seed)
        s = (torch.rand(6, 64, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) < 0.3).float()
        plain, moved = (count_errors(stack, quantize.ptq(stack, s, quantizer, m), s)[0] for m in ("plain", "bias"))
        assert moved <= plain


def test_filtered_is_the_current_of_the_neuron():
    found = filtered(torch.tensor([1.0, 0, 0, 2]), torch.tensor(0.25))
    torch.testing.assert_close(found, torch.tensor([1, 0.75, 0.5625, 0.421875 + 2]))


@pytest.mark.parametrize("mode", ["gptq", "gpfq"])
def test_brevitas_whole_model_modes_are_refused_on_a_time_loop(case, mode):
    """They would see the first step only, and say nothing."""
    stack, s = case
    made = quantize.ptq(stack, s, "int4", "plain")
    with (
        torch.no_grad(),
        weight_modes()[mode](made, use_quant_activations=False) as running,
        pytest.raises(UserError, match=r"layer 'conv1': a hook waits.*use quantize.ptq\(..., method='gptq'\)"),
    ):
        running.model(s)


@pytest.mark.parametrize("method", ["gptq", "gpfq", "best"])
def test_ptq_leaves_no_hooks_and_buffers_behind(case, method):
    stack, s = case
    made, plain = quantize.ptq(stack, s, "int4", method), quantize.ptq(stack, s, "int4", "plain")
    assert list(made.state_dict()) == list(plain.state_dict())
    assert not any(module._forward_pre_hooks for module in made.modules())
    made(s)


@pytest.mark.parametrize("method", ["gptq", "gpfq"])
def test_weights_of_inputs_that_stayed_silent_in_the_calibration_are_kept(case, method):
    stack, s = case
    silent = s.clone()
    silent[:, :, 1] = 0
    weight_int, _ = quantize.ptq(stack, silent, "int4", method).layers[0].weight()
    assert (weight_int[:, 1] != 0).float().mean() > 0.3
    quantize.ptq(stack, torch.zeros_like(s), "int4", method)(s)


def test_a_method_is_named_right_or_refused():
    assert steps_of("plain") == ()
    assert steps_of("best") == ("gptq", "bias", "balance")
    for wrong in ("gtpq", "gptq+gpfq", "bias+bias", "+"):
        with pytest.raises(UserError, match=r"PTQ method .* is not known; choose plain, best"):
            steps_of(wrong)


def test_the_best_ptq_beats_the_plain_one_on_digits_at_few_bits():
    """One seed, 2 bits; the table over seeds and bits is `benchmarks.bits`."""
    data, net = load_digits(0), network(0)
    train(net, list(net.parameters()), data, epochs=15, rate=5e-3)
    spikes = data.train_spikes[:, :512]
    real, plain, best = (
        accuracy(made, data)
        for made in (net, quantize.ptq(net, spikes, "int2", "plain"), quantize.ptq(net, spikes, "int2", "best"))
    )
    assert real > 95
    assert best > plain + 1
    assert best > real - 4
