"""Several ranks do what one does: the same losses, the same spikes, each of them, the same weights."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from ashnets.cli import main
from ashnets.text import Tokens
from hw.errors import UserError
from tests.conftest import micro_config
from tests.train.launch import launch, trained
from tests.train.test_loop import same
from train import ranks
from train.checkpoint import newest_checkpoint
from train.loader import Batches
from train.stages import load_split, new_run

STEPS = {"steps": 8, "save_every": 4, "batch": 9}  # which two ranks share unequally, and four do
TRAININGS = {
    "copies": {"task": "retrieval"},
    "parts": {"task": "vqa", "parallel": "fsdp"},
    "stopped": {"task": "retrieval", "parallel": "fsdp", "until": 5},
    "stopped, saved beside": {"task": "retrieval", "parallel": "fsdp", "until": 5, "save_beside": True},
}
"""Of two ranks."""

Told = dict[str, tuple[Path, dict]]
"""Runs, and what was told of them."""


def started(ranks: int, folder: Path, trainings: dict[str, dict]) -> Told:
    """One start of so many ranks, since a start takes longer than these trainings do."""
    every = [{"folder": str(folder / name), "ema": 0.9, **STEPS, **given} for name, given in trainings.items()]
    return {name: (folder / name, told) for name, told in zip(trainings, trained(ranks, *every), strict=True)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Told:
    """Runs of one rank, by task."""
    return started(1, tmp_path_factory.mktemp("alone"), {task: {"task": task} for task in ("retrieval", "vqa")})


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Told:
    return started(2, tmp_path_factory.mktemp("two"), TRAININGS)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    kept = newest_checkpoint(folder)
    assert kept is not None
    assert kept.step == STEPS["steps"]
    return kept.tensors("weights") | {f"ema {k}": v for k, v in kept.tensors("ema").items()}


def spikes(folder: Path) -> dict[str, np.ndarray]:
    return dict(np.load(folder / "spikes.npz"))


def assert_same(alone: tuple[Path, dict], folder: Path, told: dict) -> None:
    """Losses, norms of gradients, all that is logged; evaluations; weights; spikes: all of what was trained last."""
    values = alone[1]["values"][-len(told["values"]) :]
    assert len(values) >= 3
    for one, many in zip(values, told["values"], strict=True):
        assert one.keys() == many.keys()
        assert many == pytest.approx(one, rel=2e-6)
    for one, many in zip(alone[1]["history"], told["history"], strict=True):
        assert many == pytest.approx(one, rel=1e-12)
    mine, theirs = weights(alone[0]), weights(folder)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-7, atol=1e-9, msg=name)
    fired, firing = spikes(alone[0]), spikes(folder)
    skipped = len(fired) // 2 - len(firing) // 2
    for name, found in firing.items():
        step, side = name.split("-")
        expected = fired[f"{int(step) + skipped}-{side}"]
        assert expected.any()
        assert np.array_equal(found, expected), name


def test_two_ranks_that_hold_copies_do_what_one_does(alone, two):
    folder, told = two["copies"]
    assert told["ranks"] == 2
    assert_same(alone["retrieval"], folder, told)


def test_two_ranks_that_hold_parts_do_what_one_does(alone, two):
    folder, told = two["parts"]
    assert_same(alone["vqa"], folder, told)
    parts = {path.name for path in (folder / "checkpoints" / "step-00000008").glob("*.safetensors")}
    assert parts == {f"{name}-{r}-of-2.safetensors" for name in ("weights", "optimizer", "ema") for r in (0, 1)}


@pytest.mark.parametrize("many", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["stopped", pytest.param("stopped, saved beside", marks=pytest.mark.slow)])
def test_what_two_ranks_saved_one_and_four_go_on_from(name, many, alone, two, tmp_path):
    shutil.copytree(two[name][0], tmp_path / name)
    folder, told = started(many, tmp_path, {name: TRAININGS[name] | {"until": None}})[name]
    assert len(told["values"]) == 4
    assert_same(alone["retrieval"], folder, told)


def test_in_single_precision_the_first_step_is_the_same_within_rounding_and_its_spikes_are_equal(tmp_path):
    given = {"task": "nlvr2", "double": False, "steps": 1, "save_every": 1}
    first = {n: trained(n, {"folder": str(tmp_path / str(n)), **given})[0] for n in (1, 2)}
    for name, value in first[1]["values"][0].items():
        assert first[2]["values"][0][name] == pytest.approx(value, rel=1e-5), name
    one, two = spikes(tmp_path / "1"), spikes(tmp_path / "2")
    assert all(one[name].any() and np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("task", ["vqa", "retrieval", "nlvr2"])
@pytest.mark.parametrize("of", [2, 3, 8])
def test_the_parts_of_a_batch_are_the_batch(task, of, tmp_path, few_records):
    config = micro_config(task, view_hue=0.5, view_grey=0.5, erase=0.5, flip=True, rotate=10.0)
    run = new_run(tmp_path / "run", config)
    data = load_split(run, "train")
    whole, parts = Batches(run, data)[3], [Batches(run, data, r, of)[3] for r in range(of)]
    split = parts[0].split
    assert split is not None
    assert sum(split.images) == 8
    assert max(split.images) - min(split.images) <= 1
    for field in fields(whole):
        value, given = getattr(whole, field.name), [getattr(part, field.name) for part in parts]
        if isinstance(value, Tokens):
            for k in range(3):
                assert torch.equal(value[k], torch.cat([tokens[k] for tokens in given]))
        elif field.name == "text_image":
            firsts = np.cumsum([0, *split.images])
            assert torch.equal(value, torch.cat([v + int(first) for v, first in zip(given, firsts, strict=False)]))
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, torch.cat(given)), field.name


def test_a_batch_that_is_too_small_for_its_ranks_is_refused(tmp_path, few_records):
    run = new_run(tmp_path / "run", micro_config("vqa"))
    with pytest.raises(UserError, match="batch is 8, and 9 ranks share it"):
        Batches(run, load_split(run, "train"), 0, 9)


def config_file(folder: Path, **train) -> str:
    """The micro config on disk, as 'ashnets recipe' writes them."""
    from train.config import to_dict

    path = folder / "config.json"
    path.write_text(json.dumps(to_dict(micro_config("retrieval", precision="float32", **train))))
    return str(path)


def test_a_rank_that_is_killed_is_told_and_torchrun_goes_on_to_the_same_weights(tmp_path):
    """With draws, which depend on seed, step and rank alone."""
    config = config_file(tmp_path, steps=9)
    every = [["train", str(tmp_path / name), "--config", config] for name in ("killed", "whole")]
    ended = launch(2, "commands", "--max-restarts=1", every=every, kill=[1, 5])
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stderr.count("killed itself") == 1  # torchrun's report may be of the other rank, which ends of it
    assert ended.stderr.count("rank 0: another rank was lost") == 1
    assert ended.stdout.count("9 steps") == 2  # the first rank alone speaks
    assert ended.stderr.count(" 9/9 ") == 2
    assert same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    "said",
    [
        "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:736. This is",
        "NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited or there was a network error",
    ],
)
def test_the_loss_of_a_rank_is_told_in_one_line_and_other_errors_stay_what_they_are(said, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 2)
    expected = r"another rank was lost \((Connection|NCCL).*the last checkpoint is whole"
    with pytest.raises(UserError, match=expected), ranks.losses_told():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes differ"), ranks.losses_told():
        raise RuntimeError("shapes differ")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_rank_that_is_killed_20_times_at_random_moments_ends_with_the_same_weights(tmp_path):
    config = config_file(tmp_path, steps=165, save_every=3)  # 20 starts of at most 8 steps, and the last one
    every = [["train", str(tmp_path / name), "--config", config] for name in ("killed", "whole")]
    ended = launch(2, "commands", "--max-restarts=20", every=every, kills=20)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stderr.count("killed itself") == 20
    assert "exitcode: -9" in ended.stderr
    assert same(tmp_path / "killed", tmp_path / "whole")


def test_a_job_goes_on_with_its_own_run_when_hosts_come_or_go_and_with_no_other(
    tmp_path, few_records, monkeypatch, capsys
):
    run = ["train", str(tmp_path / "run"), "--config", config_file(tmp_path, steps=2)]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 1")
    assert main(run) == 0
    assert main(run) == 0
    for other in ("job 2", "none"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", other)
        assert main(run) == 2
        assert "exists already" in capsys.readouterr().err


def test_ranks_share_evaluation_and_simulation_and_tell_what_one_does(tmp_path):
    run = str(tmp_path / "run")
    made = [["train", run, "--config", config_file(tmp_path, steps=2)], ["quantize", run, "--steps", "2"]]
    told = {}
    for many in (1, 2):
        wanted = [
            ["evaluate", run, "--json", "--predictions", str(tmp_path / f"{many}.json")],
            ["simulate", f"{run}-int8", "--verify", "--samples", "40", "--json"],
            ["simulate", f"{run}-int8", "--samples", "40", "--json"],
        ]
        tuned = [["quantize", run, "--out", f"{run}-2", "--steps", "2"], ["simulate", f"{run}-2", "--verify"]]
        ended = launch(many, "commands", every=[*made, *wanted] if many == 1 else [*wanted, *tuned])
        assert ended.returncode == 0, ended.stderr[-3000:]
        told[many] = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        for values in told[many]:
            values.pop("seconds", None)
    assert len(told[1]) == 3
    assert told[1] == told[2]
    assert told[1][1]["samples"] == 40
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()


@pytest.mark.slow
def test_ranks_share_what_trains_or_evaluates_again_and_again(tmp_path):
    run, told = str(tmp_path / "run"), {}
    made = [["train", run, "--config", config_file(tmp_path, steps=2)]]
    for many in (1, 2):
        wanted = [
            ["sensitivity", run, "--samples", "40", "--json"],
            ["search", run, "--memory", "0.6", "--samples", "40", "--json"],
            ["ablate", str(tmp_path / f"{many}"), "--steps", "2", "--seeds", "1", "--variants", "ann", "--json"],
        ]
        ended = launch(many, "commands", every=[*made, *wanted] if many == 1 else wanted)
        assert ended.returncode == 0, ended.stderr[-3000:]
        told[many] = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert told[1][:2] == told[2][:2]
    (one, two) = ([(row["task"], row["parameters"]) for row in told[many][2]["rows"]] for many in (1, 2))
    assert one == two
    assert len(one) == 2
    assert sorted(p.name for p in (tmp_path / "2" / "ann-0").glob("*.json")) == [
        "retrieval.json",
        "vqa-easy_vqa_new.json",
    ]


def test_what_ranks_do_not_share_is_refused_and_a_problem_of_the_first_is_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["report", str(tmp_path)]) == 2
    assert "rank 1: 'report' is not for several ranks" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    ended = launch(2, "commands", every=[["train", str(tmp_path / "there"), "--config", config_file(tmp_path)]])
    assert ended.returncode
    assert len(re.findall(r"ashnets: rank \d: .*exists already", ended.stderr)) == 1
    assert "ashnets/cli/models.py" not in ended.stderr  # no traceback of ours
