"""Programs: what is refused, and that a folder on disk gives back what was saved or nothing."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hw import Conv, Dense, Flatten, SpikingProgram, UserError
from hw.artifact import MANIFEST, sha256
from hw.exchange.formats import difference
from hw.loihi import V_TH_MANT_MAX
from hw.program_file import load_program, save_program
from hw.validate import problems, validate

NEURON = {"decay_u_int": 1024, "decay_v_int": 128, "v_th_mant": 80}


def make_program() -> SpikingProgram:
    rng = np.random.default_rng(0)
    conv = Conv(
        name="conv1",
        weight_int=rng.integers(-128, 128, (4, 1, 3, 2)),
        stride=(1, 2),
        padding=(1, 0),
        groups=2,
        bias_mant=np.arange(4),
        **NEURON | {"v_th_mant": np.arange(4) + 5},
    )
    dense = Dense(name="dense1", weight_int=rng.integers(-128, 128, (5, 4 * 6 * 2)), weight_exp=-1, **NEURON)
    return SpikingProgram(input_shape=(2, 6, 5), steps=3, layers=(conv, Flatten(), dense))


def dense_program(**changes: object) -> SpikingProgram:
    layer = Dense(name="fc", **{"weight_int": np.array([[1, -2], [3, 4]])} | NEURON | changes)
    return SpikingProgram(input_shape=(2,), steps=1, layers=(layer,))


def assert_equal(a: SpikingProgram, b: SpikingProgram) -> None:
    assert (a.input_shape, a.steps, a.shapes) == (b.input_shape, b.steps, b.shapes)
    for one, other in zip(a.layers, b.layers, strict=True):
        assert type(one) is type(other)
        for key, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, key), err_msg=key)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_program(make_program(), tmp_path / "program")


def test_a_good_program_has_no_problems_and_the_shapes_of_its_layers() -> None:
    program = make_program()
    assert problems(program) == []
    assert program.shapes == {"conv1": (4, 6, 2), "flatten": (48,), "dense1": (5,)}


@pytest.mark.parametrize(
    ("changes", "value", "limit", "fix"),
    [
        ({"weight_int": np.array([[129, -1], [0, 0]])}, "129", r"\[-128, 127\]", "quantize with bits=8"),
        ({"weight_int": np.array([[256, 0], [0, 0]])}, "256", "8 bits", "quantize with bits=8"),
        ({"weight_int": np.array([[-258, 0], [0, 0]])}, "-258", "8 bits", "quantize with bits=8"),
        ({"weight_int": np.zeros((2, 2), int)}, "zero", "netx cannot scale", "drop the layer"),
        ({"weight_bits": 9}, "9", r"1\.\.8", "num_weight_bits"),
        ({"weight_bits": 3}, r"\[-2, 4\] in steps of 1", r"\[-4, 3\] steps", "raise weight_bits"),
        ({"scale_exp": -127}, "-127", "126", "rescale"),
        ({"weight_exp": 8}, "8", r"-8\.\.7", "rescale"),
        ({"weight_exp": 10**40}, "1" + "0" * 40, r"-8\.\.7", "rescale"),
        ({"v_th_mant": V_TH_MANT_MAX + 1}, str(V_TH_MANT_MAX + 1), r"0\.\.131071", "rescale"),
        ({"v_th_mant": -1}, "-1", r"0\.\.131071", "rescale"),
        ({"decay_u_int": 0}, "0", r"1\.\.4096", "clamp"),
        ({"decay_u_int": 5000}, "5000", r"1\.\.4096", "clamp"),
        ({"decay_v_int": np.array([0, 4097])}, "4097", r"0\.\.4096", "clamp"),
        ({"bias_mant": np.array([0, 4096])}, "4096", r"-4096\.\.4095", "clamp"),
        ({"bias_mant": np.array([0, 1, 2])}, r"\(3,\)", r"\(2,\)", "expected"),
        ({"bias_exp": 8}, "8", r"0\.\.7", "bias_exp"),
    ],
)
def test_a_value_that_the_chip_cannot_hold_is_refused_by_layer_value_limit_and_fix(
    changes: dict[str, object], value: str, limit: str, fix: str
) -> None:
    with pytest.raises(UserError) as error:
        validate(dense_program(**changes))
    message = str(error.value)
    assert "layer 0 'fc'" in message
    assert "\n" not in message
    for part in (value, limit, fix):
        assert re.search(part, message), (part, message)


def test_a_sum_of_weights_that_could_wrap_lavas_synapse_is_refused() -> None:
    weight = np.full((1, 600), 127)
    layer = Dense(name="wide", weight_int=weight, weight_exp=7, **NEURON)
    program = SpikingProgram(input_shape=(600,), steps=1, layers=(layer,))
    with pytest.raises(UserError, match=r"'wide': the largest sum of \|weight \* input\| of one neuron is 76200"):
        validate(program)
    validate(replace(program, layers=(replace(layer, weight_exp=6),)))


def test_a_second_problem_is_counted() -> None:
    with pytest.raises(UserError, match=r"and 1 more"):
        validate(dense_program(v_th_mant=-1, bias_exp=9))


def test_real_numbers_are_refused_by_layer_and_name() -> None:
    with pytest.raises(UserError, match=r"layer 'fc': weight_int holds float64.*quantize first"):
        dense_program(weight_int=np.array([[0.5, 1.0], [0.0, 1.0]]))


def test_unsigned_numbers_are_not_wrapped() -> None:
    """2^64 - 1 would be a legal weight of -1."""
    ones = np.ones((2, 2), np.uint64)
    with pytest.raises(UserError, match=r"layer 'fc': weight_int holds 18446744073709551615, beyond the 63 bits"):
        dense_program(weight_int=ones * (2**64 - 1))
    assert dense_program(weight_int=ones).layers[0].weight_int.dtype == np.int64


@pytest.mark.parametrize(
    ("layer", "shape", "match"),
    [
        (
            Dense(name="fc", weight_int=np.ones((2, 3), int), **NEURON),
            (4,),
            r"'fc': dense weight \(2, 3\).*found \(4,\)",
        ),
        (Dense(name="fc", weight_int=np.ones((2, 8), int), **NEURON), (2, 2, 2), "put a Flatten in front"),
        (Conv(name="c", weight_int=np.ones((2, 3, 1, 1), int), **NEURON), (4, 2, 2), "takes 3 input channels, found 4"),
        (Conv(name="c", weight_int=np.ones((3, 1, 1, 1), int), groups=2, **NEURON), (2, 2, 2), "groups=2"),
        (Conv(name="c", weight_int=np.ones((1, 1, 3, 3), int), **NEURON), (1, 2, 2), "does not fit"),
        (Conv(name="c", weight_int=np.ones((1, 1, 1, 1), int), stride=(0, 1), **NEURON), (1, 2, 2), "at least 1"),
        (Conv(name="c", weight_int=np.ones((1, 1, 1, 1), int), **NEURON), (4,), "rank 4"),
    ],
)
def test_layers_that_do_not_fit_each_other_are_refused_by_name(
    layer: Conv | Dense, shape: tuple[int, ...], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        SpikingProgram(input_shape=shape, steps=1, layers=(layer,))


@pytest.mark.parametrize("changes", [{"steps": 0}, {"layers": ()}, {"input_shape": ()}, {"input_shape": (0,)}])
def test_an_empty_program_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match="a program needs"):
        replace(dense_program(), **changes)


def test_two_layers_of_one_name_are_refused() -> None:
    layer = dense_program().layers[0]
    with pytest.raises(UserError, match="names must differ"):
        SpikingProgram(input_shape=(2,), steps=1, layers=(layer, layer))


def test_low_zeros_that_all_weights_share_take_no_bits() -> None:
    weight = np.array([[-128, 96], [32, 0]])
    assert problems(dense_program(weight_int=weight, weight_bits=3)) == []
    assert len(problems(dense_program(weight_int=weight + 16, weight_bits=3))) == 1


def test_a_saved_program_loads_as_it_was(saved: Path) -> None:
    assert_equal(load_program(saved), make_program())


def test_numpys_integers_are_saved_as_ours_and_other_numbers_are_refused(tmp_path: Path) -> None:
    program = make_program()
    conv = replace(program.layers[0], stride=tuple(np.array([1, 2])), groups=np.uint8(program.layers[0].groups))
    layers = (conv, *program.layers[1:])
    made = replace(program, steps=np.int64(3), input_shape=tuple(np.array(program.input_shape)), layers=layers)
    assert difference(load_program(save_program(made, tmp_path / "p")), replace(program, steps=3)) is None
    with pytest.raises(UserError, match=r"steps is 3\.5, a program holds integers only"):
        replace(program, steps=3.5)
    with pytest.raises(UserError, match="layer 'conv1': stride is 2, a program holds integers only"):
        replace(program.layers[0], stride=2)


def test_an_existing_folder_is_not_overwritten(saved: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        save_program(make_program(), saved)


def test_a_bad_program_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bias_exp"):
        save_program(dense_program(bias_exp=9), tmp_path / "program")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "program.json"])
def test_a_flipped_bit_is_found_and_the_file_named(saved: Path, name: str) -> None:
    path = saved / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*corrupt"):
        load_program(saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "program.json", MANIFEST])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=re.escape(str(saved / name))):
        load_program(saved)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_manifest_that_points_outside_its_folder_is_refused(saved: Path, absolute: bool) -> None:
    outside = saved.parent / "secret"
    outside.write_bytes(b"secret")
    edit_manifest(saved, lambda m: m["files"].update({str(outside) if absolute else "../secret": entry(outside)}))
    with pytest.raises(UserError, match="points outside"):
        load_program(saved)


def test_a_symbolic_link_out_of_the_folder_is_refused(saved: Path) -> None:
    weights = saved / "weights.safetensors"
    weights.rename(saved.parent / "elsewhere")
    weights.symlink_to(saved.parent / "elsewhere")
    with pytest.raises(UserError, match="points outside"):
        load_program(saved)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("kind", "checkpoint", "a folder of kind 'checkpoint'"),
        ("schema", 99, "schema 99"),
        ("files", None, "not a manifest"),
    ],
)
def test_a_foreign_manifest_is_refused_by_what_it_says(saved: Path, key: str, value: object, match: str) -> None:
    edit_manifest(saved, lambda m: m.update({key: value}))
    with pytest.raises(UserError, match=match):
        load_program(saved)


@pytest.mark.parametrize("text", ["not json", "[]", '{"layers": [{"type": "pool"}]}', '{"layers": 3}', "{}"])
def test_a_program_file_of_other_content_is_refused_even_with_a_right_hash(saved: Path, text: str) -> None:
    path = saved / "program.json"
    path.write_text(text)
    edit_manifest(saved, lambda m: m["files"].update({"program.json": entry(path)}))
    with pytest.raises(UserError, match=r"program\.json"):
        load_program(saved)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bias_exp": [1, 2]}, r"conv1\.bias_exp is \[1, 2\], int is expected"),
        ({"weight_bits": [1, 2]}, r"conv1\.weight_bits is \[1, 2\], int"),
        ({"scale_exp": True}, r"conv1\.scale_exp is True, int"),
        ({"groups": 2.0}, r"conv1\.groups is 2\.0, int"),
        ({"weight_exp": None}, r"conv1\.weight_exp"),
        ({"stride": 1}, r"conv1\.stride is 1, two integers"),
        ({"stride": {"1": 1, "2": 1}}, "two integers"),
        ({"padding": [1, 0, 0]}, "two integers"),
        ({"name": 3}, r"3\.name is 3, str"),
    ],
)
def test_a_field_of_another_kind_than_declared_is_refused_by_name(saved: Path, change: dict, match: str) -> None:
    path = saved / "program.json"
    spec = json.loads(path.read_text())
    spec["layers"][0] |= change
    path.write_text(json.dumps(spec))
    edit_manifest(saved, lambda m: m["files"].update({path.name: entry(path)}))
    with pytest.raises(UserError, match=match):
        load_program(saved)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"dense1.weight_int": np.zeros((0, 48), np.int8)}, r"dense1\.weight_int is empty, of shape \(0, 48\)"),
        ({"conv1.weight_int": np.zeros((4, 1, 0, 2), np.int8)}, r"conv1\.weight_int is empty"),
        ({"dense1.v_th_mant": np.zeros(0, np.int8)}, r"dense1\.v_th_mant is empty"),
    ],
)
def test_an_empty_array_is_refused_by_name(saved: Path, arrays: dict, match: str) -> None:
    write_arrays(saved, arrays)
    with pytest.raises(UserError, match=match):
        load_program(saved)


def test_an_array_never_stands_for_a_number_of_the_structure(saved: Path) -> None:
    write_arrays(saved, {"conv1.bias_exp": np.array([1.5]), "conv1.stride": np.array([1.5, 1.5])})
    assert_equal(load_program(saved), make_program())


@pytest.mark.parametrize("name", ["program.json", MANIFEST])
def test_an_integer_of_too_many_digits_is_refused_by_file(saved: Path, name: str) -> None:
    (saved / name).write_text(f'{{"steps": {"1" * 5000}}}')
    edit = {"program.json": entry(saved / "program.json")}
    if name != MANIFEST:
        edit_manifest(saved, lambda m: m["files"].update(edit))
    with pytest.raises(UserError, match=re.escape(str(saved / name)) + r": cannot be read as JSON .* 5000 digits"):
        load_program(saved)


def test_a_json_file_too_large_is_refused_as_such(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hw.artifact._MAX_MANIFEST_BYTES", 1)
    with pytest.raises(UserError, match=r"manifest\.json: larger than 0 MiB, not a manifest of ours$"):
        load_program(saved)


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hw.artifact.os.rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_program(make_program(), tmp_path / "program")
    assert list(tmp_path.iterdir()) == []


KILLED_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
import numpy as np
import hw.artifact
from hw import Dense, SpikingProgram
from hw.program_file import save_program
hw.artifact.os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
layer = Dense(name="fc", weight_int=np.ones((1, 1), int), decay_u_int=1, decay_v_int=1, v_th_mant=1)
save_program(SpikingProgram(input_shape=(1,), steps=1, layers=(layer,)), Path(sys.argv[1]))
"""


def test_a_save_that_is_killed_before_its_rename_leaves_no_program(tmp_path: Path) -> None:
    folder = tmp_path / "program"
    code = subprocess.run([sys.executable, "-c", KILLED_BEFORE_RENAME, str(folder)], check=False).returncode
    assert code == -signal.SIGKILL
    with pytest.raises(UserError, match="there is no such folder"):
        load_program(folder)
    assert_equal(load_program(save_program(make_program(), folder)), make_program())


def entry(path: Path) -> dict[str, object]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Put these beside or in place of the program's, with a manifest that fits."""
    path = folder / "weights.safetensors"
    save_file(load_file(path) | arrays, path)
    edit_manifest(folder, lambda m: m["files"].update({path.name: entry(path)}))


def edit_manifest(folder: Path, edit) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
