"""What is told of a training step's time and of the batches' speed."""

import json
import time
from dataclasses import replace

import pytest
import torch
from torch.profiler import profile

from ashnets.cli import main
from tests.conftest import micro_config
from train.bench import LoaderSpeed, loader_speed, trainer_of
from train.profiler import OTHER, SPIKING, attributed, labelled, parts_of, profile_step
from train.stages import new_run, train_run

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path, few_records):
    return new_run(tmp_path / "run", micro_config("retrieval"))


class Marked(torch.autograd.Function):
    """Cosines forward and sines backward, which the model has none of."""

    @staticmethod
    def forward(ctx, x):
        return x + 0 * x.cos()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] + 0 * grads[0].sin()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (SPIKING, "model.abstract.readout"),
        (SPIKING, "model.abstract.stack.layers.conv1"),  # which the contrast runs too, by itself
        ("artificial", "model.concrete.vit.patch_embed"),  # likewise
        ("text", "model.text_head"),
        ("fusion and heads", "model.image_head"),
        (OTHER, "objectives.scl.project"),
    ],
)
def test_work_is_of_the_part_that_does_it_forward_and_backward(run, part, name):
    trainer = trainer_of(run, CPU)
    module, inputs = trainer.bundle.get_submodule(name), trainer.batches[0].to(CPU)
    plain = module.forward
    module.__dict__["forward"] = lambda *given: Marked.apply(plain(*given))
    with labelled(parts_of(trainer.bundle.model)), profile() as found:
        trainer.train_step(inputs)
    made = {event.name: (owner, backward) for event, owner, backward in attributed(list(found.events()))}
    assert made["aten::cos"] == (part, False)
    assert made["aten::sin"] == (part, True)


def test_a_step_is_told_whole(run):
    found = profile_step(trainer_of(run, CPU), 1)
    assert set(found.milliseconds) == {*parts_of(trainer_of(run, CPU).bundle.model), OTHER}
    assert all(forward > 0 < back for forward, back in found.milliseconds.values())
    assert sum(found.shares.values()) == pytest.approx(1)


def test_every_module_of_the_model_is_in_one_part(run):
    model = trainer_of(run, CPU).bundle.model
    covered = [id(p) for modules in parts_of(model).values() for m in modules for p in m.parameters()]
    assert {id(p) for p in model.parameters()} == set(covered)
    assert OTHER not in parts_of(model)


def test_the_least_number_of_processes_that_keep_up_is_named():
    found = LoaderSpeed(images_per_second={0: 900.0, 1: 90.0, 2: 200.0, 4: 150.0}, wanted=100.0)
    assert found.enough == 2
    assert replace(found, wanted=300.0).enough is None


def test_speeds_of_batches_are_measured(run, monkeypatch):
    from train.loader import Batches

    make = Batches.__getitem__

    def slow(self, step):
        time.sleep(0.02)
        return make(self, step)

    monkeypatch.setattr(Batches, "__getitem__", slow)
    found = loader_speed(run, CPU, 3)
    assert list(found.images_per_second)[:2] == [0, 1]
    batch = run.config.train.batch
    assert all(speed < 1.5 * max(1, workers) * batch / 0.02 for workers, speed in found.images_per_second.items())
    assert min(found.images_per_second.values()) > 0 < found.wanted


def test_commands_time_a_run_and_refuse_what_they_cannot_time(tmp_path, run, capsys):
    trained = train_run(run, CPU)
    trace = tmp_path / "trace.json"
    common = ["--steps", "1", "--device", "cpu", "--json"]
    assert main(["bench", "step", "--run", str(trained.folder), "--out", str(trace), *common]) == 0
    out = capsys.readouterr().out
    values = json.loads(out.splitlines()[-1])
    assert sum(values["shares"].values()) == pytest.approx(1)
    assert "the spiking branch takes" in out
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"part: spiking", "ashnets::cuba_lif"} <= names
    assert main(["bench", "loader", "--run", str(trained.folder), *common]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(values["images_per_second"]) >= {"0", "1"}
    for wrong, told in (
        (["--steps", "0"], "time at least 1"),
        (["--run", str(trained.folder), "--config", "x.json"], "give one of them"),
        (["--out", str(tmp_path)], "is a folder"),
    ):
        assert main(["bench", "step", *wrong]) == 2
        assert told in capsys.readouterr().err
