"""`.net` files: what netx would store of a weight, and that a program which it would not hold exactly is refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hw import Conv, Dense, Flatten, SpikingProgram, UserError
from hw.lava.compat import import_netx
from hw.netx_file import dense_as_netx_stores_it, write_net

NEURON = {"decay_u_int": 1024, "decay_v_int": 128, "v_th_mant": 80}


@pytest.fixture(scope="module")
def lava() -> SimpleNamespace:
    return import_netx()


def stored_by_lava(lava: SimpleNamespace, weight: np.ndarray) -> tuple[np.ndarray, int]:
    """What netx and Lava's dense model do with a weight, by their own functions."""
    with np.errstate(divide="ignore"):  # netx divides by a largest weight of 0, and means infinity
        weight, bits, exponent, _ = lava.netx_utils.optimize_weight_bits(weight.copy())
    mode = lava.weightutils.determine_sign_mode(weight)
    weight = lava.weightutils.clip_weights(weight, mode, num_bits=8)
    return lava.weightutils.truncate_weights(weight, mode, bits), exponent


@st.composite
def dense_weights(draw: st.DrawFn) -> np.ndarray:
    """Weights that `validate` lets through, of every sign mode and with common powers of two."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=4))
    low, high = draw(st.sampled_from([(-128, 127), (0, 255), (-256, 0), (-256, -1), (-8, 7), (-1, 0), (0, 1)]))
    weight = draw(hnp.arrays(np.int64, shape, elements=st.integers(low, high)))
    if draw(st.booleans()):
        step = 2 ** draw(st.integers(1, 8))
        weight = (weight * (255 if high > 127 else 256) // max(high, -low) // step * step).clip(-256, 255)
    assume(weight.any())
    return weight


@settings(max_examples=500, deadline=None)
@given(weight=dense_weights())
def test_dense_weights_are_stored_as_lavas_own_functions_store_them(lava: SimpleNamespace, weight: np.ndarray) -> None:
    expected, exponent = stored_by_lava(lava, weight)
    ours, our_exponent = dense_as_netx_stores_it(weight)
    assert our_exponent == exponent
    np.testing.assert_array_equal(ours, expected)


def dense_program(weight: np.ndarray, **changes: object) -> SpikingProgram:
    first = Dense(name="first", weight_int=np.eye(weight.shape[1], dtype=int), **NEURON)
    second = Dense(name="second", **{"weight_int": weight} | NEURON | changes)
    return SpikingProgram(input_shape=(weight.shape[1],), steps=1, layers=(first, second))


@pytest.mark.parametrize("lowest", [-1, -64, -128])
@pytest.mark.parametrize("highest", [-1, 0])
def test_a_weight_that_netx_would_change_is_refused_by_its_layer_and_the_fix_mends_it(
    tmp_path: Path, lowest: int, highest: int
) -> None:
    weight = np.array([[lowest, lowest, highest]])
    with pytest.raises(
        UserError, match=r"layer 'second': netx would not store .* exactly; raise its .* one weight positive"
    ):
        write_net(dense_program(weight), tmp_path / "network.net")
    assert list(tmp_path.iterdir()) == []
    for fixed in (np.maximum(weight, lowest + 1), np.where(weight == highest, 2, weight)):
        if fixed.any():
            write_net(dense_program(fixed), tmp_path / "network.net")


def test_a_weight_beyond_8_bits_that_netx_would_change_is_refused_with_the_range_that_fits(tmp_path: Path) -> None:
    for weight in ([[-256, -1]], [[-255, 0]]):
        with pytest.raises(UserError, match=r"layer 'second': netx would not store .* quantize to \[-127, 127\]"):
            write_net(dense_program(np.array(weight)), tmp_path / "network.net")


@settings(max_examples=200, deadline=None)
@given(weight=hnp.arrays(np.int64, (2, 3), elements=st.integers(-127, 127)))
def test_a_weight_in_plus_minus_127_is_stored_exactly_unless_none_is_positive_and_the_lowest_a_power_of_two(
    weight: np.ndarray,
) -> None:
    assume(weight.any())
    lowest = -int(weight.min())
    assert is_exact(weight) or (weight.max() <= 0 and lowest & (lowest - 1) == 0)


def is_exact(weight: np.ndarray) -> bool:
    mantissa, exponent = dense_as_netx_stores_it(weight)
    return np.array_equal(mantissa * 2.0**exponent, weight)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight_exp": 1}, "layer 'second': weight_exp is 1"),
        ({"bias_mant": np.array([1, 0]), "bias_exp": 5}, "layer 'second': bias_exp is 5"),
        ({"v_th_mant": np.array([1, 2])}, "layer 'second': v_th_mant differs by channel"),
        ({"decay_u_int": np.array([1, 2])}, "layer 'second': decay_u_int differs by channel"),
        ({"decay_v_int": np.array([1, 2])}, "layer 'second': decay_v_int differs by channel"),
        ({"v_th_mant": -1}, "layer 1 'second': v_th_mant is -1"),
    ],
)
def test_what_a_net_file_cannot_hold_is_refused_by_its_layer(
    tmp_path: Path, changes: dict[str, object], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        write_net(dense_program(np.array([[1, -2], [3, 4]]), **changes), tmp_path / "network.net")
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_the_layout_that_netx_reads(tmp_path: Path) -> None:
    conv = Conv(
        name="c",
        weight_int=np.arange(1, 25).reshape(2, 2, 3, 2),
        stride=(2, 1),
        padding=(1, 0),
        dilation=(1, 2),
        bias_mant=np.array([3, 4]),
        **NEURON,
    )
    dense = Dense(name="d", weight_int=np.ones((3, 2 * 3 * 3), int), **NEURON)
    program = SpikingProgram(input_shape=(2, 5, 5), steps=2, layers=(conv, Flatten(), dense))
    with h5py.File(write_net(program, tmp_path / "network.net")) as file:
        layers = file["layer"]
        assert [layers[str(i)]["type"][0] for i in range(3)] == [b"conv", b"flatten", b"dense"]
        c, d = layers["0"], layers["2"]
        np.testing.assert_array_equal(c["weight"], conv.weight_int)
        np.testing.assert_array_equal(c["bias"], [3, 4])
        assert [tuple(c[key]) for key in ("shape", "stride", "padding", "dilation")] == [
            (2, 3, 3),
            (2, 1),
            (1, 0),
            (1, 2),
        ]
        assert c["groups"][()] == 1
        assert tuple(d["shape"]) == (3,)
        assert {key: d["neuron"][key][()] for key in ("iDecay", "vDecay", "vThMant")} == {
            "iDecay": 1024,
            "vDecay": 128,
            "vThMant": 80,
        }


def test_an_existing_file_is_kept_when_a_new_one_is_refused(tmp_path: Path) -> None:
    good = dense_program(np.array([[1, -2], [3, 4]]))
    path = write_net(good, tmp_path / "network.net")
    before = path.read_bytes()
    bad = replace(good, layers=(good.layers[0], replace(good.layers[1], weight_exp=2)))
    with pytest.raises(UserError):
        write_net(bad, path)
    assert path.read_bytes() == before
