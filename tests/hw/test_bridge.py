"""The bridge: spikes as bits and back, and a torch module in front of a backend."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hw import Dense, SpikingProgram, UserError
from hw.bridge.codec import MAX_SPIKES, Packet, pack, unpack
from hw.bridge.module import SpikeBridge
from hw.simulate import Result, open_backend

SPIKES = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=5), elements=st.integers(0, 1)
)


@given(SPIKES)
def test_unpacking_gives_back_what_was_packed(spikes: np.ndarray) -> None:
    packet = pack(spikes)
    assert len(packet.payload) == -(-spikes.size // 8)
    again = unpack(packet)
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, spikes)


@pytest.mark.parametrize(
    "spikes",
    [np.full((2, 1, 3), 2, np.uint8), np.full((2, 1, 3), 255, np.uint8), np.ones((2, 1, 3)), np.ones(3, np.int64)],
)
def test_what_is_not_uint8_zeros_and_ones_is_not_packed(spikes: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"spikes are uint8 in \{0, 1\}"):
        pack(spikes)


@pytest.mark.parametrize(
    ("shape", "payload", "match"),
    [
        ((2, 1, 9), b"\0\0", "2 bytes for shape .* which takes 3"),
        ((2, 1, 9), b"\0\0\0\0", "4 bytes for shape .* which takes 3"),
        ((0, 3), b"\0", "which takes 0"),
        ((2, -1, -8), b"\0\0", "is not a shape"),
        ((2, 1.0), b"\0", "is not a shape"),
        ((MAX_SPIKES, 2), b"", "is not a shape of up to"),
        ((3,), b"\xf0", "behind the last spike"),
    ],
)
def test_a_packet_whose_shape_and_payload_disagree_is_refused(
    shape: tuple[int, ...], payload: bytes, match: str
) -> None:
    with pytest.raises(UserError, match=match):
        Packet(shape=shape, payload=payload)


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
