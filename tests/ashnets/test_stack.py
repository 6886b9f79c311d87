"""The spiking stack and its foldable norm."""

import pytest
import torch
from torch import nn

from ashnets.config import AbstractConfig
from ashnets.stack import FoldableNorm, SpikingStack, layer_spikes


def stack() -> SpikingStack:
    return SpikingStack(AbstractConfig(steps=4, channels=3, convs=((5, 2), (4, 1)), dense=(7, 6)), (3, 9, 8))


def test_shapes_follow_the_configuration_and_spikes_are_binary():
    s = (torch.rand(4, 2, 3, 9, 8) < 0.5).float()
    spikes = layer_spikes(stack(), s)
    assert {name: tuple(value.shape) for name, value in spikes.items()} == {
        "conv1": (4, 2, 5, 5, 4),
        "conv2": (4, 2, 4, 5, 4),
        "dense1": (4, 2, 7),
        "dense2": (4, 2, 6),
    }
    for value in spikes.values():
        assert ((value == 0) | (value == 1)).all()


def test_recorded_layers_end_in_what_forward_returns():
    model, s = stack().eval(), (torch.rand(4, 2, 3, 9, 8) < 0.5).float()
    assert torch.equal(model(s), layer_spikes(model, s)["dense2"])


def test_a_purely_convolutional_stack_keeps_its_grid():
    model = SpikingStack(AbstractConfig(convs=((5, 2),), dense=()), (3, 8, 8))
    assert model.output_shape == (5, 4, 4)
    assert model(torch.zeros(4, 1, 3, 8, 8)).shape == (4, 1, 5, 4, 4)


def test_norm_folds_into_the_weights_exactly_up_to_rounding():
    norm = FoldableNorm(5)
    conv = nn.Conv2d(3, 5, 3, bias=False)
    for _ in range(50):
        norm(conv(torch.rand(8, 3, 6, 6)))
    with torch.no_grad():
        norm.gain.uniform_(0.5, 2)
    norm.eval()
    x = torch.rand(2, 3, 6, 6)
    folded = nn.functional.conv2d(x, conv.weight * norm.scale().view(-1, 1, 1, 1))
    assert torch.allclose(norm(conv(x)), folded, rtol=1e-5, atol=1e-6)


def test_norm_in_training_has_unit_mean_square_and_tracks_it():
    norm = FoldableNorm(2)
    x = torch.randn(500, 2) * torch.tensor([3.0, 0.5]) + 1
    assert torch.allclose(norm(x).square().mean(0), torch.ones(2), atol=1e-3)
    for _ in range(100):
        norm(x)
    assert torch.allclose(norm.mean_square, x.square().mean(0), rtol=1e-3)


@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5, 2)])
def test_the_norms_gradient_is_that_of_its_equation(shape):
    norm = FoldableNorm(3).double()
    x, gain = torch.randn(shape, dtype=torch.double) * 2 + 1, torch.rand(3, dtype=torch.double) + 0.5

    def run(x, gain):
        return torch.func.functional_call(norm, {"gain": gain}, (x,))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), gain.requires_grad_()))


def test_the_norm_of_half_precision_is_computed_in_single():
    norm, x = FoldableNorm(3), (torch.randn(4, 3, 5, 2) * 200).half().requires_grad_()
    wide = x.detach().float().requires_grad_()
    y, expected = norm(x), norm(wide)
    assert torch.equal(y, expected)  # squares of 16 bits would be infinite
    g = torch.randn_like(y)
    (gradient,), (wide_gradient,) = torch.autograd.grad(y, x, g), torch.autograd.grad(expected, wide, g)
    assert gradient.dtype == torch.half
    assert torch.equal(gradient, wide_gradient.half())


def test_torch_compile_takes_the_stack_whole():
    model, s = stack(), (torch.rand(4, 2, 3, 9, 8) < 0.5).float()
    twin = stack()
    twin.load_state_dict(model.state_dict())
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(s), model(s))
    gradients = torch.autograd.grad(model(s).sum(), tuple(model.parameters()))
    compiled_gradients = torch.autograd.grad(compiled(s).sum(), tuple(twin.parameters()))
    for ours, its in zip(gradients, compiled_gradients, strict=True):
        assert torch.allclose(ours, its, atol=1e-6)
