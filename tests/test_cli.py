"""The command line as a user meets it: one clear line for bad input, exit codes, JSON as the last line."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ashnets.cli import COMMANDS, main
from hw.exchange.formats import FORMATS
from hw.netx_file import write_net
from hw.program_file import save_program
from quantize.verify import RUNTIMES
from tests.conftest import micro_config
from train.run import open_run, run_program
from train.stages import new_run, qat_config, quantized_run, train_run

CPU = torch.device("cpu")


@pytest.fixture
def runs(tmp_path, few_records):
    source = train_run(new_run(tmp_path / "float", micro_config(steps=2)), CPU)
    return source, train_run(quantized_run(source, tmp_path / "int8", qat_config(source, 2)), CPU, init=source)


def refused(capsys, *arguments: object) -> str:
    """The one line that the command prints on standard error with exit code 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ashnets: ")
    return lines[0]


def last_json(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_help_answers_within_two_seconds_and_names_every_command():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "ashnets.cli", "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 4  # two on a machine that does nothing else
    for command in COMMANDS:
        assert command in done.stdout


def test_evaluate_prints_the_metrics_as_json(runs, capsys):
    assert main(["evaluate", str(runs[1].folder), "--backend", "reference", "--samples", "10", "--json"]) == 0
    values = last_json(capsys)
    assert values["task"] == "vqa"
    assert values["backend"] == "reference"
    assert 0 <= values["accuracy"] <= 100


def test_simulate_verify_counts_no_mismatch_and_exits_with_zero(runs, capsys):
    assert main(["simulate", str(runs[1].folder), "--verify", "--samples", "10", "--json"]) == 0
    assert last_json(capsys)["mismatching_spikes_qat_reference"] == 0


def test_verify_prints_a_row_for_every_runtime_and_file(runs, capsys, tmp_path):
    assert main(["verify", str(runs[1].folder), "--samples", "6", "--slow-samples", "2", "--json"]) == 0
    values = last_json(capsys)
    rows = {row["runtime"]: row for row in values["joints"]}
    assert list(rows) == list(RUNTIMES)
    assert values["well"]
    for name, row in rows.items():
        assert row["samples"] == (2 if RUNTIMES[name] else 6)
        assert sum(row["compared"].values()) > 0
        if name != "float":
            assert (row["mismatching_spikes"], row["integers"], row["output_equal"]) == (0, True, True), name


def test_verify_takes_a_program_and_spikes_too(runs, capsys, tmp_path):
    program = run_program(runs[1])
    spikes = np.random.default_rng(0).random((5, program.steps, *program.input_shape)) < 0.3
    np.save(tmp_path / "s.npy", spikes)
    arguments = ["--input", str(tmp_path / "s.npy"), "--slow-samples", "1", "--json"]
    assert main(["verify", str(runs[1].folder / "program"), *arguments]) == 0
    rows = {row["runtime"]: row for row in last_json(capsys)["joints"]}
    assert list(rows) == [name for name in RUNTIMES if name not in ("float", "qat")]
    assert rows["nir"]["samples"] == 5
    assert all(row["mismatching_spikes"] == 0 for row in rows.values())


def test_programs_without_spikes_and_files_that_are_no_runs_are_told(runs, capsys, tmp_path):
    program = runs[1].folder / "program"
    net = write_net(run_program(runs[1]), tmp_path / "a.net")
    for source in (program, net):
        assert "a program brings no spikes to run; give --input SPIKES.npy" in refused(capsys, "verify", source)
    assert "a.net: is a file; export takes a quantized run or a program's folder" in refused(capsys, "export", net)


def test_verify_and_export_compare_at_least_one_sample_and_slow_ones_may_be_left_out(runs, capsys, tmp_path):
    program = run_program(runs[1])
    np.save(tmp_path / "s.npy", np.ones((2, program.steps, *program.input_shape), np.uint8))
    verify = ["verify", runs[1].folder / "program", "--input", tmp_path / "s.npy"]
    for count in ("0", "-5"):
        assert f"--samples is {count}; run at least 1" in refused(capsys, *verify, f"--samples={count}")
        for format in ("qcdq", "onnx"):
            arguments = ("export", runs[1].folder, "--format", format, f"--samples={count}")
            assert f"--samples is {count}; run at least 1" in refused(capsys, *arguments)
    assert "--slow-samples is -1" in refused(capsys, *verify, "--slow-samples=-1")
    assert main([*map(str, verify), "--slow-samples", "0", "--json"]) == 0
    assert [row["runtime"] for row in last_json(capsys)["joints"]] == [
        name for name, limit in RUNTIMES.items() if limit is None and name not in ("float", "qat")
    ]


def test_verify_exits_with_one_when_a_runtime_differs(runs, capsys, monkeypatch):
    from hw.exchange import onnx_step

    monkeypatch.setattr(onnx_step.loihi, "DECAY_UNITY", 4095)
    monkeypatch.setattr("hw.exchange.formats.difference", lambda a, b: None)
    assert main(["verify", str(runs[1].folder), "--samples", "4", "--slow-samples", "1", "--json"]) == 1
    assert not last_json(capsys)["well"]


def test_export_writes_a_checked_folder_and_says_so(runs, capsys):
    for format in FORMATS:
        assert main(["export", str(runs[1].folder), "--format", format, "--json"]) == 0
        values = last_json(capsys)
        assert values["checked"]["mismatching_spikes"] == 0
        assert Path(values["out"], values["file"]).stat().st_size == values["bytes"]
    assert "exists already" in refused(capsys, "export", runs[1].folder, "--format", "nir")
    assert main(["export", str(runs[1].folder / "program"), "--json"]) == 0
    assert "has no quantized stack" in refused(capsys, "export", runs[0].folder)


def test_search_and_sensitivity_say_what_bits_cost_and_what_comes_next(runs, capsys):
    assert main(["sensitivity", str(runs[0].folder), "--samples", "4", "--ptq", "plain", "--json"]) == 0
    assert {each["layer"] for each in last_json(capsys)["layers"]} == {"conv1", "conv2", "dense1"}
    assert main(["search", str(runs[0].folder), "--memory", "0.5", "--samples", "4", "--ptq", "plain", "--json"]) == 0
    values = last_json(capsys)
    assert values["best"]["bytes"] <= 0.5 * values["path"][0]["bytes"]
    assert "a search needs one budget" in refused(capsys, "search", runs[0].folder)


def test_simulate_verify_exits_with_one_when_a_spike_differs(runs, capsys, monkeypatch):
    from hw.simulate import reference

    step = reference.lif_step

    def early(a, u, v, layer):  # a chip on which a membrane at zero spikes too
        s, u, v = step(a, u, v, layer)
        return s | (v >= 0), u, v

    monkeypatch.setattr(reference, "lif_step", early)
    assert main(["simulate", str(runs[1].folder), "--verify", "--json"]) == 1
    assert last_json(capsys)["mismatching_spikes_qat_reference"] > 0


def test_a_missing_run_folder(capsys, tmp_path):
    assert "there is no such folder" in refused(capsys, "evaluate", tmp_path / "nowhere")


def test_a_folder_that_is_no_run(capsys, tmp_path):
    assert "manifest.json: there is no such file" in refused(capsys, "evaluate", tmp_path)
    (tmp_path / "manifest.json").write_text("{broken")
    assert "cannot be read as JSON" in refused(capsys, "evaluate", tmp_path)


def test_a_wrong_backend_name(capsys, runs):
    assert "backend 'brain' is not known" in refused(capsys, "evaluate", runs[1].folder, "--backend", "brain")
    assert "backend 'brain' is not known" in refused(capsys, "simulate", runs[1].folder, "--backend", "brain")


def test_a_corrupted_weight_file(capsys, runs):
    for name in ("float.safetensors", "program/weights.safetensors"):
        path = runs[1].folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
        line = refused(capsys, "evaluate", runs[1].folder, "--backend", "reference")
        assert name.split("/")[-1] in line
        assert "SHA-256" in line
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)


def test_an_existing_run_is_never_overwritten(capsys, runs):
    before = sorted(path.name for path in runs[0].folder.iterdir())
    given = ("--train.steps", "1", "--train.batch", "8", "--train.dataset", "few_vqa")
    assert "exists already" in refused(capsys, "train", runs[0].folder, *given)
    assert sorted(path.name for path in runs[0].folder.iterdir()) == before


def test_a_place_that_cannot_be_written(capsys, few_records, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    given = ("--train.batch", "8", "--train.dataset", "few_openmoji", "--train.tokenizer-data", "few_openmoji")
    line = refused(capsys, "train", blocker / "run", *given)
    assert "cannot be written" in line
    assert blocker.read_text() == "not a folder"


def test_a_quantized_run_is_not_quantized_again(capsys, runs):
    assert "is quantized already" in refused(capsys, "quantize", runs[1].folder)


def test_layers_are_quantized_by_name_and_their_errors_told(capsys, runs, tmp_path):
    source, out = runs[0].folder, tmp_path / "mixed"
    for spec in ("conv9=int4,*=int8", "conv1=int4", "int5"):
        assert f"quantizer '{spec}'" in refused(capsys, "quantize", source, "--quantizer", spec, "--out", out)
        assert not out.exists()
    spec = "conv1=4,conv2=ternary:trained,*=int8"
    command = ["quantize", str(source), "--quantizer", spec, "--steps", "2", "--out", str(out), "--json"]
    assert main(command) == 0
    layers = {layer["name"]: layer for layer in last_json(capsys)["layers"]}
    assert [layer["quantizer"] for layer in layers.values()] == ["int4", "ternary:trained", "int8"]
    assert layers["dense1"]["sqnr"] > layers["conv1"]["sqnr"] > layers["conv2"]["sqnr"]
    held = {layer.name: np.unique(layer.weight_int) for layer in run_program(open_run(out)).synaptic}
    assert not np.any(held["conv1"] % 16)
    assert held["conv2"].tolist() == [-64, 0, 64]
    assert len(held["dense1"]) > 63


def test_an_unknown_objective_and_data_set(capsys, tmp_path, few_records):
    line = refused(capsys, "train", tmp_path / "a", "--train.dataset", "imagenet")
    assert "no data set 'imagenet'" in line
    assert not Path(tmp_path / "a").exists()


def test_a_report_needs_a_finished_demo(capsys, tmp_path):
    assert "not a finished demo" in refused(capsys, "report", tmp_path)


def test_train_writes_a_run_and_says_what_comes_next(capsys, tmp_path, few_records):
    folder = tmp_path / "run"
    small = ["--train.dataset", "few_openmoji", "--train.tokenizer-data", "few_openmoji", "--train.batch", "8"]
    assert main(["train", str(folder), *small, "--train.steps", "1", "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-2] == f"next: ashnets finetune {folder} RUN2"
    assert json.loads(out[-1])["steps"] == 1
    assert main(["train", str(folder), "--resume"]) == 0


def test_a_rank_leaves_with_its_code_while_threads_of_torch_still_want_the_interpreter():
    program = """
import threading
import torch
from ashnets.cli.common import leave
a = torch.ones(10)
def work():
    while True:
        a + a
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
print("done")
leave(143)
"""
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (143, "done\n"), done.stderr


def test_simulate_verify_fails_on_other_integers_and_where_nothing_was_compared(runs, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[1].folder, run)
    program = run_program(runs[1])
    last = program.layers[-1]
    weight = last.weight_int.copy()
    weight[0, 0] += 1 if weight[0, 0] < 0 else -1
    shutil.rmtree(run / "program")
    save_program(replace(program, layers=(*program.layers[:-1], replace(last, weight_int=weight))), run / "program")
    assert main(["simulate", str(run), "--verify", "--samples", "2"]) == 1
    assert "qat and reference hold different integers" in capsys.readouterr().out
    decays = np.arange(1, last.channels + 1)
    shutil.rmtree(run / "program")
    save_program(replace(program, layers=(*program.layers[:-1], replace(last, decay_u_int=decays))), run / "program")
    line = refused(capsys, "simulate", run, "--verify", "--samples", "2", "--backend", "netx")
    assert "backend 'netx' does not hold this network, nothing was compared" in line


def test_values_that_are_no_spikes_are_refused_before_they_are_cut_to_bytes(runs, capsys, tmp_path):
    program = run_program(runs[1])
    np.save(tmp_path / "s.npy", np.full((1, program.steps, *program.input_shape), 257))
    line = refused(capsys, "verify", runs[1].folder / "program", "--input", tmp_path / "s.npy", "--slow-samples", "0")
    assert "values other than 0 and 1" in line


def test_options_without_an_effect_are_refused(runs, capsys, tmp_path):
    line = refused(capsys, "evaluate", runs[0].folder, "--templates", "a {}")
    assert "--templates are for zero_shot" in line
    assert "is a folder; give the path of a file" in refused(
        capsys, "evaluate", runs[0].folder, "--predictions", tmp_path
    )
    assert "--out says nothing to 'bench loader'" in refused(capsys, "bench", "loader", "--out", tmp_path / "x")
    line = refused(capsys, "simulate", "--program", runs[1].folder / "program", "--samples", 1)
    assert "--program runs all samples of --input" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["simulate", "R", "--keys", "K"], "--keys says nothing to backend 'reference'"),
        (
            ["simulate", "--program", "P", "--input", "I", "--out", "O", "--device", "cpu"],
            "--device says nothing to --pro",
        ),
        (["evaluate", "R", "--keys", "K"], "--keys says nothing to backend 'float'"),
        (["run", "B", "--image", "I", "--text", "T", "--keys", "K"], "--keys says nothing to backend 'reference'"),
        (["tune", "R", "S", "--keys", "K"], "--keys says nothing to backend 'imperfect'"),
        (["report", "R", "--samples", "3"], "--samples says nothing to a report without --chip"),
        (["bench", "loader", "--samples", "3"], "--samples says nothing to 'bench loader'"),
        (["bench", "simulate", "--device", "cpu"], "--device says nothing to 'bench simulate'"),
        (["data", "write", "D", "--name", "easy_nlvr2", "--sheet", "S"], "--sheet says nothing to 'data write'"),
        (["train", "R", "--data", "D", "--train.dataset", "E"], "--data takes the data, and --train.dataset would"),
    ],
)
def test_an_option_that_says_nothing_is_refused_before_anything_is_opened(arguments, told, capsys):
    assert told in refused(capsys, *arguments)


def test_a_run_is_quantized_from_within_its_own_folder(runs, capsys, monkeypatch, tmp_path):
    shutil.copytree(runs[0].folder, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    assert main(["quantize", ".", "--steps", "0", "--ptq", "best", "--json"]) == 0
    layers = last_json(capsys)["layers"]
    assert (tmp_path / "own-int8").is_dir()
    assert all(20 < layer["sqnr"] < 80 for layer in layers)  # of the real weights, not of those that GPTQ rounded
