"""CUBA-LIF: the plain loop against the equations."""

import pytest
import torch

from ashnets.neurons import CubaLIF, LIFParams, LIFState, cuba_lif, cuba_lif_backward, cuba_lif_loop, cuba_lif_step
from ashnets.surrogate import SURROGATES


def params(decay_u: float, decay_v: float, channels: int, dtype=torch.float64) -> LIFParams:
    bias = torch.linspace(-0.2, 0.3, channels, dtype=dtype)
    return LIFParams(*(torch.tensor(x, dtype=dtype) for x in (decay_u, decay_v, 1.0)), bias)


def test_one_step_follows_the_equations_by_hand():
    p = LIFParams(*(torch.tensor(x) for x in (0.5, 0.25, 1.0, 0.1)))
    s, state = cuba_lif_step(
        torch.tensor([0.4, 2.0]),
        LIFState(torch.tensor([0.2, 0.2]), torch.tensor([0.8, 0.8])),
        p,
        SURROGATES["rectangle"],
    )
    assert torch.allclose(state.u, torch.tensor([0.5, 2.1]))  # 0.5 * 0.2 + x
    assert s.tolist() == [1.0, 1.0]  # 0.75 * 0.8 + 0.5 + 0.1 = 1.2 > 1
    assert state.v.tolist() == [0.0, 0.0]


def test_a_membrane_exactly_at_the_threshold_does_not_spike():
    p = LIFParams(*(torch.tensor(x) for x in (1.0, 1.0, 1.0, 0.0)))
    x = torch.tensor([[1.0, 1.0 + 2**-20]])
    assert cuba_lif(x, p, "rectangle").tolist() == [[0.0, 1.0]]
    assert cuba_lif_loop(x, p, SURROGATES["rectangle"]).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_one_at_the_threshold_and_fall_off(name):
    surrogate = SURROGATES[name]
    assert surrogate(torch.tensor(0.0)) == 1
    assert surrogate(torch.tensor(0.6)) < surrogate(torch.tensor(0.1)) <= 1
    assert torch.equal(surrogate(torch.tensor([-0.3])), surrogate(torch.tensor([0.3])))


def test_backward_without_spikes_is_the_exact_gradient_of_the_linear_recursion():
    """With a surrogate of one everywhere, s stands for v - v_th, whose gradient torch can take by itself."""
    x = torch.rand(4, 2, 3, dtype=torch.float64) * 0.1
    p = params(0.4, 0.3, 3)._replace(v_th=torch.tensor(100.0, dtype=torch.float64))
    leaves = [x.clone().requires_grad_()] + [value.clone().requires_grad_() for value in p]
    u = v = torch.zeros(2, 3, dtype=torch.float64)
    us, vs = [], []
    for x_t in leaves[0]:
        u = (1 - leaves[1]) * u + x_t
        v = (1 - leaves[2]) * v + u + leaves[4]
        us.append(u)
        vs.append(v)
    (torch.stack(vs) - leaves[3]).sum().backward()
    grad_x, grad_p = cuba_lif_backward(
        torch.ones_like(x), torch.stack(us).detach(), torch.stack(vs).detach(), p, torch.ones_like
    )
    for ours, torchs in zip((grad_x, *grad_p), (leaf.grad for leaf in leaves), strict=True):
        assert torch.allclose(ours, torchs)


def test_decays_stay_between_zero_and_one_and_learn():
    neuron = CubaLIF(4, decay_u=0.5, decay_v=0.25, per_channel=True)
    assert torch.allclose(neuron.params(2).decay_v, torch.full((4,), 0.25))
    neuron(torch.rand(5, 2, 4) * 2).sum().backward()
    for parameter in neuron.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    with torch.no_grad():
        neuron.decay_u_logit.fill_(40)
    assert (neuron.params(2).decay_u <= 1).all()
