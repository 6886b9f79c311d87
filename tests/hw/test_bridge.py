"""`SpikeBridge`, a torch module in front of a backend, and what it does not wait for."""

import threading

import numpy as np
import pytest
import torch

from hw import BackendError, Dense, SpikingProgram, UserError
from hw.bridge.module import SpikeBridge
from hw.simulate import Result, open_backend


class Negation:
    """A backend whose output is easy to know: s_out[t, b] = 1 - s_in[t, b], transposed."""

    name = "negation"

    def run(self, spikes: np.ndarray, *, layers: bool = False) -> Result:
        assert spikes.dtype == np.uint8
        return Result(output=1 - spikes.swapaxes(-1, -2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.int64])
def test_the_bridge_gives_the_backends_spikes_in_the_inputs_dtype_and_device(dtype: torch.dtype) -> None:
    s_in = (torch.rand(4, 2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.4).to(dtype)
    s_out = SpikeBridge(Negation())(s_in)
    assert (s_out.dtype, s_out.device) == (s_in.dtype, s_in.device)
    assert torch.equal(s_out.long(), 1 - s_in.long().mT)


def test_no_gradient_flows_through_the_bridge() -> None:
    s_in = torch.ones(4, 2, 3, 5, requires_grad=True)
    assert not SpikeBridge(Negation()).eval()(s_in * 1.0).requires_grad


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, 256.0, float("nan")])
def test_the_bridge_refuses_values_that_are_not_spikes(value: float) -> None:
    s_in = torch.zeros(2, 1, 3)
    s_in[1, 0, 2] = value
    with pytest.raises(UserError, match="other than 0 and 1"):
        SpikeBridge(Negation())(s_in)


def test_the_bridge_to_the_reference_simulator_gives_its_spikes() -> None:
    rng = np.random.default_rng(0)
    layer = Dense(name="fc", weight_int=rng.integers(-90, 90, (5, 7)), decay_u_int=500, decay_v_int=100, v_th_mant=90)
    backend = open_backend("reference", SpikingProgram(input_shape=(7,), steps=6, layers=(layer,)))
    spikes = rng.integers(0, 2, (6, 3, 7), dtype=np.uint8)
    expected = backend.run(spikes).output
    assert expected.any()
    np.testing.assert_array_equal(SpikeBridge(backend)(torch.from_numpy(spikes).float()).numpy(), expected)


class Gate(Negation):
    """Waits until it is let through, and notes what it was given."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.seen: list[int] = []

    def run(self, spikes: np.ndarray, *, layers: bool = False) -> Result:
        assert self.open.wait(20)
        self.seen.append(int(spikes.sum()))
        if spikes.all():
            raise BackendError("broken")
        return super().run(spikes)


def test_begin_does_not_wait_and_results_come_in_order() -> None:
    gate = Gate()
    bridge = SpikeBridge(gate)
    batches = [torch.zeros(1, 1, 2, 3).index_fill(3, torch.arange(k), 1.0) for k in range(3)]
    pending = [bridge.begin(s_in) for s_in in batches]
    assert not any(each.future.done() for each in pending)
    gate.open.set()
    for s_in, each in zip(batches, pending, strict=True):
        assert torch.equal(each.result(), 1 - s_in.mT)
    assert gate.seen == [0, 2, 4]


def test_an_error_of_the_backend_reaches_the_caller_and_the_next_batch_runs() -> None:
    gate = Gate()
    gate.open.set()
    bridge = SpikeBridge(gate)
    with pytest.raises(BackendError, match="broken"):
        bridge(torch.ones(1, 1, 2, 3))
    assert bridge(torch.zeros(1, 1, 2, 3)).all()
