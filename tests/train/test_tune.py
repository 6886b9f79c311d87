"""A quantized run beyond the simulator at home: tuned with a chip in the loop, evaluated through remote workers."""

import signal

import numpy as np
import pytest
import torch

from ashnets.cli import main
from hw.errors import UserError
from tests.conftest import micro_config
from tests.hw.test_remote import worker
from train.checkpoint import best_checkpoint
from train.evaluate import evaluate_answers
from train.run import Run, load_model, open_run, run_program
from train.stages import (
    load_split,
    new_run,
    qat_config,
    quantized_run,
    quantized_weights,
    train_run,
    tuned_run,
    write_program,
)

CPU = torch.device("cpu")
FLAWED = "imperfect:dead=0.2,stuck=0.1,spread=0.2,seed=1"


@pytest.fixture
def quantized(tmp_path, few_records) -> Run:
    source = train_run(new_run(tmp_path / "float", micro_config(steps=3)), CPU)
    return train_run(quantized_run(source, tmp_path / "int8", qat_config(source, 2)), CPU, init=source)


def test_tuning_goes_on_from_the_quantized_weights_and_ends_with_a_program(quantized, tmp_path):
    tuned = train_run(tuned_run(quantized, tmp_path / "tuned", FLAWED, 4), CPU, init=quantized)
    before, after = (best_checkpoint(run.folder).evaluated_weights() for run in (quantized, tuned))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.abstract.stack.") for name in changed)
    assert open_run(tuned.folder).config.chip == FLAWED
    assert run_program(tuned).synaptic[0].name == "conv1"
    again = train_run(tuned_run(quantized, tmp_path / "again", FLAWED, 4), CPU, init=quantized)
    same = best_checkpoint(again.folder).evaluated_weights()
    assert all(torch.equal(after[name], same[name]) for name in after)
    perfect = train_run(tuned_run(quantized, tmp_path / "perfect", "reference", 4), CPU, init=quantized)
    other = best_checkpoint(perfect.folder).evaluated_weights()
    assert any(not torch.equal(after[name], other[name]) for name in after)


def test_what_the_chip_does_not_hold_is_refused_before_training_and_leaves_the_older_program(
    quantized, tmp_path, monkeypatch
):
    def refuse(stack: torch.nn.Module, **_: bool) -> None:
        raise UserError("bias_mant is 5000")

    monkeypatch.setattr("train.stages.lower", refuse)
    with pytest.raises(UserError, match="bias_mant is 5000"):
        quantized_weights(open_run(tmp_path / "float"), "int8")
    with pytest.raises(UserError, match="bias_mant is 5000"):
        write_program(quantized)
    run_program(quantized)


def test_the_command_refuses_a_float_run_and_an_unknown_chip(quantized, tmp_path, capsys):
    assert main(["tune", str(tmp_path / "float"), str(tmp_path / "t")]) == 2
    assert "is not quantized; make it so with 'ashnets quantize" in capsys.readouterr().err
    assert main(["tune", str(quantized.folder), str(tmp_path / "t"), "--chip", "odd"]) == 2
    assert "backend 'odd' is not known" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_two_remote_workers_answer_as_the_program_at_home_even_if_one_is_killed_half_way(quantized, monkeypatch):
    monkeypatch.setattr("train.evaluate.BATCH", 8)
    data = load_split(quantized, "test")

    def scores(backend: str, after_first=lambda: None) -> np.ndarray:
        def progress(seen: int, total: int) -> None:
            if seen < total:
                after_first()

        model = load_model(quantized, backend, CPU)
        return evaluate_answers(
            "vqa", model, data, quantized.codec, quantized.answers, keep_scores=True, progress=progress
        ).scores

    home = scores("reference")
    with worker() as one, worker() as two:
        addresses = f"{one.address},{two.address}"
        np.testing.assert_array_equal(scores(addresses), home)
        np.testing.assert_array_equal(scores(addresses, lambda: one.signal(signal.SIGKILL)), home)
        assert one.process.wait(1) == -signal.SIGKILL
