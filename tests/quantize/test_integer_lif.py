"""The integer neuron in torch against the reference recursion, states included; its gradients against the real ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ashnets.neurons import LIFParams, cuba_lif
from hw.program import Dense
from hw.simulate.reference import lif_step
from quantize.integer_lif import IntegerLIFParams, integer_cuba_lif, integer_states, quantize_params


@given(
    seed=st.integers(0, 2**31),
    decay_u=st.integers(1, 4096),
    decay_v=st.integers(1, 4096),
    threshold=st.integers(0, 131071),
    magnitude=st.sampled_from([30, 3000, 120_000, 4_000_000]),
)
@settings(max_examples=150, deadline=None)
def test_states_equal_the_reference_with_wrap_and_saturation(seed, decay_u, decay_v, threshold, magnitude):
    rng = np.random.default_rng(seed)
    a = rng.integers(-magnitude, magnitude + 1, (9, 4, 5))
    bias = rng.integers(-4096, 4096, 5)
    layer = Dense(
        name="d",
        weight_int=np.ones((5, 1), int),
        decay_u_int=np.array(decay_u),
        decay_v_int=np.array(decay_v),
        v_th_mant=np.array(threshold),
        bias_mant=bias,
    )
    q = IntegerLIFParams(*(torch.tensor(x) for x in (decay_u, decay_v, threshold)), torch.from_numpy(bias))
    us, vs = integer_states(torch.from_numpy(a), q)
    u = v = np.zeros((4, 5), np.int64)
    for t in range(9):
        s, u, v = lif_step(a[t], u, v, layer)
        assert np.array_equal(us[t].numpy(), u)
        assert np.array_equal((vs[t] > threshold << 6).numpy(), s)
        assert np.array_equal(np.where(s, 0, vs[t].numpy()), v)


def test_large_inputs_do_wrap_and_saturate_in_that_test():
    """The extremes of the property above are reached: otherwise it would prove less than it says."""
    q = IntegerLIFParams(*(torch.tensor(x) for x in (1, 1, 131071, 0)))
    us, vs = integer_states(torch.tensor([[[131_000.0]], [[1000.0]]]).long(), q)
    assert us[0].item() > 0 > us[1].item()
    assert vs[0].item() <= 2**23 - 1
    _, vs = integer_states(torch.full((3, 1, 1), -120_000).long(), q._replace(decay_u_int=torch.tensor(4096)))
    assert vs[1].item() == -(2**23) + 1


def test_gradients_are_the_real_neurons_where_rounding_changes_nothing():
    """On the grid (decays in 1/4096, everything a multiple of the scale) both neurons are one function for one step."""
    scale = torch.tensor(2.0**-5)
    p = LIFParams(*(torch.tensor(x, requires_grad=True) for x in (0.5, 0.25, 1.0)), torch.zeros(3, requires_grad=True))
    a = torch.tensor([[[3.0, 40.0, -7.0], [31.0, 33.0, 10.0]]], requires_grad=True)
    s_int = integer_cuba_lif(a, scale, p, "arctan")
    (s_int * torch.arange(6.0).view(1, 2, 3)).sum().backward()
    integer_grads = [a.grad, *(value.grad for value in p)]
    for value in (a, *p):
        value.grad = None
    s_real = cuba_lif(a * scale, p, "arctan")
    (s_real * torch.arange(6.0).view(1, 2, 3)).sum().backward()
    assert torch.equal(s_int, s_real)
    for ours, real in zip(integer_grads, [a.grad, *(value.grad for value in p)], strict=True):
        assert torch.allclose(ours, real)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("decay_u", 1e-9, 1), ("decay_v", 1.0, 4096), ("v_th", 1e9, 131071), ("bias", -1e9, -4096), ("bias", 0.49, 2)],
)
def test_parameters_are_rounded_and_clamped_to_what_the_chip_holds(field, value, expected):
    p = LIFParams(*(torch.tensor(x) for x in (0.5, 0.5, 1.0, 0.0)))._replace(**{field: torch.tensor(value)})
    q = quantize_params(p, torch.tensor(0.25))
    key = {"decay_u": "decay_u_int", "decay_v": "decay_v_int", "v_th": "v_th_mant", "bias": "bias_mant"}[field]
    assert getattr(q, key).item() == expected
