"""Networks from NIR and `.net`: the same integers come out again, real dynamics are taken over, the rest is refused."""

import re
from itertools import pairwise
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

import quantize
from ashnets.config import AbstractConfig
from ashnets.stack import SpikingLayer
from hw.errors import UserError
from hw.exchange.formats import difference
from hw.exchange.nir_file import write_nir
from hw.netx_file import write_net
from hw.program import SpikingProgram
from tests.hw.test_exchange import RECURRENT, layer, of
from tests.quantize.test_qat import trained_like

CONFIG = AbstractConfig(steps=5, convs=((6, 2),), dense=(7, 4))


def program() -> SpikingProgram:
    made = quantize.lower(quantize.QuantizedStack(trained_like(CONFIG, (2, 6, 6), 3), "int8:max"))
    for each in made.synaptic:
        each.weight_int[each.weight_int == np.abs(each.weight_int).max()] = (
            127  # so that int8 gets the same scale again
        )
    return made


def again(stack, made: SpikingProgram) -> SpikingProgram:
    spikes = torch.zeros(made.steps, 1, *made.input_shape)
    return quantize.lower(quantize.ptq(stack, spikes, "int8:max", "plain"))


def test_a_program_becomes_a_network_and_the_same_program_again():
    made = program()
    assert difference(again(quantize.from_program(made), made), made) is None


def test_a_net_file_and_a_nir_file_become_networks_of_the_same_integers(tmp_path):
    made = program()
    write_net(made, tmp_path / "a.net")
    write_nir(made, tmp_path / "a.nir")
    from_net = quantize.from_net(tmp_path / "a.net", steps=5, input_shape=(2, 6, 6))
    assert difference(again(from_net, made), made) is None
    assert difference(again(quantize.from_nir(tmp_path / "a.nir", steps=5), made), made) is None


def foreign(path: Path, neuron: nir.NIRNode, synapse: nir.NIRNode | None = None, **edges: object) -> Path:
    """A graph as another tool writes it."""
    synapse = synapse or nir.Linear(weight=np.array([[1.0, 2, 3], [-1, 0.5, 2]]))
    nir.write(path, nir.NIRGraph.from_list(synapse, neuron))
    return path


def cuba(**changes: object) -> nir.CubaLIF:
    values = {
        "tau_syn": np.array([0.01, 0.02]),
        "tau_mem": np.array([0.005, 0.04]),
        "r": np.array([5.0, 40]),
        "v_leak": np.array([0.5, 0]),
        "v_threshold": np.array([2.0, 4]),
        "w_in": np.array([10.0, 20]),
    }
    return nir.CubaLIF(**values | changes)


def test_a_networks_own_time_constants_are_taken_over_and_thresholds_by_channel_become_one(tmp_path):
    stack = quantize.from_nir(foreign(tmp_path / "a.nir", cuba()), steps=6, dt=1e-3)
    (only,) = stack.neural_layers.values()
    assert isinstance(only, SpikingLayer)
    s = (torch.rand(6, 20, 3) < 0.5).float()
    i = v = np.zeros((20, 2))
    expected = []
    for step in s.numpy():  # Euler, as NIR's equations say
        i = i + 1e-3 / np.array([0.01, 0.02]) * (
            -i + np.array([10.0, 20]) * (step @ np.array([[1.0, 2, 3], [-1, 0.5, 2]]).T)
        )
        v = v + 1e-3 / np.array([0.005, 0.04]) * (np.array([0.5, 0]) - v + np.array([5.0, 40]) * i)
        expected.append(v > np.array([2.0, 4]))
        v = np.where(expected[-1], 0, v)
    with torch.no_grad():
        np.testing.assert_array_equal(stack(s).numpy(), np.stack(expected))
    assert 0.05 < np.mean(expected) < 0.95
    assert stack.layers[0].neuron.v_th == 1


def test_a_neuron_without_current_passes_its_input_on_at_once(tmp_path):
    neuron = nir.LIF(tau=np.full(2, 0.004), r=np.full(2, 4.0), v_leak=np.zeros(2), v_threshold=np.full(2, 3.0))
    made = quantize.lower(
        quantize.ptq(quantize.from_nir(foreign(tmp_path / "a.nir", neuron), steps=4, dt=1e-3), torch.ones(4, 1, 3))
    )
    assert made.layers[0].decay_u_int == 4096
    assert made.layers[0].decay_v_int == 1024


@pytest.mark.parametrize(
    ("neuron", "synapse", "reason"),
    [
        (cuba(v_reset=np.ones(2)), None, "v_reset is not 0"),
        (cuba(tau_syn=np.full(2, 1e-5)), None, r"dt / tau_syn is 10, a decay lies in \(0, 1\]; pass the dt"),
        (cuba(), nir.Affine(weight=np.ones((2, 3)), bias=np.ones(2)), "has a bias"),
        (cuba(v_threshold=np.full(2, -0.5)), None, "its threshold is -0.5, the chip holds none below 0"),
        (cuba(v_leak=np.array([np.nan, 0])), None, "v_leak holds nan, not finite values"),
        (cuba(), nir.Linear(weight=np.full((2, 3), np.inf)), "synapse.weight holds inf, the chip holds finite values"),
        (nir.IF(r=np.ones(2), v_threshold=np.ones(2)), None, "is IF, which the chip does not hold"),
    ],
)
def test_what_cannot_be_held_is_refused_by_node(neuron, synapse, reason, tmp_path):
    path = foreign(tmp_path / "a.nir", neuron, synapse)
    with pytest.raises(UserError, match=reason):
        quantize.from_nir(path, steps=4)


def test_graphs_that_branch_and_files_that_are_none_are_refused(tmp_path):
    nodes = {
        "input": nir.Input(input_type={"input": np.array([3])}),
        "a": nir.Linear(weight=np.ones((2, 3))),
        "b": nir.Linear(weight=np.ones((2, 3))),
        "output": nir.Output(output_type={"output": np.array([2])}),
    }
    edges = [("input", "a"), ("input", "b"), ("a", "output")]
    nir.write(tmp_path / "a.nir", nir.NIRGraph(nodes, edges, type_check=False))
    with pytest.raises(UserError, match=r"a.nir: edge 'input' -> 'b': the graph branches"):
        quantize.from_nir(tmp_path / "a.nir", steps=4)
    (tmp_path / "b.nir").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a NIR file"):
        quantize.from_nir(tmp_path / "b.nir", steps=4)


def test_a_step_that_is_no_number_is_refused_and_another_one_taken(tmp_path):
    graph = nir.NIRGraph.from_list(nir.Linear(weight=np.ones((2, 3))), cuba())
    graph.metadata["dt"] = "soon"
    nir.write(tmp_path / "a.nir", graph)
    with pytest.raises(UserError, match=r"a.nir: its metadata dt is 'soon', not seconds of a step; pass dt"):
        quantize.from_nir(tmp_path / "a.nir", steps=4)
    quantize.from_nir(tmp_path / "a.nir", steps=4, dt=1e-4)


@pytest.mark.parametrize("part", [b"HEAP", b"SNOD", b"TREE"])
def test_a_damaged_file_is_refused_whatever_h5py_says_of_it(part, tmp_path):
    path = foreign(tmp_path / "a.nir", cuba())
    whole = path.read_bytes()
    for found in re.finditer(part, whole):
        path.write_bytes(whole[: found.start()] + b"\xff" + whole[found.start() + 1 :])
        with pytest.raises(UserError, match=r"a.nir: not a NIR file that can be read \(.*\); export it again"):
            quantize.from_nir(path, steps=4)


def test_names_that_torch_does_not_take_for_layers_are_changed(tmp_path):
    nodes = {"input": nir.Input(input_type={"input": np.array([3])})}
    for size, name in ((3, "a.b"), (2, "a_b"), (2, "train")):
        nodes |= {f"{name}.w": nir.Linear(weight=np.ones((2, size))), name: cuba()}
    nodes["output"] = nir.Output(output_type={"output": np.array([2])})
    nir.write(tmp_path / "a.nir", nir.NIRGraph(nodes, list(pairwise(nodes))))
    stack = quantize.from_nir(tmp_path / "a.nir", steps=4, dt=1e-3)
    assert list(stack.neural_layers) == ["a_b", "a_b_", "train_"]
    made = of(layer("a.b"), layer("a_b"))
    assert list(quantize.from_program(made).neural_layers) == ["a_b", "a_b_"]


@pytest.mark.parametrize("made", [of(RECURRENT), of(layer(delay=np.array([1, 0])))])
def test_recurrence_and_delays_stay_programs(made):
    with pytest.raises(UserError, match="use the program as it is"):
        quantize.from_program(made)
