"""The demo from end to end with a model and data small enough for a test; every part of it is the real one."""

import json
import shutil

import pytest

import train.demo
from ashnets.cli import main
from tests.conftest import MICRO, micro_config

PROMISED = {
    "vqa_accuracy_float",
    "vqa_accuracy_qat",
    "vqa_accuracy_program",
    "vqa_accuracy_shuffled_images",
    "retrieval_tr10_heldout",
    "mismatching_spikes_qat_reference",
    "mismatching_spikes_lava_reference",
    "joints_equal",
    "lava_samples",
    "firing_rate",
    "seconds",
    "report",
}


@pytest.fixture
def small_demo(monkeypatch, few_records, tmp_path):
    monkeypatch.setattr(train.demo, "tiny", lambda: MICRO)
    monkeypatch.setattr(train.demo, "pretrain_recipe", lambda: micro_config("retrieval", steps=4).train)
    monkeypatch.setattr(train.demo, "finetune_recipe", lambda: micro_config("vqa", steps=6).train)
    return tmp_path / "demo"


def test_the_demo_goes_through_the_whole_line_and_does_nothing_twice(small_demo, capsys, monkeypatch):
    arguments = ["demo", "--out", str(small_demo), "--lava-samples", "3", "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(first) >= PROMISED
    assert first["mismatching_spikes_qat_reference"] == first["mismatching_spikes_lava_reference"] == 0
    assert first["lava_samples"] == 3
    assert first["vqa_answers_differing_program_qat"] == 0
    page = (small_demo / "report.html").read_text(encoding="utf-8")
    assert "mismatching spikes" in page
    assert "lava against reference" in page

    monkeypatch.setattr(train.demo, "train_run", lambda *_: pytest.fail("a finished stage was trained again"))
    monkeypatch.setattr(train.demo, "verify_run", lambda *_: pytest.fail("a finished comparison was made again"))
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
    assert main(["report", str(small_demo)]) == 0

    found = small_demo / "results" / "joint_qat.json"
    found.write_text(json.dumps(json.loads(found.read_text()) | {"integers": False}))
    assert main(arguments) == 1


def test_an_interrupted_demo_goes_on_where_it_was(small_demo, capsys, monkeypatch):
    arguments = ["demo", "--out", str(small_demo), "--lava-samples", "2"]
    real, trained = train.demo.train_run, []

    def interrupted(run, *args):
        trained.append(run.folder.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(run, *args)

    monkeypatch.setattr(train.demo, "train_run", interrupted)
    assert main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    clock = small_demo / "results" / "finetune_seconds.json"
    clock.write_text(json.dumps({"seconds": json.loads(clock.read_text())["seconds"] + 1000}))
    assert main(arguments) == 0
    assert json.loads((small_demo / "results" / "summary.json").read_text())["seconds"] > 1000
    assert trained == ["pretrain", "finetune", "finetune", "quantized"]


def test_a_stage_that_is_made_anew_takes_no_results_of_the_old_one(small_demo, capsys):
    arguments = ["demo", "--out", str(small_demo), "--lava-samples", "2"]
    assert main(arguments) == 0
    results = small_demo / "results"
    for name in ("joint_qat", "vqa_qat", "retrieval_heldout"):
        values = json.loads((results / f"{name}.json").read_text())
        (results / f"{name}.json").write_text(json.dumps(values | {"old": True}))
    shutil.rmtree(small_demo / "quantized")
    assert main(arguments) == 0
    assert not any("old" in json.loads(path.read_text()) for path in results.glob("*.json"))
    assert json.loads((results / "joint_qat.json").read_text())["integers"]


def test_another_seed_does_not_mix_with_a_demo_that_is_there(small_demo, capsys):
    assert main(["demo", "--out", str(small_demo), "--lava-samples", "2"]) == 0
    capsys.readouterr()
    assert main(["demo", "--out", str(small_demo), "--lava-samples", "2", "--seed", "1"]) == 2
    assert "was made with seed 0, not 1" in capsys.readouterr().err
