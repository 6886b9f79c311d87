"""Training: the same bits after any interruption, nothing lost on a failure, the best checkpoint marked."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ashnets.config import LossConfig
from hw.errors import UserError
from tests.conftest import micro_config
from train.checkpoint import best_checkpoint, clear_leftovers, newest_checkpoint, save_checkpoint
from train.evaluate import evaluate
from train.logs import RunLog, read_log
from train.loop import Trainer
from train.run import Bundle, load_model, open_run
from train.stages import load_split, new_run, qat_config, quantized_run, train_run
from train.step import learning_rate, seed_step

CPU = torch.device("cpu")


def same(left: Path, right: Path) -> bool:
    """Whether two runs ended with the same weights and optimiser state, bit for bit."""
    a, b = newest_checkpoint(left), newest_checkpoint(right)
    assert a is not None
    assert b is not None
    names = sorted(path.name for path in a.folder.glob("*.safetensors"))
    assert names == sorted(path.name for path in b.folder.glob("*.safetensors"))
    return a.step == b.step and all((a.folder / n).read_bytes() == (b.folder / n).read_bytes() for n in names)


class StoppedError(Exception):
    pass


def stop_at(step: int):
    def report(done, steps, values):
        if done == step:
            raise StoppedError

    return report


EVERY = {"itc_queue": 1.0, "itm": 1.0, "mlm": 1.0, "scl": 0.2, "stua": 0.2}
HARD = LossConfig(queue=6, hardness=1.0, mixed=2, stua="text_spike")


@pytest.mark.parametrize(
    ("task", "changes"),
    [("vqa", {}), ("retrieval", {}), ("retrieval", {"objectives": EVERY, "losses": HARD})],
    ids=["vqa", "retrieval", "every objective"],
)
def test_an_interrupted_run_ends_with_the_bits_of_the_uninterrupted_one(task, changes, tmp_path, few_records):
    config = micro_config(task, ema=0.9, **changes)
    whole = train_run(new_run(tmp_path / "whole", config), CPU)
    broken = new_run(tmp_path / "broken", config)
    for step in (2, 4, 5):  # before, after and between checkpoints
        with pytest.raises(StoppedError):
            train_run(broken, CPU, stop_at(step))
    train_run(open_run(broken.folder), CPU)
    assert same(whole.folder, broken.folder)
    steps = [entry["step"] for entry in read_log(broken.folder) if entry["split"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]  # nothing logged twice


def test_the_second_view_alone_is_shown_in_other_colours(tmp_path, few_records):
    views = []
    for name, changes in (("as it is", {}), ("hue", {"view_hue": 0.5}), ("grey", {"view_grey": 1.0})):
        run = new_run(tmp_path / name, micro_config("vqa", objectives={"vqa": 1.0, "scl": 1.0}, **changes))
        given = Trainer(run, load_split(run, "train"), load_split(run, "val"), CPU).batches[0].to(CPU)
        views.append((given.images, given.view))
    (plain, view), (hue, turned), (grey, without) = views
    assert torch.equal(plain, hue)
    assert torch.equal(plain, grey)
    assert (view - turned).abs().amax((1, 2, 3)).gt(0.3).any()
    assert torch.equal(without, without[:, :1].expand_as(without))
    assert not torch.equal(view[:, 0], view[:, 1])


def test_a_run_with_averaged_encoders_is_quantized_without_them(tmp_path, few_records):
    source = train_run(
        new_run(tmp_path / "float", micro_config("retrieval", steps=2, objectives=EVERY, losses=HARD)), CPU
    )
    made = train_run(quantized_run(source, tmp_path / "made", qat_config(source, 2)), CPU, init=source)
    assert list(made.config.train.objectives) == ["itc", "itm", "mlm", "scl", "stua"]
    assert newest_checkpoint(made.folder).step == 2


def test_a_quantized_run_resumes_to_the_same_bits_and_trains_the_stack_alone(tmp_path, few_records):
    source = train_run(new_run(tmp_path / "float", micro_config(steps=2)), CPU)
    whole = train_run(quantized_run(source, tmp_path / "whole", qat_config(source, 4)), CPU, init=source)
    broken = quantized_run(source, tmp_path / "broken", qat_config(source, 4))
    with pytest.raises(StoppedError):
        train_run(broken, CPU, stop_at(2), init=source)
    train_run(open_run(broken.folder), CPU)
    assert same(whole.folder, broken.folder)
    assert (whole.folder / "program" / "weights.safetensors").read_bytes() == (
        broken.folder / "program" / "weights.safetensors"
    ).read_bytes()
    before, after = load_model(whole, "float", CPU).state_dict(), load_model(whole, "qat", CPU).state_dict()
    host = [name for name in before if ".stack." not in name]
    assert host
    assert all(torch.equal(before[name], after[name]) for name in host)


def test_different_seeds_give_different_weights_and_equal_seeds_equal_ones(tmp_path, few_records):
    runs = [
        train_run(new_run(tmp_path / name, micro_config(steps=2, seed=seed)), CPU)
        for name, seed in zip("abc", (1, 1, 2), strict=True)
    ]
    assert same(runs[0].folder, runs[1].folder)
    assert not same(runs[0].folder, runs[2].folder)


def test_the_best_checkpoint_is_the_one_with_the_best_validation_score(tmp_path, few_records):
    run = train_run(new_run(tmp_path / "run", micro_config(steps=12, save_every=2)), CPU)
    newest, best = newest_checkpoint(run.folder), best_checkpoint(run.folder)
    assert newest is not None
    assert [entry["step"] for entry in newest.history] == [0, 2, 4, 6, 8, 10, 12]
    assert best.step == max(newest.history, key=lambda e: (e["score"], e["step"]))["step"]
    kept = sorted(int(path.name[5:]) for path in (run.folder / "checkpoints").glob("step-*"))
    assert kept == sorted({best.step, 10, 12})
    model = load_model(run, "float", CPU)
    found = evaluate("vqa", model, load_split(run, "val"), run.codec, run.answers)
    assert found.score == pytest.approx(next(e["score"] for e in best.history if e["step"] == best.step))


def test_logs_hold_losses_rates_and_learning_rate_for_programs_and_tensorboard(tmp_path, few_records):
    run = train_run(new_run(tmp_path / "run", micro_config("retrieval", steps=2)), CPU)
    entry = read_log(run.folder)[1]
    assert {"step", "split", "loss", "itc", "scl", "stua", "rate", "rate_in", "lr", "gradient_norm"} <= set(entry)
    assert list((run.folder / "tensorboard").glob("events*"))


def test_learning_rate_warms_up_and_falls_to_zero():
    config = micro_config(steps=100, warmup=10, lr=1.0).train
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def test_the_concrete_encoder_has_a_learning_rate_of_its_own(tmp_path, few_records):
    moved = []
    for share in (1.0, 0.25, 0.0):
        config = micro_config(steps=1, save_every=1, warmup=0, lr_concrete=share)
        run = train_run(new_run(tmp_path / f"run-{share}", config), CPU)
        before, after = (load_file(run.folder / f"checkpoints/step-0000000{k}/weights.safetensors") for k in (0, 1))
        trained = dict(Bundle(run.config, len(run.answers)).named_parameters())
        moved.append({name: after[name] - before[name] for name in trained})
    full, quarter, none = moved
    concrete = {name for name in full if ".concrete." in name}
    assert 0 < len(concrete) < len(full)
    for name in full:
        if name in concrete:
            assert torch.allclose(quarter[name], 0.25 * full[name], rtol=1e-3, atol=1e-7)
            assert not none[name].any()
        else:
            assert torch.equal(quarter[name], full[name])
            assert torch.equal(none[name], full[name])
    assert all(full[name].any() for name in concrete)


def test_another_runs_queue_and_averaged_encoders_are_not_taken_over(tmp_path, few_records):
    """Their ids are of that run's data, and an averaged encoder that begins elsewhere is far behind."""
    config = micro_config("retrieval", objectives={"itc_queue": 1.0}, losses=LossConfig(queue=16), steps=2)
    source = train_run(new_run(tmp_path / "source", config), CPU)
    tuned = new_run(tmp_path / "tuned", config, source.codec)
    trainer = Trainer(tuned, load_split(tuned, "train"), load_split(tuned, "val"), CPU)
    weights = best_checkpoint(source.folder).evaluated_weights()
    assert weights["objectives.itc_queue.momentum.started"]
    assert weights["objectives.itc_queue.images.total"] == 16
    trainer.load_weights(weights)
    queued = trainer.bundle.state_dict()
    assert not queued["objectives.itc_queue.momentum.started"]
    assert queued["objectives.itc_queue.images.total"] == queued["objectives.itc_queue.texts.total"] == 0
    assert torch.equal(queued["model.concrete.vit.norm.weight"], weights["model.concrete.vit.norm.weight"])


def test_a_share_of_the_spikes_that_is_given_is_not_learned_elsewhere(tmp_path, few_records):
    source = train_run(new_run(tmp_path / "source", micro_config(steps=2)), CPU)
    model = micro_config().model
    alone = replace(micro_config(), model=replace(model, fusion=replace(model.fusion, r=0.0)))
    run = new_run(tmp_path / "alone", alone, source.codec)
    trainer = Trainer(run, load_split(run, "train"), load_split(run, "val"), CPU)
    weights = best_checkpoint(source.folder).evaluated_weights()
    assert weights["model.fusion.r"]
    trainer.load_weights(weights)
    assert not trainer.bundle.model.fusion.r


def test_weights_that_fit_counters_and_vectors_alone_are_refused(tmp_path, few_records):
    source = train_run(new_run(tmp_path / "source", micro_config(steps=1, save_every=1)), CPU)
    weights = best_checkpoint(source.folder).evaluated_weights()
    model = micro_config().model
    other = replace(model, concrete=replace(model.concrete, stem=(7,)), width=2 * model.width)
    run = new_run(tmp_path / "other", replace(micro_config(), model=other), source.codec)
    trainer = Trainer(run, load_split(run, "train"), load_split(run, "val"), CPU)
    with pytest.raises(UserError, match="fit no layer of this model"):
        trainer.load_weights(weights)
    positions = {"model.concrete.vit.pos_embed": torch.zeros(1, 1 + 2 * 3, 2 * model.width)}
    with pytest.raises(UserError, match="fit no layer of this model"):  # those are of no square grid
        trainer.load_weights(positions)


def test_clipping_at_nothing_is_none(tmp_path, few_records):
    runs = [
        train_run(new_run(tmp_path / f"{most}", micro_config(steps=1, save_every=1, clip=most)), CPU)
        for most in (0.0, 1e9)
    ]
    assert same(runs[0].folder, runs[1].folder)


def test_each_step_has_its_own_randomness():
    draws = []
    for step in (0, 1, 0):
        seed_step(7, step)
        draws.append(torch.rand(()).item())
    assert draws[0] == draws[2]
    assert draws[0] != draws[1]


KILLED = """
import sys, torch
from pathlib import Path
import pytest
from tests.conftest import cut, micro_config
from train.data import DATASETS
from train.run import open_run
from train.stages import new_run, train_run
data = {}
def few(split, size, cache=None, progress=None):
    return data.setdefault(split, cut("easy_vqa", split, size, 40))
DATASETS["few_vqa"] = few
folder = Path(sys.argv[1])
run = open_run(folder) if folder.exists() else new_run(folder, micro_config(steps=int(sys.argv[2]), save_every=4))
print("ready", flush=True)
train_run(run, torch.device("cpu"), lambda step, *_: print(step, flush=True))
"""


def run_killed(folder: Path, steps: int, seconds: float | None) -> bool:
    """Train in a process of its own, killed after `seconds` if any; whether it came to its end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-W", "ignore", "-c", KILLED, str(folder), str(steps)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if seconds is not None:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        process.stdout.read()
        return process.wait() == 0


def killed_and_resumed(tmp_path: Path, steps: int, kills: int) -> None:
    """Kill at moments that a seed draws, resume each time, and compare with the run that was left alone."""
    start = time.monotonic()
    assert run_killed(tmp_path / "whole", steps, None)
    duration = time.monotonic() - start
    rng = np.random.default_rng([kills, steps])
    for _ in range(kills):
        run_killed(tmp_path / "killed", steps, float(rng.uniform(0, duration / 2)))
    assert run_killed(tmp_path / "killed", steps, None)
    assert same(tmp_path / "whole", tmp_path / "killed")
    leftovers = [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_kill_minus_nine_twice_then_resume_ends_with_the_same_weights(tmp_path):
    killed_and_resumed(tmp_path, steps=40, kills=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_minus_nine_ten_times_then_resume_ends_with_the_same_weights(tmp_path):
    killed_and_resumed(tmp_path, steps=200, kills=10)


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, few_records, caplog):
    config = micro_config(steps=6)
    run = train_run(new_run(tmp_path / "run", config), CPU)
    whole = tmp_path / "whole"
    shutil.copytree(run.folder, whole)
    weights = run.folder / "checkpoints" / "step-00000006" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    newest = newest_checkpoint(run.folder)
    assert newest is not None
    assert newest.step == 3
    assert "differs from the SHA-256" in caplog.text
    train_run(run, CPU)  # which writes step 6 anew
    assert same(run.folder, whole)


def test_log_lines_are_json_objects_which_are_there_while_training_goes_on(tmp_path, few_records):
    run, newest = new_run(tmp_path / "run", micro_config(steps=3, save_every=3)), []
    train_run(run, CPU, lambda *_: newest.append(read_log(run.folder)[-1]["step"]))
    assert newest == [0, 1, 2]  # a step is reported before it is logged
    for line in (run.folder / "log.jsonl").read_text().splitlines():
        assert json.loads(line)["split"] in ("train", "val")


def test_what_a_damaged_newest_checkpoint_falls_back_to_knows_a_best_one(tmp_path, few_records):
    run = new_run(tmp_path / "run", micro_config())
    history = []
    for step, score in ((100, 50.0), (200, 60.0), (300, 40.0), (400, 70.0)):
        history.append({"step": step, "score": score})
        save_checkpoint(run.folder, step, list(history), {"weights": {"w": torch.zeros(2)}})
    (run.folder / "checkpoints" / "step-00000400" / "weights.safetensors").write_bytes(b"")
    newest = newest_checkpoint(run.folder)
    assert newest is not None
    assert newest.step == 300
    clear_leftovers(run.folder, newest)
    assert best_checkpoint(run.folder).step == 200


def test_a_log_that_goes_on_behind_step_zero_keeps_its_evaluation(tmp_path):
    with RunLog(tmp_path, None) as log:
        log.write(0, "val", {"score": 1.0})
        log.write(1, "train", {"loss": 2.0})
    with RunLog(tmp_path, 0) as log:
        log.write(1, "train", {"loss": 3.0})
    assert [(e["step"], e["split"], e.get("loss")) for e in read_log(tmp_path)] == [(0, "val", None), (1, "train", 3.0)]
    with RunLog(tmp_path, None):
        assert read_log(tmp_path) == []
