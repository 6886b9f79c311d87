"""Batches made ahead: the same in any number of processes, and no process fails in silence."""

import os
import signal
from dataclasses import fields

import pytest
import torch

from hw.errors import UserError
from tests.conftest import micro_config
from tests.train.official import MAKERS, picture
from tests.train.test_loop import same
from train.loader import Batches, load_ahead, workers_for
from train.run import open_run
from train.stages import load_split, new_run, train_run

CPU = torch.device("cpu")


@pytest.fixture
def made(tmp_path, few_records) -> Batches:
    config = micro_config("vqa", objectives={"vqa": 1.0, "vqa_soft": 1.0, "scl": 1.0}, view_hue=0.5, erase=0.5)
    run = new_run(tmp_path / "run", config)
    return Batches(run, load_split(run, "train"))


def equal(a, b) -> bool:
    values = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    flat = [pair for x, y in values for pair in (zip(x, y, strict=True) if isinstance(x, tuple) else [(x, y)])]
    return all(x is y if x is None else torch.equal(x, y) for x, y in flat)


def test_batches_are_the_same_in_any_number_of_processes(made):
    steps = range(2, 7)
    alone = list(load_ahead(made, steps, CPU, 0))
    assert len(alone) == 5
    assert alone[0].images.dtype == torch.float32
    assert alone[0].images.abs().max() <= 1
    for workers in (1, 2):
        assert all(equal(a, b) for a, b in zip(alone, load_ahead(made, steps, CPU, workers), strict=True))
    assert not equal(alone[0], alone[1])
    assert equal(made[4].to(CPU), alone[2])


def test_making_a_batch_leaves_torchs_generator_alone(made):
    before = torch.get_rng_state()
    made[3]
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_ends_with_the_same_bits_with_and_without_processes_that_make_batches(tmp_path, few_records):
    config = micro_config("retrieval")
    alone = train_run(new_run(tmp_path / "alone", config), CPU)
    beside = train_run(new_run(tmp_path / "beside", config), CPU, workers=2)
    assert same(alone.folder, beside.folder)


def test_pictures_that_share_an_id_are_never_in_one_batch(tmp_path):
    rows = [f"{k}.png,a mug {k // 2},mug{k // 2},{split}" for split in ("train", "val") for k in range(6)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,image_id,split", *rows]))
    for k in range(6):
        picture(tmp_path / f"{k}.png", k)
    given = {"dataset": str(tmp_path), "tokenizer_data": (str(tmp_path),), "batch": 3}
    run = new_run(tmp_path / "run", micro_config("retrieval", **given))
    made = Batches(run, load_split(run, "train"))
    assert [made.data.image_id(i) for i in made.records] == [f"mug{k // 2}" for k in range(6)]
    assert all(sorted(made[step].image_ids.tolist()) == [0, 1, 2] for step in range(9))


@pytest.mark.parametrize("batch", [2, 5])
def test_pictures_of_one_class_are_never_taken_for_different_things(tmp_path, batch):
    MAKERS["classes"](tmp_path / "data")
    given = {"dataset": str(tmp_path / "data"), "tokenizer_data": (str(tmp_path / "data"),), "batch": batch}
    objectives = {"itc": 1.0, "itm": 1.0, "stua": 1.0, "scl": 1.0}
    run = train_run(new_run(tmp_path / "run", micro_config("retrieval", objectives=objectives, steps=3, **given)), CPU)
    made = Batches(run, load_split(run, "train"))
    for step in range(9):
        inputs = made[step]
        said = inputs.tokens.ids
        assert inputs.image_ids.shape == (batch,)
        assert torch.equal(inputs.image_ids[:, None] == inputs.image_ids, (said[:, None] == said).all(2))
        assert len(set(inputs.image_ids.tolist())) == 2


class Broken:
    """Data whose eleventh image does something else when it is read."""

    def __init__(self, data, instead) -> None:
        self.data, self.instead = data, instead

    def __getattr__(self, name):
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data)

    def image(self, i: int):
        if i == 11:
            self.instead()
        return self.data.image(i)


def unreadable() -> None:
    raise UserError("a.tar: record 11 'x.jpg' is cut short; write the shard anew")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_record_is_told_as_the_data_set_tells_it(made, workers):
    made.data = Broken(made.data, unreadable)
    with pytest.raises(UserError, match=r"^a\.tar: record 11 'x\.jpg' is cut short; write the shard anew$"):
        list(load_ahead(made, range(10), CPU, workers))


def test_a_killed_process_is_told_and_the_run_resumes(tmp_path, few_records, monkeypatch):
    config = micro_config("vqa")
    whole = train_run(new_run(tmp_path / "whole", config), CPU)
    run = new_run(tmp_path / "run", config)
    make, calls = Batches.__getitem__, []

    def deadly(self, step):
        return killed() if step == 4 else make(self, step)

    monkeypatch.setattr(Batches, "__getitem__", deadly)
    told = r"^a process that makes batches died \(DataLoader worker \(pid.*; the last checkpoint is whole: resume"
    with pytest.raises(UserError, match=told):
        train_run(run, CPU, lambda *_: calls.append(1), workers=1)
    assert len(calls) <= 4
    monkeypatch.setattr(Batches, "__getitem__", make)
    train_run(open_run(run.folder), CPU)
    assert same(whole.folder, run.folder)


def test_processors_make_their_batches_themselves_and_gpus_have_them_made():
    assert workers_for(CPU) == 0
    assert workers_for(torch.device("cuda")) == min(8, (os.cpu_count() or 1) - 1)
