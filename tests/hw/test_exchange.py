"""Exported files: the same integers read back, the same spikes run, everything else refused and nothing left behind."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import nir
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hw import BackendError, Dense, Flatten, Recurrent, SpikingProgram, UserError
from hw.exchange import formats
from hw.exchange.export import export_program, random_spikes, read_export
from hw.exchange.formats import FORMATS, Sample, difference
from hw.exchange.nir_file import nir_graph
from hw.exchange.onnx_reader import model_of, read_onnx
from hw.exchange.session import session_of
from hw.simulate import open_backend
from tests.hw.fuzz_files import chain
from tests.hw.strategies import cases
from tests.hw.test_backends import assert_same
from tests.hw.test_program import assert_equal

ONNX = ("qcdq", "qcdq-scan", "qonnx")


def layer(name: str = "fc", **changes: object) -> Dense:
    values = {"weight_int": np.array([[1, -2], [3, 4]]), "decay_u_int": 9, "decay_v_int": 8, "v_th_mant": 7}
    return Dense(name=name, **values | changes)


def of(*layers: object) -> SpikingProgram:
    return SpikingProgram(input_shape=(2,), steps=3, layers=layers)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 9))
def test_the_step_graph_gives_the_same_spikes_u_and_v_at_once_and_in_pieces(case, cut):
    program, spikes = case
    reference, found = (open_backend(name, program) for name in ("reference", "onnx-step"))
    truth = reference.run(spikes, layers=True, states=True, state={})
    assert_same(found.run(spikes, layers=True, states=True, state={}), truth)
    first = found.run(spikes[:cut], state={})
    if cut < len(spikes):
        second = found.run(spikes[cut:], layers=True, states=True, state=first.state)
        assert_same(second, reference.run(spikes[cut:], layers=True, states=True, state=first.state))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_one_call_of_the_scan_graph_gives_the_same_spikes(case):
    program, spikes = case
    truth = open_backend("reference", program).run(spikes, layers=True)
    found = open_backend("onnx-scan", program).run(spikes, layers=True)
    np.testing.assert_array_equal(found.output, truth.output)
    assert found.layers.keys() == truth.layers.keys()
    for name, values in truth.layers.items():
        np.testing.assert_array_equal(found.layers[name], values)


@settings(max_examples=6, deadline=None)
@given(cases())
def test_the_qonnx_executor_gives_the_same_spikes_u_and_v(case):
    program, spikes = case
    truth = open_backend("reference", program).run(spikes, layers=True, states=True)
    assert_same(open_backend("qonnx", program).run(spikes, layers=True, states=True), truth)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_every_file_gives_back_the_program_that_it_was_made_of(tmp_path_factory, case):
    program, _ = case
    folder = tmp_path_factory.mktemp("files")
    for name, kind in FORMATS.items():
        path = folder / kind.file
        try:
            kind.write(program, path)
        except UserError:
            assert name in ("netx", "nir")  # which do not hold every program
            continue
        found = kind.read(path, Sample.of(program))
        assert difference(program, found) is None, name
        if name != "netx":
            assert_equal(program, found)
        path.unlink()


@pytest.mark.parametrize("form", ONNX)
def test_graphs_pass_the_checker_of_onnx(form):
    onnx.checker.check_model(model_of(chain(), form, 1 if form == "qonnx" else "B"), full_check=form != "qonnx")


def test_onnxruntime_alone_runs_the_exported_step(tmp_path):
    """As a user does it: the file, its names, and no code of ours."""
    program, spikes = chain(), random_spikes(chain(), 5)
    export_program(program, tmp_path / "out", "qcdq", spikes)
    session = session_of(str(tmp_path / "out" / "step.onnx"))
    states = {i.name: np.zeros([5, *i.shape[1:]], np.int64) for i in session.get_inputs() if i.name != "spikes"}
    names, output = [o.name for o in session.get_outputs()], []
    for s in spikes.astype(np.float32):
        found = dict(zip(names, session.run(names, {**states, "spikes": s}), strict=True))
        states = {name: found[f"{name}_next"] for name in states}
        output.append(found["dense.spikes"])
    np.testing.assert_array_equal(np.stack(output), open_backend("reference", program).run(spikes).output)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("form", ONNX)
def test_a_graph_that_computes_something_else_is_refused(form, tmp_path):
    model = model_of(chain(), form)
    nodes = model.graph.node
    if form == "qcdq-scan":
        nodes = next(node for node in nodes if node.op_type == "Scan").attribute[0].g.node
        assert len(nodes) > 10
    fired = next(node for node in nodes if node.op_type == "Greater")
    fired.op_type = "GreaterOrEqual"
    with pytest.raises(UserError, match="its graph is not the one that its integers make"):
        read_onnx(saved(model, tmp_path / "a.onnx"), form)


def test_a_changed_weight_is_read_as_it_stands(tmp_path):
    model = model_of(chain(), "qcdq")
    weight = next(t for t in model.graph.initializer if t.name == "dense.weight_int")
    weight.raw_data = bytes([5]) + weight.raw_data[1:]
    assert read_onnx(saved(model, tmp_path / "a.onnx"), "qcdq").layers[2].weight_int[0, 0] == 5


def test_few_bit_weights_take_half_a_byte_each_and_come_back_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    few = of(layer(weight_int=16 * rng.integers(-7, 8, (40, 2)), weight_bits=4))
    held = {t.name: t for t in model_of(few, "qcdq").graph.initializer}
    assert held["fc.weight_int"].data_type == TensorProto.INT4
    assert len(held["fc.weight_int"].raw_data) == 40
    assert numpy_helper.to_array(held["fc.weight_int.scale"]) == 16
    assert_equal(few, read_onnx(saved(model_of(few, "qcdq"), tmp_path / "a.onnx"), "qcdq"))
    model = model_of(few, "qcdq")
    scale = next(t for t in model.graph.initializer if t.name == "fc.weight_int.scale")
    scale.CopyFrom(numpy_helper.from_array(np.full((99, 1, 1), 16, np.float32), scale.name))
    with pytest.raises(UserError, match="its graph is not the one"):
        read_onnx(saved(model, tmp_path / "b.onnx"), "qcdq")


def test_tensors_outside_the_file_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "secret").write_bytes(b"\1" * 432)
    model = model_of(chain(), "qcdq")
    weight = next(t for t in model.graph.initializer if t.name == "dense.weight_int")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    with pytest.raises(UserError, match=r"tensor 'dense.weight_int' lies in another file \('../secret'\)"):
        read_onnx(saved(model, tmp_path / "a.onnx"), "qcdq")


def test_a_foreign_onnx_file_is_refused(tmp_path):
    graph = helper.make_graph([], "g", [helper.make_tensor_value_info("spikes", 1, [1, 2])], [])
    with pytest.raises(UserError, match="has no metadata"):
        read_onnx(saved(helper.make_model(graph), tmp_path / "a.onnx"), "qcdq")
    (tmp_path / "b.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="not an ONNX model"):
        read_onnx(tmp_path / "b.onnx", "qcdq")


def test_nir_holds_real_units_and_refuses_values_that_its_integers_do_not_make(tmp_path):
    program = of(layer(scale_exp=-3, weight_exp=1, bias_mant=np.array([4, 0])))
    graph = nir_graph(program)
    np.testing.assert_array_equal(graph.nodes["fc_synapses"].weight, np.array([[1, -2], [3, 4]]) * 2 / 8)
    neurons = graph.nodes["fc"]
    np.testing.assert_allclose(1e-4 / neurons.tau_syn, 9 / 4096, rtol=1e-6)
    np.testing.assert_allclose(neurons.v_leak / neurons.r, [4 / 8, 0])
    np.testing.assert_array_equal(neurons.v_threshold, [(7 + 1 / 128) / 8] * 2)  # between two states
    path = tmp_path / "a.nir"
    FORMATS["nir"].write(program, path)
    nir.read(path)
    with h5py.File(path, "r+") as file:
        file["node/nodes/fc/v_threshold"][1] = 1
    with pytest.raises(UserError, match="'node/nodes/fc/v_threshold' is not what its integers make"):
        FORMATS["nir"].read(path, Sample.of(program))


@pytest.mark.parametrize(
    ("names", "nodes"),
    [
        (("hidden", "output"), ["hidden_synapses", "hidden", "output_synapses", "output_"]),
        (("input", "a"), ["input_synapses", "input_", "a_synapses", "a"]),
        (("x", "x_synapses"), ["x_synapses", "x", "x_synapses_synapses", "x_synapses_"]),
        (("x_synapses", "x"), ["x_synapses_synapses", "x_synapses", "x_synapses_", "x"]),
    ],
)
def test_layers_whose_names_nodes_of_nir_have_keep_nodes_of_their_own(names, nodes, tmp_path):
    program = of(*(layer(name) for name in names))
    export_program(program, tmp_path / "out", "nir", random_spikes(program, 2))
    found = nir.read(tmp_path / "out" / "network.nir")
    order = ["input", *nodes, "output"]
    assert sorted(found.nodes) == sorted(order)
    assert sorted(found.edges) == sorted(pairwise(order))
    assert_equal(program, read_export(tmp_path / "out")[0])


@pytest.mark.parametrize("name", ["a/b", ".", "", "\0", "\u00fc"])
def test_names_that_a_nir_file_does_not_take_are_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"NIR's names are ASCII, .*; rename it"):
        export_program(of(layer(name)), tmp_path / "out", "nir", random_spikes(of(layer()), 2))
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_scan_graph_needs_is_refused():
    with pytest.raises(UserError, match=r"layer 'series\.a': a scan needs the name 'series.a.spikes' for another"):
        model_of(of(layer("a"), layer("series.a")), "qcdq-scan")


RECURRENT = Recurrent(
    name="r", weight_int=np.eye(2, dtype=int), weight_rec_int=np.eye(2, dtype=int), decay_u_int=1, decay_v_int=1,
    v_th_mant=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (of(layer(delay=np.array([0, 2]))), "has delays up to 2 steps"),
        (of(RECURRENT), "is recurrent"),
        (of(layer(weight_exp=-1)), "has weight_exp -1"),
        (of(layer(decay_v_int=0)), "has decay_v_int 0"),
        (replace(of(layer()), input_bits=3), "input_bits is 3"),
    ],
)
def test_what_nir_cannot_hold_is_refused_and_nothing_is_left(program, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        export_program(program, tmp_path / "out", "nir", random_spikes(program, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_is_a_checked_folder_that_loads(format, tmp_path):
    program = chain()
    meta = export_program(program, tmp_path / "out", format, random_spikes(program, 3))
    assert meta["checked"]["samples"] == 3
    assert meta["checked"]["mismatching_spikes"] == 0
    assert meta["checked"]["spikes"] == 7 * 3 * (4 * 36 + 3)
    found, named = read_export(tmp_path / "out")
    assert named == format
    assert difference(program, found) is None
    with pytest.raises(UserError, match="exists already"):
        export_program(program, tmp_path / "out", format, random_spikes(program, 1))


@pytest.mark.parametrize("fault", ["integers", "spikes"])
def test_a_file_that_is_not_the_program_is_not_kept(fault, tmp_path, monkeypatch):
    program = of(layer())
    other = of(layer(v_th_mant=0))
    kind = FORMATS["qcdq"]
    monkeypatch.setitem(formats.FORMATS, "qcdq", replace(kind, read=lambda path, sample: other))
    if fault == "spikes":
        monkeypatch.setattr("hw.exchange.export.difference", lambda a, b: None)
    with pytest.raises(BackendError, match="integers: layer 'fc': v_th_mant" if fault == "integers" else "otherwise"):
        export_program(program, tmp_path / "out", "qcdq", random_spikes(program, 4))
    assert list(tmp_path.iterdir()) == []


def test_two_programs_differ_where_a_neuron_gets_other_integers():
    base = of(layer())
    assert difference(base, of(layer(weight_int=np.array([[2, -4], [6, 8]]), weight_exp=-1))) is None
    assert difference(base, of(layer(v_th_mant=np.array([7, 7])))) is None
    for changes in ({"weight_exp": 1}, {"bias_mant": np.array([0, 1])}, {"delay": np.array(1)}, {"decay_v_int": 9}):
        assert difference(base, of(layer(**changes))) is not None
    assert difference(base, of(layer(), layer("second"))) == "1 and 2 layers"
    assert difference(base, of(layer(), Flatten())) is not None
