"""`.net` files read without Lava: what we wrote comes back, what netx would silently break is refused by layer."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings

from hw import Conv, Dense, Recurrent, SpikingProgram, UserError
from hw.netx_file import write_net
from hw.netx_reader import examine_net, read_net
from hw.simulate import open_backend
from tests.hw.strategies import cases


@settings(max_examples=100, deadline=None)
@given(cases(netx=True))
def test_a_written_program_is_read_as_the_same_function(tmp_path_factory, case):
    program, spikes = case
    path = write_net(program, tmp_path_factory.mktemp("net") / "a.net")
    found = read_net(path, steps=program.steps, input_shape=program.input_shape)
    truth = open_backend("reference", program).run(spikes.astype(bool), states=True)
    again = open_backend("reference", found).run(spikes.astype(bool), states=True)
    np.testing.assert_array_equal(again.output, truth.output)
    for a, b in zip(again.v.values(), truth.v.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def dense_file(path: Path, **changes: object) -> Path:
    """One dense layer, 3 inputs and 2 neurons; a change of None leaves the key out."""
    values: dict[str, object] = {
        "type": np.array([b"dense"], "S10"),
        "shape": np.array([2]),
        "weight": np.array([[1, 2, 3], [4, -5, 6]]),
        "neuron/type": np.array([b"CUBA"], "S10"),
        "neuron/iDecay": 1024,
        "neuron/vDecay": 128,
        "neuron/vThMant": 80,
    }
    with h5py.File(path, "w") as file:
        for key, value in (values | changes).items():
            if value is not None:
                file.create_dataset(f"layer/0/{key}", data=value)
    return path


def test_layers_that_do_not_fit_each_other_are_a_problem(tmp_path):
    path = dense_file(tmp_path / "a.net")
    assert examine_net(path) == []
    with h5py.File(path, "a") as file:
        file.copy("layer/0", "layer/1")  # which takes 3 inputs and is given 2
    (problem,) = examine_net(path)
    assert "takes inputs of shape (3,), found (2,)" in problem


def test_older_dialects_load(tmp_path):
    """Neuron type LOIHI, real dtypes with whole values, one-dimensional weights, a scalar bias, texts as scalars."""
    old = dense_file(
        tmp_path / "old.net",
        **{"type": b"dense", "neuron/type": b"LOIHI", "weight": np.array([1.0, 2, 3, 4, -5, 6]), "bias": 7.0},
    )
    program = read_net(old, steps=4)
    (layer,) = program.synaptic
    assert program.input_shape == (3,)
    assert layer.weight_int.tolist() == [[1, 2, 3], [4, -5, 6]]
    assert layer.bias_mant.tolist() == [7, 7]
    assert (layer.decay_u_int, layer.decay_v_int, layer.v_th_mant, layer.weight_exp) == (1024, 128, 80, 0)


def test_a_trailing_time_axis_of_convolution_kernels_is_dropped(tmp_path):
    conv = Conv(name="c", weight_int=np.arange(1, 19).reshape(2, 1, 3, 3), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    program = SpikingProgram(input_shape=(1, 5, 4), steps=1, layers=(conv,))
    path = write_net(program, tmp_path / "conv.net")
    with h5py.File(path, "a") as file:
        weight = file["layer/0/weight"][()]
        del file["layer/0/weight"]
        file["layer/0/weight"] = weight[..., None]
    assert np.array_equal(read_net(path, steps=1, input_shape=(1, 5, 4)).synaptic[0].weight_int, conv.weight_int)
    with pytest.raises(UserError, match="does not tell its input's shape"):
        read_net(path, steps=1)
    with pytest.raises(
        UserError, match=r"layer 0 'conv0': gives \(2, 4, 4\) for input \(1, 6, 6\), the file says \(2, 3, 2\)"
    ):
        read_net(path, steps=1, input_shape=(1, 6, 6))


def test_weights_that_lava_stores_with_an_exponent_are_held_as_it_does(tmp_path):
    """Without a positive weight Lava keeps magnitudes up to 255, and netx scales -128 to -256."""
    program = read_net(dense_file(tmp_path / "a.net", weight=np.array([[-128, -3, -7], [-2, -4, -6]])), steps=2)
    (layer,) = program.synaptic
    assert layer.weight_exp == -1
    assert (layer.weight_int * 2.0**layer.weight_exp).tolist() == [[-127, -3, -7], [-2, -4, -6]]


def test_a_delay_as_long_as_the_neurons_is_theirs(tmp_path):
    path = dense_file(tmp_path / "a.net", weight=np.array([[1, 2], [3, 4]]), delay=np.array([0.0, 5.0]))
    assert read_net(path, steps=2).synaptic[0].delay.tolist() == [[0, 0], [5, 5]]
    path = dense_file(tmp_path / "b.net", delay=np.array([0, 5, 1]))
    assert read_net(path, steps=2).synaptic[0].delay.tolist() == [0, 5, 1]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"type": b"pool"}, "layer 0: type 'pool' does not run here; use a strided convolution"),
        ({"type": b"odd"}, "type 'odd' does not run here; known are"),
        ({"type": None}, "layer 0: has no 'type'"),
        ({"type": b"odd\r\n\x1b[31m"}, r"type 'odd\\r\\n\\x1b\[31m' does not run here"),
        ({"type": 5}, "'type' is not one text"),
        ({"weight": None}, "has no 'weight'"),
        ({"weight": np.full((2, 3), 0.5)}, "weight holds 0.5, not an integer, which netx would truncate"),
        ({"weight": np.full((2, 3), np.nan)}, "weight holds nan, not an integer"),
        ({"weight": np.zeros((2, 3))}, "all weights are zero, which netx cannot scale"),
        ({"weight": np.array([[255, -1, 0], [0, 0, 0]])}, r"weights span \[-1, 255\]"),
        ({"weight": np.full((2, 3), 1000)}, r"weights span \[1000, 1000\], Loihi holds"),
        ({"weight": np.ones((3, 3))}, r"weight has shape \(3, 3\), its 2 neurons need"),
        ({"weight": np.array([[-1, -1, -1], [-1, -1, -1]])}, "as zero"),
        ({"bias": np.zeros(3)}, "bias holds 3 values, expected 1 or 2"),
        ({"bias": np.full(2, 5000)}, "bias_mant is 5000, Loihi holds -4096..4095"),
        ({"neuron/type": None, "neuron/iDecay": None, "neuron/vDecay": None, "neuron/vThMant": None}, "has no neuron"),
        ({"neuron/type": b"SDNN"}, "neuron type 'SDNN' does not run here"),
        ({"neuron/iDecay": 5000}, r"decay_u_int is 5000, Loihi holds 1\.\.4096"),
        ({"neuron/vThMant": 1 << 20}, "v_th_mant is 1048576, Loihi holds"),
        ({"neuron/vThMant": np.zeros(3)}, "neuron/vThMant holds 3 values, expected 1 or 2"),
        ({"delay": np.array([0, 63])}, r"delay is 63, netx holds 0\.\.62"),
        ({"delay": np.array([0, 1, 2, 3])}, r"delay has shape \(4,\)"),
        ({"shape": np.array([1 << 40])}, "beyond 32 bits"),
    ],
)
def test_what_netx_takes_silently_is_refused_by_file_layer_and_value(tmp_path, changes, match):
    path = dense_file(tmp_path / "bad.net", **changes)
    with pytest.raises(UserError, match=match) as refused:
        read_net(path, steps=4)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_convolutions_with_delays_and_recurrent_layers_with_delays_are_refused(tmp_path):
    values = {"decay_u_int": 1, "decay_v_int": 1, "v_th_mant": 1}
    conv = Conv(name="c", weight_int=np.ones((1, 1, 1, 1), int), **values)
    path = write_net(SpikingProgram(input_shape=(1, 1, 1), steps=1, layers=(conv,)), tmp_path / "conv.net")
    with h5py.File(path, "a") as file:
        file["layer/0/delay"] = np.array([3])
    with pytest.raises(UserError, match="layer 0 'conv0': has delays, which netx drops without a word"):
        read_net(path, steps=1, input_shape=(1, 1, 1))
    heard = Recurrent(name="r", weight_int=np.eye(2, dtype=int), weight_rec_int=np.eye(2, dtype=int), **values)
    path = write_net(SpikingProgram(input_shape=(2,), steps=1, layers=(heard,)), tmp_path / "rec.net")
    with h5py.File(path, "a") as file:
        file["layer/0/delay"] = np.array([3, 3])
    with pytest.raises(UserError, match="recurrent layers with delays do not run here"):
        read_net(path, steps=1)
    delayed = Recurrent(**vars(heard) | {"delay": np.array(1)})
    with pytest.raises(UserError, match="is recurrent and has delays"):
        write_net(SpikingProgram(input_shape=(2,), steps=1, layers=(delayed,)), tmp_path / "no.net")
    assert not (tmp_path / "no.net").exists()


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + bytes(40), b"text"])
def test_a_file_that_is_no_hdf5_is_refused(tmp_path, content):
    path = tmp_path / "bad.net"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not a \.net file that can be read"):
        read_net(path, steps=1)
    with pytest.raises(UserError, match="no such file"):
        read_net(tmp_path / "missing.net", steps=1)


def test_a_dense_layer_behind_a_grid_gets_a_flatten(tmp_path):
    layer = Dense(name="d", weight_int=np.ones((2, 8), int), decay_u_int=1, decay_v_int=1, v_th_mant=1)
    path = write_net(SpikingProgram(input_shape=(8,), steps=1, layers=(layer,)), tmp_path / "a.net")
    assert read_net(path, steps=1, input_shape=(2, 2, 2)).input_shape == (2, 2, 2)
