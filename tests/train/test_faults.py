"""What goes wrong in the middle of training is told, and nothing is lost: numbers that are not finite, SIGTERM, and
checkpoints between those that steps ask for."""

import os
import signal

import pytest
import torch

from ashnets.cli import main
from hw.errors import Stopped, UserError
from tests.conftest import micro_config
from tests.train.launch import launch
from tests.train.test_loop import same
from tests.train.test_ranks import config_file
from train.checkpoint import newest_checkpoint
from train.loop import Trainer
from train.run import open_run
from train.stages import load_split, new_run, train_run

CPU = torch.device("cpu")


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_step_and_loss(tmp_path, few_records, monkeypatch):
    from ashnets.objectives.vqa import AnswerCrossEntropy

    run = new_run(tmp_path / "run", micro_config(steps=6))
    forward, calls = AnswerCrossEntropy.forward, []

    def poisoned(self, *args):
        calls.append(1)
        loss, logs = forward(self, *args)
        return (loss * float("nan") if len(calls) == 5 else loss), logs

    monkeypatch.setattr(AnswerCrossEntropy, "forward", poisoned)
    trainer = Trainer(run, load_split(run, "train"), load_split(run, "val"), CPU)
    snapshots = []
    with pytest.raises(UserError, match="step 5: loss is nan, and nowhere when the step was run again"):
        trainer.train(lambda *_: snapshots.append({k: v.clone() for k, v in trainer.bundle.state_dict().items()}))
    assert len(snapshots) == 4
    parameters = {name for name, _ in trainer.bundle.named_parameters()}
    assert all(torch.equal(v, snapshots[-1][k]) for k, v in trainer.bundle.state_dict().items() if k in parameters)
    kept = newest_checkpoint(run.folder)
    assert kept is not None
    assert kept.step == 3


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path, few_records):
    run = new_run(tmp_path / "run", micro_config(steps=2))
    trainer = Trainer(run, load_split(run, "train"), load_split(run, "val"), CPU)
    trainer.bundle.model.fusion.r.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(UserError, match=r"step 1: gradient norm is .*, first in the gradient of model\.fusion\.r, so"):
        trainer.train()
    assert not trainer.optimizer.state


@pytest.mark.parametrize("where", ["model.concrete.vit.blocks.0.attn", "model.abstract.stack.layers.conv2.synapse"])
def test_the_layer_is_named_whose_output_is_not_finite_first(where, tmp_path, few_records):
    run = new_run(tmp_path / "run", micro_config(steps=2))
    trainer = Trainer(run, load_split(run, "train"), load_split(run, "val"), CPU)
    trainer.bundle.get_submodule(where).register_forward_hook(lambda _, __, x: x / 0)
    with pytest.raises(UserError, match=f"step 1: .*, first in layer {where}, so that no update was made"):
        trainer.train()


def test_a_weight_that_is_not_finite_is_named(tmp_path, few_records):
    run = new_run(tmp_path / "run", micro_config(steps=2))
    trainer = Trainer(run, load_split(run, "train"), load_split(run, "val"), CPU)

    def spoil(step, steps, values):
        with torch.no_grad():
            trainer.bundle.model.fusion.r.fill_(float("nan"))

    with pytest.raises(UserError, match=r"step 2: .*, first in weight model\.fusion\.r, so"):
        trainer.train(spoil)


def test_ranks_name_the_rank_whose_numbers_are_not_finite(tmp_path):
    every = [["train", str(tmp_path / "run"), "--config", config_file(tmp_path, steps=6)]]
    ended = launch(2, "commands", every=every, spoil=[1, 4])
    assert ended.returncode
    told = [line for line in ended.stderr.splitlines() if line.startswith("ashnets: ")]
    assert len(told) == 1
    assert "rank 0: step 5: loss is nan, first in layer model.image_head.project (rank 1), so that no update" in told[0]
    kept = newest_checkpoint(tmp_path / "run")
    assert kept is not None
    assert kept.step == 3


def terminated_at(step: int):
    def report(done, *_):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def test_sigterm_saves_the_step_and_the_run_goes_on_to_the_same_bits(tmp_path, few_records):
    config = micro_config("retrieval", steps=9, save_every=9, ema=0.9)
    whole = train_run(new_run(tmp_path / "whole", config), CPU)
    before = signal.getsignal(signal.SIGTERM)
    stopped = new_run(tmp_path / "stopped", config)
    for step in (2, 5):
        with pytest.raises(Stopped, match=f"stopped by SIGTERM behind step {step + 1}, which is saved"):
            train_run(stopped, CPU, terminated_at(step))
        kept = newest_checkpoint(stopped.folder)
        assert kept is not None
        assert kept.step == step + 1
        assert [entry["step"] for entry in kept.history] == [0]  # not evaluated
    train_run(open_run(stopped.folder), CPU)
    assert same(whole.folder, stopped.folder)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_command_that_sigterm_stops_says_so_and_ends_with_143(tmp_path, few_records, monkeypatch, capsys):
    step = Trainer.train_step

    def asked(self, inputs):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, inputs)

    monkeypatch.setattr(Trainer, "train_step", asked)
    assert main(["train", str(tmp_path / "run"), "--config", config_file(tmp_path)]) == 143
    assert "stopped by SIGTERM behind step 1, which is saved; go on with --resume" in capsys.readouterr().err


def test_a_job_whose_processes_all_get_sigterm_saves_the_step(tmp_path):
    """Schedulers signal those that make batches too."""
    run, config = str(tmp_path / "run"), config_file(tmp_path, steps=9, save_every=9)
    train = ["train", run, "--config", config, "--workers", "2"]
    ended = launch(1, "commands", every=[train], terminate=[0, 4], job=True)
    assert ended.returncode == 143, ended.stderr[-3000:]
    assert "stopped by SIGTERM behind step 5, which is saved" in ended.stderr


def test_ranks_stop_together_when_one_of_them_gets_sigterm(tmp_path):
    config = config_file(tmp_path, steps=9, save_every=9)
    whole, run = (["train", str(tmp_path / name), "--config", config] for name in ("whole", "stopped"))
    ended = launch(2, "commands", every=[run, [*run[:2], "--resume"], whole], going_on=True, terminate=[1, 4])
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stderr.count("stopped by SIGTERM behind step 5, which is saved") == 1
    assert same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("minutes", [0.0, 1e-9])
def test_checkpoints_by_the_clock_and_beside_training_change_no_bit(minutes, beside, tmp_path, few_records):
    whole = train_run(new_run(tmp_path / "whole", micro_config(steps=7)), CPU)
    seen = []

    def look(*_):
        seen.append({int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*")})

    config = micro_config(steps=7, save_minutes=minutes, save_beside=beside)
    run = train_run(new_run(tmp_path / "run", config), CPU, look)
    assert same(whole.folder, run.folder)
    assert any({2, 4, 5} & folders for folders in seen) == bool(minutes)
    kept = newest_checkpoint(run.folder)
    assert kept is not None
    assert [entry["step"] for entry in kept.history] == [0, 3, 6, 7]


def test_what_fails_beside_training_is_told(tmp_path, few_records, monkeypatch):
    def full(*_):
        raise UserError("no room")

    monkeypatch.setattr("train.checkpoint._save", full)
    with pytest.raises(UserError, match="no room"):
        train_run(new_run(tmp_path / "run", micro_config(save_beside=True)), CPU)
