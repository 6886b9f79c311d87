"""The integer neuron in torch against the reference recursion, states included; its gradients against the real ones."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ashnets.kernels import cuda, lif
from ashnets.neurons import LIFParams, cuba_lif, cuba_lif_backward
from ashnets.surrogate import SURROGATES
from hw.program import Dense
from hw.simulate.reference import lif_step
from quantize.integer_lif import IntegerLIFParams, dequantize_params, integer_cuba_lif, quantize_params


@pytest.fixture(params=["processor", "triton"])
def kernels(request, monkeypatch):
    """Both kernels; Triton's run in its interpreter, or on the graphics card where there is one."""
    if request.param == "triton":
        monkeypatch.setattr(lif, "kernels", lambda device: cuda)
    return "cuda" if request.param == "triton" and torch.cuda.is_available() else "cpu"


def reference(a, q: IntegerLIFParams):
    """Spikes, and u and v before its reset, [T, B, channels], int64, by the readable recursion."""
    layer = Dense(name="d", weight_int=np.ones((a.shape[2], 1), int), **{k: v.numpy() for k, v in q._asdict().items()})
    u = v = np.zeros(a.shape[1:], np.int64)
    spikes, us, vs = [], [], []
    for a_t in a:
        before = layer_v(a_t, u, v, layer)
        s, u, v = lif_step(a_t, u, v, layer)
        assert np.array_equal(np.where(s, 0, before), v)
        spikes, us, vs = [*spikes, s], [*us, u], [*vs, before]
    return tuple(torch.from_numpy(np.stack(x)) for x in (spikes, us, vs))


def layer_v(a, u, v, layer: Dense):
    """v before its reset: that of neurons whose threshold is out of reach."""
    silent = dataclasses.replace(layer, v_th_mant=np.full_like(layer.v_th_mant, 1 << 18))
    return lif_step(a, u, v, silent)[2]


def spikes_of(a, q: IntegerLIFParams, device: str):
    """By the operator, on real parameters of which `q` is the nearest."""
    scale = torch.tensor(1.0)
    p = LIFParams(q.decay_u_int / 4096, q.decay_v_int / 4096, q.v_th_mant.float(), q.bias_mant.float())
    found = quantize_params(p, scale)
    assert all(torch.equal(x, y) for x, y in zip(found, q, strict=True))
    p = LIFParams(*(value.to(device) for value in p))
    return integer_cuba_lif(a.float().to(device), scale.to(device), p, "arctan").cpu()


@given(
    seed=st.integers(0, 2**31),
    decay_u=st.integers(1, 4096),
    decay_v=st.integers(0, 4096),
    threshold=st.integers(0, 131071),
    magnitude=st.sampled_from([30, 3000, 120_000, 4_000_000]),
)
@settings(
    max_examples=150 if not os.environ.get("TRITON_INTERPRET") else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_spikes_equal_the_reference_with_wrap_and_saturation(kernels, seed, decay_u, decay_v, threshold, magnitude):
    rng = np.random.default_rng(seed)
    a = rng.integers(-magnitude, magnitude + 1, (9, 4, 5))
    bias = torch.from_numpy(rng.integers(-4096, 4096, 5))
    q = IntegerLIFParams(*(torch.tensor(x) for x in (decay_u, decay_v, threshold)), bias)
    s = spikes_of(torch.from_numpy(a), q, kernels)
    assert torch.equal(s.bool(), reference(a, q)[0])


def test_the_edges_of_the_current_s_24_bits(kernels):
    edge = torch.tensor([131_071, 131_072, 131_073])
    a = torch.stack([torch.cat([edge, -edge]), torch.zeros(6, dtype=torch.long)])[:, None]
    q = IntegerLIFParams(*(torch.tensor([x]) for x in (1, 1, 1000, 0)))
    truth = reference(a.numpy(), q)[0]
    assert 0 < truth.sum() < truth.numel()
    assert torch.equal(spikes_of(a, q, kernels).bool(), truth)


def test_large_inputs_do_wrap_and_saturate_in_that_test():
    """The extremes of the property above are reached: otherwise it would prove less than it says."""
    q = IntegerLIFParams(*(torch.tensor([x]) for x in (1, 1, 131071, 0)))
    _, us, vs = reference(np.array([[[131_000]], [[1000]]]), q)
    assert us[0].item() > 0 > us[1].item()
    assert vs[0].item() <= 2**23 - 1
    _, _, vs = reference(np.full((3, 1, 1), -120_000), q._replace(decay_u_int=torch.tensor([4096])))
    assert vs[1].item() == -(2**23) + 1


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("steps", [1, 6, 33])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_gradients_are_those_of_the_states_of_the_reference(kernels, per_channel, last, steps, surrogate):
    """The backward pass has u and v of the chip, in units of the real neuron: float64 holds every one."""
    scale = torch.tensor(2.0**-7, dtype=torch.float64)
    shape = (5, 1, 1) if per_channel else ()
    p = LIFParams(
        *(torch.rand(shape, dtype=torch.float64) * 0.6 + 0.2 for _ in range(2)),
        torch.rand(shape, dtype=torch.float64) + 0.5,
        torch.randn(5, 1, 1, dtype=torch.float64) / 10,
    )
    a = torch.randint(-300, 301, (steps, 2, 5, 3, 4)).double()
    weight = torch.randn_like(a)
    q = quantize_params(p, scale)
    columns = a.movedim(2, -1).reshape(steps, -1, 5)
    s, u, v = (x.view(steps, 2, 3, 4, 5).movedim(-1, 2) for x in reference(columns.long().numpy(), flattened(q)))
    unit = scale / 64
    truth_x, truth = cuba_lif_backward(
        weight, u * unit, v * unit, dequantize_params(q, scale, p), SURROGATES[surrogate]
    )
    if last:
        a = a.movedim(2, -1).contiguous().movedim(-1, 2)
    leaves = [x.to(kernels).requires_grad_() for x in (a, *p)]
    found = integer_cuba_lif(leaves[0], scale.to(kernels), LIFParams(*leaves[1:]), surrogate)
    (found * weight.to(kernels)).sum().backward()
    assert torch.equal(found.cpu(), s.double())
    assert s.any()
    for leaf, expected in zip(leaves, [truth_x * scale, *truth], strict=True):
        assert torch.allclose(leaf.grad.cpu(), expected, rtol=1e-9, atol=1e-10)


def flattened(q: IntegerLIFParams) -> IntegerLIFParams:
    return IntegerLIFParams(*(value.reshape(-1) for value in q))


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
    [
        ("decay_u", 1e-9, 1),
        ("decay_v", 1e-9, 0),
        ("decay_v", 1.0, 4096),
        ("v_th", 1e9, 131071),
        ("bias", -1e9, -4096),
        ("bias", 0.49, 2),
    ],
)
def test_parameters_are_rounded_and_clamped_to_what_the_chip_holds(field, value, expected):
    p = LIFParams(*(torch.tensor(x) for x in (0.5, 0.5, 1.0, 0.0)))._replace(**{field: torch.tensor(value)})
    q = quantize_params(p, torch.tensor(0.25))
    key = {"decay_u": "decay_u_int", "decay_v": "decay_v_int", "v_th": "v_th_mant", "bias": "bias_mant"}[field]
    assert getattr(q, key).item() == expected
