"""What a network would cost on the chip: the page, its figures, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from ashnets.cli import main
from hw import Conv, Dense, Flatten, SpikingProgram
from hw.chips import LOIHI1, LOIHI2
from hw.meter import Measured
from hw.netx_file import write_net
from hw.program_file import save_program
from hw.simulate import open_backend
from tests.conftest import micro_config
from tests.hw.strategies import cases
from tests.train.html_reader import HOSTILE, Reader
from train.report.chip import summary, write_chip_report
from train.report.chip_figures import before_reset
from train.report.chip_page import chip_page
from train.report.chip_story import ChipStory, si, tell
from train.stages import new_run, qat_config, quantized_run, train_run

NEURON = {"decay_u_int": 1000, "decay_v_int": 200, "v_th_mant": 120}
CPU = torch.device("cpu")


def program(name: str = "dense2", inputs: int = 6) -> SpikingProgram:
    rng = np.random.default_rng(0)
    conv = Conv(name="conv0", weight_int=rng.integers(-60, 60, (4, 2, 3, 3)), **NEURON)
    side = inputs - 2
    dense = Dense(name=name, weight_int=rng.integers(-60, 60, (5, 4 * side * side)), **NEURON)
    return SpikingProgram(input_shape=(2, inputs, inputs), steps=7, layers=(conv, Flatten(name="flatten1"), dense))


def spikes_for(given: SpikingProgram, samples: int = 3) -> np.ndarray:
    shape = (given.steps, samples, *given.input_shape)
    return (np.random.default_rng(1).random(shape) < 0.4).astype(np.uint8)


@pytest.fixture(scope="module")
def story() -> ChipStory:
    return tell("a net", program(), spikes_for(program()), LOIHI1)


@pytest.fixture(scope="module")
def page(story) -> Reader:
    return Reader(chip_page(story))


def test_the_page_is_whole_and_asks_nothing_of_the_network(page):
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    for _, attrs in page.elements:
        assert all(attrs.get(key, "#").startswith("#") for key in ("src", "href", "xlink:href"))
        assert "url" not in attrs.get("style", "")
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in page.all("a")} == {attrs["id"] for attrs in page.all("section")}


def test_every_drawing_can_be_read_without_seeing_it(page):
    drawings = [attrs for attrs in page.all("svg") if "aria-hidden" not in attrs]
    assert len(drawings) == 1 + 3 + 2  # a chip, three rasters, two layers' membranes
    assert all(attrs["role"] == "img" for attrs in drawings)
    assert len(page.all("caption")) == len(page.all("table")) == 4


def test_the_figures_on_the_page_are_the_counts_of_the_run(story, page):
    counts = story.counts
    for layer in counts.layers.values():
        for value in (layer.spikes, layer.synops, layer.updates, layer.messages):
            assert f"{round(value / counts.samples):,}" in page.text
        assert f"{100 * layer.rate:.2f}\u00a0%" in page.text
    for estimate in story.estimates:
        assert si(estimate.low) in page.text
        assert estimate.source in page.text
    for limit in LOIHI1.limits:
        assert f"{limit.value:,}" in page.text
        assert limit.source in page.text
    assert "Loihi 2 has no public table of energy per operation" in page.text
    assert "No chip was measured" in page.text


def test_a_network_that_fits_is_shown_as_one(page):
    (card,) = page.with_class("verdict")
    assert card["class"] == "card verdict good"
    assert "Nothing is left over." in page.text


def test_what_does_not_fit_is_shown_as_a_failure_with_its_reason():
    wide = program(inputs=40)  # 5,776 inputs to each neuron of the last layer
    page = Reader(chip_page(tell("a net", wide, spikes_for(wide, 1), LOIHI1)))
    (card,) = page.with_class("verdict")
    assert card["class"] == "card verdict bad"
    assert "Does not fit: 1 layer beyond a limit." in page.text
    assert "What does not fit" in page.text
    assert "4,096" in page.text
    assert "not placed" in page.text
    assert "not known: messages and hops of a layer that is not placed" in page.text


def test_a_layer_of_the_map_is_as_opaque_as_its_core_is_full(story, page):
    filled = [attrs for attrs in page.all("rect") if attrs.get("fill", "").startswith("var(")]
    (use,) = story.resources.utilisation.max(1)
    assert [attrs["opacity"] for attrs in filled] == [f"{0.15 + 0.5 * use:.2f}"] * 2  # both layers share the core
    assert len({attrs["fill"] for attrs in filled}) == 2


def test_hostile_names_are_shown_and_never_run():
    page = Reader(chip_page(tell(HOSTILE, program(HOSTILE), spikes_for(program()), LOIHI2)))
    assert page.open == []
    assert not page.all("script")
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert page.text.count(HOSTILE) >= 8


def test_what_the_machine_measured_is_shown_and_else_the_reason(story):
    found = replace(story, measured=Measured(joules={"package-0": 0.6}, seconds=2.0, reason=""))
    assert "package-0 200\u00a0mJ a sample" in Reader(chip_page(found)).text
    missing = replace(story, measured=Measured(joules=None, seconds=2.0, reason="no counter at all"))
    assert "not measured. no counter at all." in Reader(chip_page(missing)).text


def test_long_samples_make_a_page_of_bounded_size():
    long = replace(program(inputs=20), steps=600)
    assert len(chip_page(tell("a net", long, spikes_for(long, 1), LOIHI1))) < 700_000


@settings(deadline=None)
@given(cases())
def test_a_membrane_is_above_its_threshold_where_the_neuron_spikes_and_is_v_elsewhere(case):
    given_program, spikes = case
    result = open_backend("reference", given_program).run(spikes, layers=True, states=True)
    for layer in given_program.synaptic:
        u, v, s = (values[layer.name][:, 0] for values in (result.u, result.v, result.layers))
        met = before_reset(layer, u, v)
        threshold = np.broadcast_to(layer.v_th_mant << 6, (layer.channels,)).reshape(-1, *[1] * (v.ndim - 2))
        np.testing.assert_array_equal(met > threshold, s == 1)
        np.testing.assert_array_equal(np.where(s == 1, 0, met), v)


@pytest.mark.parametrize(
    ("joules", "text"), [(3.24e-6, "3.24 \u00b5J"), (1.5, "1.5 J"), (2e-3, "2 mJ"), (4.2e-10, "420 pJ"), (0.0, "0 pJ")]
)
def test_joules_are_written_with_a_prefix(joules, text):
    assert si(joules) == text.replace(" ", "\u00a0")


def test_all_figures_are_json_and_the_table_shows_them(tmp_path):
    figures = write_chip_report("a net", program(), spikes_for(program()), tmp_path / "chip.html", LOIHI2)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert (figures["chip"], figures["samples"], figures["steps"], figures["fits"]) == ("loihi2", 3, 7, True)
    assert [layer["neurons"] for layer in figures["layers"]] == [64, 5]
    assert len(figures["core_loads"]) == figures["cores"] == 1
    table = summary(figures)
    assert f"{figures['layers'][0]['synapses']:,}" in table
    assert "Loihi 1, keras-spiking" in table
    assert "<title>a net on Loihi 2</title>" in (tmp_path / "chip.html").read_text()


# The command


@pytest.fixture
def net(tmp_path) -> Path:
    np.save(tmp_path / "in.npy", spikes_for(program(), 5).swapaxes(0, 1))
    return write_net(program(), tmp_path / "a.net")


def run(capsys, *arguments: object) -> dict:
    assert main([str(a) for a in ("report", "--chip", *arguments, "--json")]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, *arguments: object) -> str:
    assert main([str(a) for a in ("report", *arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_net_and_a_program_cost_the_same_and_the_page_lies_beside_them(capsys, net, tmp_path):
    folder = save_program(program(), tmp_path / "folder" / "program")
    found = [run(capsys, path, "--input", tmp_path / "in.npy", "--on", "loihi1") for path in (net, folder)]
    assert [Path(values["report"]) for values in found] == [tmp_path / "chip.html", tmp_path / "folder" / "chip.html"]
    truth = open_backend("reference", program()).run(spikes_for(program(), 5), layers=True)
    for values in found:
        assert Path(values["report"]).read_text().startswith("<!doctype html>")
        assert values["samples"] == 5
        assert [layer["spikes"] for layer in values["layers"]] == [int(s.sum()) for s in truth.layers.values()]


def test_samples_out_and_the_chip_can_be_chosen(capsys, net, tmp_path):
    out = tmp_path / "else" / "page.html"
    values = run(capsys, net, "--input", tmp_path / "in.npy", "--samples", 2, "--on", "loihi2", "--out", out)
    assert (values["samples"], values["chip"], values["report"]) == (2, "loihi2", str(out))
    assert out.exists()


def test_what_is_missing_is_said_in_one_line(capsys, net, tmp_path):
    assert "give --input SPIKES.npy" in refused(capsys, "--chip", net)
    assert "there is no such file or folder" in refused(capsys, "--chip", tmp_path / "none.net")
    assert "--samples is 0" in refused(capsys, "--chip", net, "--input", tmp_path / "in.npy", "--samples", 0)
    assert "is a folder" in refused(capsys, "--chip", net, "--input", tmp_path / "in.npy", "--out", tmp_path)
    assert "--input says nothing to a report without --chip" in refused(capsys, net, "--input", tmp_path / "in.npy")


def test_a_quantized_run_is_measured_on_its_own_test_samples(capsys, few_records, tmp_path):
    source = train_run(new_run(tmp_path / "float", micro_config(steps=1)), CPU)
    made = train_run(quantized_run(source, tmp_path / "int8", qat_config(source, 1)), CPU, init=source)
    values = run(capsys, made.folder, "--samples", 3)
    assert values["samples"] == 3
    assert Path(values["report"]) == tmp_path / "chip.html"
    assert values["input"]["spikes"] > 0
    assert sum(layer["neurons"] for layer in values["layers"]) > 0
    assert "has no quantized stack" in refused(capsys, "--chip", source.folder)
    assert "leave --input out" in refused(capsys, "--chip", made.folder, "--input", tmp_path / "in.npy")
