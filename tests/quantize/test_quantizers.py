"""Every weight format and scale: integers that the chip holds, the same in Brevitas, the program and Lava."""

import copy

import numpy as np
import pytest
import torch

from ashnets.config import AbstractConfig
from ashnets.stack import layer_spikes
from hw import UserError
from hw.netx_file import write_net
from hw.netx_reader import read_net
from hw.simulate import open_backend
from quantize import QuantizedStack, lower
from quantize.errors import layer_errors, refuse_crushed, stack_errors
from quantize.quantizers import FORMATS, SCALES, WeightQuantizer, quantizers_of
from quantize.verify import mismatching_spikes
from tests.quantize.test_qat import trained_like

CONFIG = AbstractConfig(steps=4, channels=3, convs=((6, 2),), dense=(9, 5))
LAYERS = ["conv1", "dense1", "dense2"]
HELD = {
    "int8": range(-127, 128),
    "even8": range(-128, 127, 2),
    "int6": range(-128, 128, 4),
    "int4": range(-128, 128, 16),
    "int3": range(-128, 128, 32),
    "int2": range(-128, 128, 64),
    "ternary": range(-64, 65, 64),
}
EVERY = [f"{name}:{scale}" for name in FORMATS for scale in SCALES]


def stack(quantizer: str, seed: int = 1) -> QuantizedStack:
    made = trained_like(CONFIG, (3, 6, 6), seed)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if name.endswith("neuron.bias"):
                p.add_(0.6)  # so that every layer spikes
    return QuantizedStack(made, quantizer)


def spikes(samples: int = 16) -> torch.Tensor:
    return (torch.rand(4, samples, 3, 6, 6) < 0.4).float()


@pytest.mark.parametrize("name", EVERY)
def test_the_chip_holds_the_integers_and_spikes_as_torch_does(name):
    made, s = stack(name), spikes()
    with torch.no_grad():
        found = {layer: value.numpy() for layer, value in layer_spikes(made, s).items()}
    program = lower(made)
    truth = open_backend("reference", program).run(s.numpy().astype(np.uint8), layers=True)
    assert sum(mismatching_spikes(found, truth.layers).values()) == 0
    for layer in program.synaptic:
        assert set(np.unique(layer.weight_int)) <= set(HELD[name.partition(":")[0]])
        quantized = made.layers.get_submodule(layer.name)
        _, scale = quantized.weight()
        assert float(torch.log2(scale)) == round(float(torch.log2(scale)))
        if quantized.quantizer.scale != "max":
            step = quantized.quantizer.holds.step
            assert float(scale) == quantized.quantizer.best_scale(quantized.synapse.weight.detach()) / step


def test_a_stack_of_mixed_formats_is_the_same_in_its_net_file_and_in_lava(tmp_path):
    made, s = stack("conv1=int4,dense1=even8,*=ternary"), spikes(3).numpy().astype(np.uint8)
    program = lower(made)
    again = read_net(write_net(program, tmp_path / "a.net"), steps=4, input_shape=(3, 6, 6))
    for one, other in zip(program.synaptic, again.synaptic, strict=True):
        np.testing.assert_array_equal(one.weight_int, other.weight_int)
    truth = open_backend("reference", program).run(s, layers=True)
    lava = open_backend("lava", program).run(s, layers=True)
    assert sum(mismatching_spikes(lava.layers, truth.layers).values()) == 0
    assert all(value.any() for value in truth.layers.values())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("outlier", [0.0, 7.0])
def test_mse_finds_the_best_power_of_two(name, outlier):
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(3)) * 0.3
    weight[0, 0] += outlier
    held = torch.tensor(HELD[name]).double()

    def error(scale: float) -> float:  # to the nearest of all values that there are
        return float(((weight.double()[..., None] - held * scale).abs().min(-1).values ** 2).sum())

    best = min((2.0**e for e in range(-20, 6)), key=error)
    quantizer = WeightQuantizer.named(f"{name}:mse")
    assert quantizer.best_scale(weight) == best * quantizer.holds.step


def test_a_trained_scale_learns_and_one_of_mse_stays_and_both_survive_a_checkpoint():
    for name, learns in (("int4:trained", True), ("int4:mse", False)):
        made = stack(name).train()
        parameters = dict(made.named_parameters())
        scales = [key for key in parameters if key.endswith("scaling_impl.value")]
        assert len(scales) == len(LAYERS)
        before = {key: parameters[key].detach().clone() for key in scales}
        optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=0.05)
        for _ in range(10):
            loss = (made(spikes()).mean(0) - torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(torch.equal(before[key], parameters[key]) != learns for key in scales)
        partial = {key: p.detach().clone() for key, p in made.named_parameters() if p.requires_grad}
        made.load_state_dict(partial, strict=False)  # as an average of the trained weights is loaded and taken back
        assert all(made.get_parameter(key) is parameters[key] for key in scales)
        other = stack(name, seed=2)
        other.load_state_dict(made.state_dict())
        for layer in LAYERS:
            one, two = (x.layers.get_submodule(layer).integers() for x in (made, other))
            assert torch.equal(one.weight_int, two.weight_int)
        assert torch.equal(other.eval()(s := spikes()), copy.deepcopy(made).eval()(s))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("int8", ["int8"] * 3),
        ("4", ["int4"] * 3),
        ("even8:mse", ["even8:mse"] * 3),
        ("int4:mse", ["int4"] * 3),
        ("conv1=8,*=ternary", ["int8", "ternary", "ternary"]),
        ("conv1=int6, dense1=3:trained, dense2=int2:max", ["int6", "int3:trained", "int2:max"]),
    ],
)
def test_what_a_quantizer_may_be_called(spec, expected):
    found = quantizers_of(spec, LAYERS)
    assert [str(found[layer]) for layer in LAYERS] == expected
    assert {name: str(WeightQuantizer.named(str(q))) for name, q in found.items()} == dict(
        zip(LAYERS, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("int5", "quantizer 'int5' is not known; give FORMAT or FORMAT:SCALE, with a format of int8, even8"),
        ("int8:best", "quantizer 'int8:best' is not known"),
        ("", "quantizer '' is not known"),
        ("conv1=int8", "says nothing of layer 'dense1'; add dense1=NAME or \\*=NAME"),
        ("conv1=int4,*=int8,conv1=int8", "says twice what a layer's is"),
        ("conv9=int8,*=int4", "there is no layer 'conv9'; the layers are conv1, dense1, dense2"),
    ],
)
def test_what_it_may_not_be_called(spec, message):
    with pytest.raises(UserError, match=message):
        quantizers_of(spec, LAYERS)


def test_an_outlier_that_leaves_nothing_of_a_layer_is_refused_by_name():
    made = trained_like(CONFIG, (3, 6, 6), 1)
    with torch.no_grad():
        made.layers.dense1.synapse.weight[0, 0] = 500.0
    message = (
        r"layer 'dense1': 99\.\d % of its weights are zero as int8, since the largest is [\d.e+]+ and the median 0\."
    )
    with pytest.raises(UserError, match=message):
        refuse_crushed(QuantizedStack(made, "int8"))
    with torch.no_grad():
        made.layers.dense1.synapse.weight[0, 0] = 0.3
    refuse_crushed(QuantizedStack(made, "int8"))
    refuse_crushed(stack("ternary"))


def test_errors_are_those_of_a_layer_worked_out_by_hand():
    made = trained_like(AbstractConfig(steps=4, channels=3, convs=(), dense=(2,)), (3, 1, 1), 1)
    layer = QuantizedStack(made, "int3:max").layers.dense1
    with torch.no_grad():
        # At the scale 1/4 they are 3 (for 4), 1, 0, -4, 3 (for 4) and 0.
        layer.synapse.weight.copy_(torch.tensor([[1.0, 0.26, 0.1], [-1.0, 0.9, 0.0]]))
        layer.neuron.bias.copy_(torch.tensor([0.3, -0.125]))
    found = layer_errors(layer)
    assert (found.bits, found.memory_bits, found.scale) == (3, 18, 0.25)
    noise = np.square([0.25, 0.01, 0.1, 0.0, 0.15, 0.0]).mean()
    signal = np.square([1.0, 0.26, 0.1, -1.0, 0.9, 0.0]).mean()
    assert found.sqnr == pytest.approx(10 * np.log10(signal / noise), abs=1e-4)
    assert found.zeros == pytest.approx(2 / 6)
    assert found.clipped == pytest.approx(2 / 6)  # 1.0 and 0.9 are 4 and 3.6 steps, the format ends at 3
    assert found.v_th == 0
    assert found.bias == pytest.approx(0.3 - 38 / 128, abs=1e-6)  # counted in 1/128, as int8 would be
    assert found.decay_u <= 0.5 / 4096
    assert found.decay_v <= 0.5 / 4096


def test_fewer_bits_cost_more():
    found = [stack_errors(stack(f"{name}:mse"))[1].sqnr for name in ("int8", "int6", "int4", "int3", "int2")]
    assert found == sorted(found, reverse=True)
