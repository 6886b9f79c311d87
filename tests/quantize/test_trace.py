"""Bring your own network: what is a chain is found however it is written, what is not is refused by module path."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import quantize
from ashnets.neurons import CubaLIF
from ashnets.stack import FoldableNorm, LayerStack, SpikingLayer
from hw.errors import UserError
from hw.program import Conv, Dense, Flatten
from hw.simulate import open_backend


def dense(*behind: nn.Module, **first: object) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5, **{"bias": False} | first), *(behind or (CubaLIF(5),)))


class Written(nn.Module):
    """A convolutional network as somebody writes it: names of their own, a norm, reshaping by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.ModuleDict({"conv": nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)})
        self.scale, self.fire = FoldableNorm(4), CubaLIF(4, per_channel=True)
        self.out, self.decide = nn.Linear(4 * 3 * 3, 5, bias=False), CubaLIF(5)
        self.drop = nn.Dropout(0.5)

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        x = self.scale(self.eyes["conv"](s.flatten(0, 1))).unflatten(0, s.shape[:2])
        return self.decide(self.out(self.drop(self.fire(x)).flatten(2)))


def spikes(*shape: int, rate: float = 0.4) -> torch.Tensor:
    return (torch.rand(*shape) < rate).float()


def lively(network: nn.Module) -> nn.Module:
    """So that its neurons fire."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.mul_(3)
            if isinstance(module, FoldableNorm):
                module.gain.uniform_(0.5, 1.5)
                module.mean_square.uniform_(0.5, 2)
            if isinstance(module, CubaLIF):
                module.bias.uniform_(-0.1, 0.2)
    return network.eval()


def test_a_network_is_followed_however_it_is_written_and_gives_the_same_spikes():
    network = lively(Written())
    s = spikes(5, 3, 2, 6, 6)
    stack = quantize.as_stack(network, (2, 6, 6), 5)
    assert list(stack.layers._modules) == ["eyes_conv", "flatten", "out"]
    with torch.no_grad():
        assert torch.equal(stack(s), network(s))
        assert 0.05 < network(s).mean() < 0.95
    program = quantize.lower(quantize.ptq(network, s, "int8", "plain"))
    assert [type(layer) for layer in program.layers] == [Conv, Flatten, Dense]
    assert program.layers[0].decay_u_int.shape == (4,)
    found = open_backend("reference", program).run(s.numpy().astype(np.uint8)).output
    assert np.mean(found != network(s).detach().numpy()) < 0.1


def test_the_network_itself_is_left_as_it_was():
    network = lively(Written()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantize.ptq(network, spikes(5, 3, 2, 6, 6), "int3", "best")
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_qat_trains_in_the_networks_place_and_lowers_to_the_spikes_that_it_gave():
    s = spikes(6, 16, 6)
    stack = quantize.qat(lively(dense()), s, "int4")
    assert stack.training
    optimiser = torch.optim.SGD(stack.parameters(), lr=0.5)
    before = quantize.lower(stack)
    for _ in range(3):
        optimiser.zero_grad()
        (stack(s).mean((0, 1)) - torch.linspace(0, 1, 5)).square().sum().backward()
        optimiser.step()
    program = quantize.lower(stack)
    assert np.any(program.layers[0].weight_int != before.layers[0].weight_int)
    (qat,) = quantize.verify(program, [s], {"qat": None}, stack=stack)
    assert (qat.total, qat.integers, qat.samples) == (0, True, 16)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.m = (
            nn.Linear(6, 6, bias=False),
            CubaLIF(6),
            nn.Linear(6, 6, bias=False),
            CubaLIF(6),
        )

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        return self.m(self.b(self.n(self.a(s)) + s))


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 5, bias=False), CubaLIF(5)

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.lif(self.fc(step[None])) for step in s])


class Readout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = dense(), None

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        return self.body(s).mean(0)


class Idle(Readout):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        return self.body(s)


class Turned(Readout):
    def forward(self, s: torch.Tensor) -> torch.Tensor:
        return self.body(s.transpose(0, 1).contiguous()).transpose(0, 1)


class Between(nn.Module):
    """A convolution and a dense layer with something done to what is handed on: before, between or behind."""

    def __init__(self, place: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        super().__init__()
        self.conv, self.n = nn.Conv2d(2, 3, 3, padding=1, bias=False), CubaLIF(3)
        self.fc, self.m = nn.Linear(72, 5, bias=False), CubaLIF(5)
        self.place, self.change = place, change

    def changed(self, place: str, x: torch.Tensor) -> torch.Tensor:
        found = self.change(x) if place == self.place else x
        return x if found is None else found

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.changed("conv", s.flatten(0, 1)))
        x = self.n(self.changed("n", x.unflatten(0, s.shape[:2])))
        x = self.fc(self.changed("fc", x.flatten(2)))
        return self.changed("end", self.m(self.changed("m", x)))


@pytest.mark.parametrize("place", ["conv", "n", "fc", "m"])
def test_writing_in_place_between_layers_is_seen(place):
    network = Between(place, lambda x: x.mul_(4))
    with pytest.raises(UserError, match=f"module '{place}' takes something else .*writing in place"):
        quantize.as_stack(network, (2, 4, 6), 8)
    network.change = lambda x: x.mul(4)
    with pytest.raises(UserError, match=f"module '{place}' takes something else"):
        quantize.as_stack(network, (2, 4, 6), 8)
    network.change = lambda x: x
    quantize.as_stack(network, (2, 4, 6), 8)
    with torch.inference_mode():
        quantize.as_stack(network, (2, 4, 6), 8)


def test_writing_in_place_to_the_output_is_seen():
    with pytest.raises(UserError, match="gives something else than its last neurons' spikes"):
        quantize.as_stack(Between("end", lambda x: x.neg_().add_(1)), (2, 4, 6), 8)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("conv", r"module 'conv' runs on \[16, 2, 6, 4\]; keep the \(C, H, W\) that it is given, \(2, 4, 6\)"),
        ("n", r"module 'n' runs on \[8, 2, 3, 6, 4\], all T steps of what 'conv' gave are \[8, 2, 3, 4, 6\]"),
    ],
)
def test_an_image_in_another_shape_is_seen(place, reason):
    network = Between(place, lambda x: x.reshape(*x.shape[:-2], 6, 4))
    network(spikes(8, 2, 2, 4, 6))
    with pytest.raises(UserError, match=reason):
        quantize.as_stack(network, (2, 4, 6), 8)


@pytest.mark.parametrize(
    ("norm", "neurons", "told"),
    [
        (nn.Identity(), CubaLIF(3), r"a parameter has 3 values, and the input \[8, 2, 5\] 5 channels"),
        (nn.Identity(), CubaLIF(1), r"has 1 channels, '0' in front gives 5; make them as many"),
        (FoldableNorm(2), CubaLIF(5), r"has 2 channels, '0' in front gives 5; make them as many"),
    ],
)
def test_norms_and_neurons_of_other_channels_than_their_synapses_are_seen(norm, neurons, told):
    with pytest.raises(UserError, match=told):
        quantize.as_stack(dense(norm, neurons), (6,), 8)


def test_a_norm_over_the_batch_is_seen():
    network = nn.Sequential(nn.Linear(6, 2, bias=False), FoldableNorm(2), CubaLIF(2))
    with pytest.raises(UserError, match=r"module '1' runs on \[8, 2, 2\], .* are \[16, 2\]; x.flatten\(0, 1\)"):
        quantize.as_stack(network, (6,), 8)


class Named(nn.Module):
    """Modules whose paths are one name, or none that a stack can have."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(OrderedDict(fc=nn.Linear(6, 6, bias=False), n=CubaLIF(6)))
        self.block_fc, self.m = nn.Linear(6, 6, bias=False), CubaLIF(6)
        self.append, self.p = nn.Linear(6, 6, bias=False), CubaLIF(6)
        self.flatten, self.q = nn.Linear(6, 5, bias=False), CubaLIF(5)

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        return self.q(self.flatten(self.p(self.append(self.m(self.block_fc(self.block(s.flatten(2))))))))


def test_no_layer_is_lost_to_another_of_its_name():
    network, s = lively(Named()), spikes(5, 3, 1, 2, 3)
    stack = quantize.as_stack(network, (1, 2, 3), 5)
    assert list(stack.layers._modules) == ["flatten", "block_fc", "block_fc_", "append_", "flatten_"]
    with torch.no_grad():
        assert torch.equal(stack(s), network(s))


def test_a_step_of_two_axes_is_flattened():
    network, s = lively(nn.Sequential(nn.Flatten(2), *dense())), spikes(5, 3, 2, 3)
    with torch.no_grad():
        assert torch.equal(quantize.as_stack(network, (2, 3), 5)(s), network(s))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (dense(nn.BatchNorm1d(8), CubaLIF(5)), "module '1' is batchnorm.BatchNorm1d; its mean is filtered"),
        (dense(nn.ReLU(), CubaLIF(5)), "module '1' is activation.ReLU; the chip's nonlinearity is the neuron"),
        (dense(nn.Tanh(), CubaLIF(5)), "module '1' is activation.Tanh, which the chip does not hold"),
        (dense(bias=True), "module '0' has a bias, which the current's decay would filter"),
        (dense(nn.Linear(5, 5, bias=False), CubaLIF(5)), "module '1' follows '0' without neurons"),
        (dense(CubaLIF(5), nn.Linear(5, 2, bias=False)), "module '2' has no neurons behind it"),
        (dense(CubaLIF(5), CubaLIF(5)), "module '2' has no synapses of its own"),
        (dense(CubaLIF(5), FoldableNorm(2)), "module '2' does not stand between a synapse and its neurons"),
        (nn.Sequential(nn.Flatten()), "calls no CubaLIF"),
        (Residual(), "module 'b' takes something else than 'n' gave"),
        (Turned(), "module 'body.0' takes something else than the input gave"),
        (Loop(), "module 'fc' is called twice.*all T steps at once"),
        (Readout(), "gives something else than its last neurons' spikes"),
        (Idle(), "module 'spare' is never called"),
        (nn.Sequential(nn.Linear(7, 5, bias=False), CubaLIF(5)), r"does not take spikes of shape \[T=8, B, 6\]"),
    ],
)
def test_what_cannot_be_lowered_is_refused_by_its_path_with_what_to_do(network, reason):
    with pytest.raises(UserError, match=reason):
        quantize.as_stack(network, (6,), 8)


def test_a_shared_layer_and_padding_by_reflection_are_refused():
    shared = nn.Linear(6, 6, bias=False)
    with pytest.raises(UserError, match="module '0' is called twice"):
        quantize.as_stack(nn.Sequential(shared, CubaLIF(6), shared, CubaLIF(6)), (6,), 4)

    class Reflecting(Written):
        def __init__(self) -> None:
            super().__init__()
            self.eyes["conv"] = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False, padding_mode="reflect")

    with pytest.raises(UserError, match=r"module 'eyes.conv' pads by 'reflect'"):
        quantize.as_stack(Reflecting(), (2, 6, 6), 4)


def test_a_layer_that_is_called_by_keyword_is_followed():
    class Named(nn.Sequential):
        def forward(self, s: torch.Tensor) -> torch.Tensor:
            return self[1](x=self[0](input=s))

    network, s = lively(Named(*dense())), spikes(5, 3, 6)
    with torch.no_grad():
        assert torch.equal(quantize.as_stack(network, (6,), 5)(s), network(s))


def test_weights_that_are_made_at_every_call_are_refused_until_they_are_permanent():
    network = dense()
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    with pytest.raises(UserError, match=r"module '0' makes its weight anew at every call.*prune\.remove"):
        quantize.as_stack(network, (6,), 4)
    prune.remove(network[0], "weight")
    assert len(quantize.as_stack(network, (6,), 4).neural_layers) == 1
    parametrizations.weight_norm(network[0])
    with pytest.raises(UserError, match="module '0' makes its weight anew"):
        quantize.as_stack(network, (6,), 4)


def test_a_hand_made_stack_is_looked_at_too():
    made = SpikingLayer(nn.Linear(6, 5), CubaLIF(5), nn.Identity())
    with pytest.raises(UserError, match=r"module 'layers\.dense1\.synapse' has a bias"):
        quantize.as_stack(LayerStack(OrderedDict(dense1=made), (6,), (5,), 4), (6,), 4)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float64])
def test_spikes_of_any_type_are_calibrated_on(kind):
    network, s = lively(dense()), spikes(5, 3, 6)
    made = quantize.lower(quantize.ptq(network, s.to(kind), "int8", "best"))
    wanted = quantize.lower(quantize.ptq(network, s, "int8", "best"))
    np.testing.assert_array_equal(made.layers[0].weight_int, wanted.layers[0].weight_int)
