"""Simulation from file to file: the command line's `simulate --program` and `doctor --program`."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from ashnets.cli import main
from hw import Conv, Dense, Flatten, Input, SpikingProgram, UserError
from hw.netx_file import write_net
from hw.program_file import save_program
from hw.simulate import open_backend
from hw.simulate.files import load_numbers

NEURON = {"decay_u_int": 1000, "decay_v_int": 200, "v_th_mant": 120}


@pytest.fixture
def program() -> SpikingProgram:
    rng = np.random.default_rng(0)
    conv = Conv(name="conv0", weight_int=rng.integers(-60, 60, (4, 2, 3, 3)), **NEURON)
    dense = Dense(name="dense2", weight_int=rng.integers(-60, 60, (5, 64)), **NEURON)
    return SpikingProgram(input_shape=(2, 6, 6), steps=7, layers=(conv, Flatten(name="flatten1"), dense))


@pytest.fixture(params=["net", "folder"])
def path(request, program, tmp_path) -> Path:
    if request.param == "net":
        return write_net(program, tmp_path / "a.net")
    return save_program(program, tmp_path / "program")


def spikes(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape) < 0.4


def simulate(path: Path, tmp_path: Path, array: np.ndarray, *more: str) -> int:
    np.save(tmp_path / "in.npy", array)
    arguments = ["--program", path, "--input", tmp_path / "in.npy", "--out", tmp_path / "out.npy", *more]
    return main(["simulate", *map(str, arguments)])


def test_a_batch_and_a_single_stream_of_any_length_run_and_keep_their_layout(path, program, tmp_path):
    batch = spikes(3, 7, 2, 6, 6)
    truth = open_backend("reference", program).run(batch.swapaxes(0, 1), layers=True, states=True)
    assert simulate(path, tmp_path, batch, "--backend", "events", "--layers") == 0
    out = np.load(tmp_path / "out.npy")
    assert out.shape == (3, 7, 5)
    assert out.dtype == np.uint8
    assert 0 < out.mean() < 1
    np.testing.assert_array_equal(out, truth.output.swapaxes(0, 1))
    with np.load(tmp_path / "out.layers.npz") as layers:
        assert sorted(layers) == sorted(f"{name}.{key}" for name in ("conv0", "dense2") for key in "suv")
        for name in ("conv0", "dense2"):
            np.testing.assert_array_equal(layers[f"{name}.v"], truth.v[name].swapaxes(0, 1))
            np.testing.assert_array_equal(layers[f"{name}.s"], truth.layers[name].swapaxes(0, 1))
    assert simulate(path, tmp_path, batch[0].astype(np.float32)) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), out[0])
    assert simulate(path, tmp_path, np.concatenate([batch[0]] * 3)) == 0
    assert np.load(tmp_path / "out.npy").shape == (21, 5)


def test_values_beyond_one_are_graded_spikes_of_a_net_file(program, tmp_path):
    net = write_net(program, tmp_path / "a.net")
    graded = spikes(7, 2, 6, 6) * 3
    assert simulate(net, tmp_path, graded) == 0
    plain = np.load(tmp_path / "out.npy")
    simulate(net, tmp_path, graded > 0)
    assert (plain != np.load(tmp_path / "out.npy")).any()


def test_from_layer_starts_behind_the_layers_before(path, program, tmp_path, capsys):
    truth = open_backend("reference", program).run(spikes(7, 1, 2, 6, 6), layers=True)
    hidden = truth.layers["conv0"][:, 0]
    for first, array in ((1, hidden), (2, hidden.reshape(7, 64))):
        assert simulate(path, tmp_path, array, "--from-layer", str(first)) == 0
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), truth.output[:, 0])
    assert simulate(path, tmp_path, hidden, "--from-layer", "3") == 2
    assert ("from layer 3 on" if path.is_file() else "none to start with at 3") in capsys.readouterr().err


@pytest.mark.parametrize("image_shape", [(6,), (2, 3), (2, 2, 3)])
def test_an_input_layer_turns_images_into_biases(image_shape, tmp_path, capsys):
    """Against the equation, step by step; and what the biases cannot hold is refused."""
    rng = np.random.default_rng(0)
    grid = {1: (*image_shape, 1, 1), 2: (1, *image_shape)}.get(len(image_shape), image_shape)
    affine = {"image_weight": 36, "image_bias": -3}
    first = Input.of(grid[0], name="input0", decay_v_int=100, v_th_mant=90, **affine)
    size = int(np.prod(grid))
    dense = Dense(name="dense2", weight_int=rng.integers(-60, 60, (3, size)), **NEURON)
    program = SpikingProgram(input_shape=grid, steps=9, layers=(first, Flatten(name="f"), dense), input_bits=13)
    net = write_net(program, tmp_path / "a.net")
    with h5py.File(net, "a") as file:
        del file["layer/0/shape"]
        file["layer/0/shape"] = np.array(image_shape)
    images = rng.random((9, *image_shape))
    v, expected = np.zeros(image_shape, int), []
    for image in images:
        v = np.sign(v) * (np.abs(v) * 3996 // 4096) + (np.trunc(36 * image - 3).astype(int) << 6)
        expected.append(v > 90 << 6)
        v[expected[-1]] = 0
    assert 0.05 < np.mean(expected) < 0.9
    for path in (net, save_program(program, tmp_path / "program")):
        for backend in ("reference", "events", "batched"):
            assert simulate(path, tmp_path, images, "--layers", "--backend", backend) == 0
            with np.load(tmp_path / "out.layers.npz") as layers:
                np.testing.assert_array_equal(layers["input0.s"].reshape(9, *image_shape), expected)
        assert simulate(path, tmp_path, 200 * images) == 2
        if path.is_file():  # [B, 1, ...]: a batch of one step each, whatever a program's folder would take it for
            assert simulate(path, tmp_path, images[:, None]) == 0
            assert np.load(tmp_path / "out.npy").shape[:2] == (9, 1)
        assert "a bias holds -4096..4095; scale the image" in capsys.readouterr().err
    with h5py.File(net, "a") as file:
        file["layer/0/neuron/iDecay"][()] = 1000
    assert simulate(net, tmp_path, images) == 2
    assert "train with current_decay=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((7, 3, 6, 6)), "input"),
        (np.zeros((7, 6)), "spikes have shape (7, 6)"),
        (np.full((7, 2, 6, 6), 0.5), "holds 0.5, spikes are integers"),
        (np.full((7, 2, 6, 6), np.nan), "holds nan, spikes are integers"),
        (np.zeros((0, 2, 6, 6)), "holds no array of numbers"),
        (np.array(["text"]), "holds no array of numbers"),
        (np.array([{"a": 1}], dtype=object), "not an .npy file of numbers"),
    ],
)
def test_input_that_does_not_fit_is_one_line_and_writes_nothing(path, tmp_path, capsys, array, match):
    assert simulate(path, tmp_path, array) == 2
    line = capsys.readouterr().err
    assert match in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("content", [np.lib.format.magic(1, 0), b"PK\3\4 no archive", b""])
def test_a_file_that_is_no_npy_is_one_line(tmp_path, content):
    (tmp_path / "in.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"in\.npy: not an \.npy file of numbers .*; save it with numpy\.save"):
        load_numbers(tmp_path / "in.npy")


def test_an_npy_that_claims_more_than_memory_holds_is_one_line(tmp_path):
    with open(tmp_path / "in.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 46,)})
    with pytest.raises(UserError, match=r"in\.npy: not an \.npy file of numbers \(Unable to allocate"):
        load_numbers(tmp_path / "in.npy")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "nothing to simulate"),
        (["--program", "a.net"], "--program also needs --input"),
        (["runs/a", "--program", "a.net"], "leave RUN and --verify out"),
        (["runs/a", "--layers"], "go with --program"),
        (["--program", "a.net", "--input", "missing.npy", "--out", "o.npy"], "missing.npy: no such file"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(capsys, arguments, match):
    assert main(["simulate", *arguments]) == 2
    assert match in capsys.readouterr().err


def test_doctor_names_every_problem_of_a_program_at_once(path, tmp_path, capsys):
    assert main(["doctor", "--program", str(path)]) == 0
    assert "fits" in capsys.readouterr().out
    bad = write_net(
        SpikingProgram(
            input_shape=(2,),
            steps=1,
            layers=tuple(Dense(name=f"d{i}", weight_int=np.eye(2, dtype=int), **NEURON) for i in range(3)),
        ),
        tmp_path / "bad.net",
    )
    with h5py.File(bad, "a") as file:
        file["layer/0/neuron/vThMant"][()] = 1 << 20
        file["layer/0/neuron/iDecay"][()] = 5000
        file["layer/1/type"][...] = np.array([b"pool"], "S10")
        file["layer/2/weight"][...] = 0
    assert main(["doctor", "--program", str(bad)]) == 1
    lines = capsys.readouterr().out
    for part in (
        "layer 0 'dense0': v_th_mant is 1048576",
        "decay_u_int is 5000",
        "type 'pool'",
        "all weights are zero",
    ):
        assert part in lines
    assert lines.count("PROBLEM") == 4


def test_behind_a_flatten_the_input_is_still_graded(tmp_path):
    dense = Dense(name="d", weight_int=12 * np.arange(1, 9).reshape(2, 4), **NEURON)
    whole = SpikingProgram(input_shape=(1, 2, 2), steps=3, layers=(Flatten(name="f"), dense), input_bits=4)
    graded = np.random.default_rng(0).integers(-15, 16, (3, 1, 2, 2))
    path = save_program(whole, tmp_path / "program")
    assert simulate(path, tmp_path, graded) == 0
    truth = np.load(tmp_path / "out.npy")
    assert truth.any()
    assert simulate(path, tmp_path, graded.reshape(3, 4), "--from-layer", "1") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), truth)


def test_numbers_of_the_other_byte_order_are_read_in_this_machines(tmp_path):
    values = np.arange(6).reshape(2, 3)
    np.save(tmp_path / "in.npy", values.astype(np.dtype(np.int32).newbyteorder()))
    found = load_numbers(tmp_path / "in.npy")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, values)


def test_spikes_and_layers_are_written_both_or_neither(path, tmp_path, capsys):
    (tmp_path / "out.layers.npz").mkdir()
    assert simulate(path, tmp_path, spikes(7, 2, 6, 6), "--layers") == 2
    assert "out.layers.npz: is a folder; give the path of a file" in capsys.readouterr().err
    assert not (tmp_path / "out.npy").exists()
    assert simulate(path, tmp_path, spikes(7, 2, 6, 6)) == 0
