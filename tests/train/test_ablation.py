"""Variants differ in what they say and in nothing else, and the table says plainly what they are worth."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import quantize
import train.ablation as ablation
from ashnets.config import tiny
from ashnets.model import AshNet
from ashnets.stack import layer_spikes, synaptic_operations
from hw.artifact import write_json
from hw.energy import count
from hw.errors import UserError
from tests.conftest import MICRO, micro_config
from train.ablation import ALONE, VARIANTS, Row, ablate, deepened, table, used_parameters, verdict
from train.config import to_dict
from train.data import DATASETS
from train.seconds import seconds_of

CPU = torch.device("cpu")


@pytest.fixture
def short(monkeypatch, few_records):
    def recipe(task, seed, steps):
        return replace(micro_config(task, steps=steps or 2, save_every=2).train, seed=seed)

    monkeypatch.setattr(ablation, "_recipe", recipe)


def test_every_variant_is_trained_and_none_trains_what_it_goes_without(tmp_path, short):
    rows = ablate(tmp_path, ("retrieval",), tuple(VARIANTS), 1, CPU, model=MICRO)
    assert [row.variant for row in rows] == list(VARIANTS)
    assert all(0 <= row.score <= 100 for row in rows)
    of = {row.variant: row for row in rows}
    assert of["ann"].parameters < of["both"].parameters <= of["ann_equal"].parameters
    assert all(of[name].synaptic_operations == 0 for name in (*ablation.ALONE, "codebook"))
    assert 0 < of["t1"].synaptic_operations < of["t8"].synaptic_operations


def test_a_table_that_was_interrupted_goes_on_and_other_settings_are_refused(tmp_path, short, monkeypatch):
    rows = ablate(tmp_path, ("vqa",), ("both", "t1"), 1, CPU, model=MICRO)
    (tmp_path / "t1-0" / "vqa.json").unlink()
    monkeypatch.setattr(ablation, "new_run", None)  # nothing is made again
    assert [asdict(r) for r in ablate(tmp_path, ("vqa",), ("both", "t1"), 1, CPU, model=MICRO)] == [
        asdict(r) for r in rows
    ]
    with pytest.raises(UserError, match="was made with other settings"):
        ablate(tmp_path, ("retrieval",), ("both",), 1, CPU, model=MICRO, steps=3)
    with pytest.raises(UserError, match="--seeds is 0; train at least 1"):
        ablate(tmp_path, ("retrieval",), ("both",), 0, CPU, model=MICRO)
    with pytest.raises(UserError, match="there is no variant 'more'"):
        ablate(tmp_path, ("retrieval",), ("more",), 1, CPU, model=MICRO)


def test_seconds_count_what_was_spent_before_an_interruption(tmp_path, short, monkeypatch):
    clock = tmp_path / "both-0" / "vqa.seconds"
    real = ablation.train_run

    def killed(run, device, progress, init):
        if run.folder.name == "vqa":
            raise KeyboardInterrupt
        return real(run, device, progress, init)

    monkeypatch.setattr(ablation, "train_run", killed)
    with pytest.raises(KeyboardInterrupt):
        ablate(tmp_path, ("vqa",), ("both",), 1, CPU, model=MICRO)
    assert seconds_of(clock) > 0
    write_json(clock, {"seconds": 1000})
    monkeypatch.setattr(ablation, "train_run", real)
    (row,) = ablate(tmp_path, ("vqa",), ("both",), 1, CPU, model=MICRO)
    assert row.seconds > 1000


def test_data_without_a_test_is_refused_before_anything_is_trained(tmp_path, short, monkeypatch):
    def silent(split, *rest):
        made = few(split, *rest)
        return replace(made, all_answers=()) if split == "test" else made

    few = DATASETS["few_vqa"]
    monkeypatch.setitem(DATASETS, "few_vqa", silent)
    with pytest.raises(UserError, match="the test split holds no answers, by which variants are judged"):
        ablate(tmp_path, ("vqa",), ("both",), 1, CPU, model=MICRO)
    with pytest.raises(UserError, match="--steps is 0; train at least 1"):
        ablate(tmp_path, ("vqa",), ("both",), 1, CPU, model=MICRO, steps=0)
    assert not list(tmp_path.iterdir())


def test_data_whose_name_has_a_dot_keeps_rows_of_its_own(tmp_path, short, monkeypatch):
    for name in ("v1.0", "v1.1"):
        monkeypatch.setitem(DATASETS, name, DATASETS["few_vqa"])
    tasks = ("vqa:v1.0", "vqa:v1.1")
    rows = ablate(tmp_path, tasks, ("both",), 1, CPU, model=MICRO)
    assert [row.task for row in rows] == list(tasks)
    assert [row.task for row in ablate(tmp_path, tasks, ("both",), 1, CPU, model=MICRO)] == list(tasks)


@pytest.mark.parametrize("chain", [False, True])
def test_each_task_starts_from_retrieval_or_in_a_chain_from_the_one_before(chain, tmp_path, short, monkeypatch):
    started = []
    real = ablation.train_run

    def spy(run, device, progress, init):
        started.append((run.folder.name, init and init.folder.name))
        assert ("scl" in run.config.train.objectives) == (run.folder.parent.name == "both-0")
        return real(run, device, progress, init)

    def recipe(task, seed, steps):
        made = micro_config(task, steps=1, save_every=1).train
        return replace(made, objectives={**made.objectives, "scl": 1.0})

    monkeypatch.setattr(ablation, "train_run", spy)
    monkeypatch.setattr(ablation, "_recipe", recipe)
    ablate(tmp_path, ("vqa", "nlvr2"), ("both", "no_scl"), 1, CPU, model=MICRO, chain=chain)
    once = [("retrieval", None), ("vqa", "retrieval"), ("nlvr2", "vqa" if chain else "retrieval")]
    assert started == 2 * once


def test_a_task_may_name_its_data():
    made = ablation._recipe("vqa:easy_vqa_new", 3, None)
    assert (made.task, made.dataset, made.seed) == ("vqa", "easy_vqa_new", 3)
    assert ablation._recipe("snli_ve", 0, None).dataset == "easy_snli_ve"


def test_where_r_is_zero_the_answer_is_that_of_the_artificial_network_and_stays_so():
    model = AshNet(VARIANTS["ann"].model(MICRO), 3)
    images = torch.rand(2, 3, 32, 32)
    before = model.vision(images).v
    with torch.no_grad():
        for p in model.abstract.parameters():
            p.normal_()
    assert torch.equal(model.vision(images).v, before)
    assert torch.equal(before, model.vision(images).f)
    assert not model.fusion.r.requires_grad


def test_the_deeper_artificial_network_has_as_many_parameters_and_hardly_more():
    both, equal = used_parameters(tiny()), used_parameters(deepened(tiny()))
    shallower = replace(deepened(tiny()), concrete=replace(tiny().concrete, depth=deepened(tiny()).concrete.depth - 1))
    assert used_parameters(shallower) < both <= equal < 1.2 * both


def test_operations_are_those_that_the_chip_side_counts():
    torch.manual_seed(1)
    stack = AshNet(MICRO, 0).abstract.stack
    with torch.no_grad():
        for layer in stack.neural_layers.values():
            layer.synapse.weight.copy_(layer.synapse.weight.sign() * (0.5 + torch.rand_like(layer.synapse.weight)))
    s = (torch.rand(3, 5, *stack.input_shape) < 0.3).float()
    program = quantize.lower(quantize.ptq(stack, s, "int8", "plain"))
    assert all((layer.weight_int != 0).all() for layer in program.synaptic)
    layers = {name: spikes.detach().numpy() for name, spikes in layer_spikes(stack, s).items()}
    counts = count(program, s.numpy(), layers)
    assert synaptic_operations(stack, s) * 5 == counts.total("synops") > 0


def row(variant: str, seed: int, score: float) -> Row:
    metrics = {"mean_recall": score}
    return Row(
        variant=variant,
        seed=seed,
        task="retrieval",
        score=score,
        metrics=metrics,
        parameters=7,
        synaptic_operations=9.0,
        seconds=1.0,
    )


@pytest.mark.parametrize(("gain", "told"), [(3.0, "helps"), (0.5, "makes no difference"), (-3.0, "does harm")])
def test_it_is_said_plainly_whether_the_spikes_help(gain, told):
    alone = np.array([50.0, 51.0, 52.0])
    assert verdict(alone + gain, alone, "ann").endswith(f"the spiking branch {told}")
    rows = [row("both", s, v + gain) for s, v in enumerate(alone)] + [row("ann", s, v) for s, v in enumerate(alone)]
    text = table(rows)
    assert f"both against ann: {gain:+.2f} with a standard deviation of 1.00" in text
    assert "51.00  1.00" in text
    assert ALONE[1] not in text


def test_one_seed_tells_nothing():
    assert "more seeds would tell" in verdict(np.array([50.0]), np.array([40.0]), "ann")


def test_variants_differ_in_what_they_say():
    base = to_dict(ablation.RunConfig())
    for name, variant in VARIANTS.items():
        config = ablation.RunConfig()
        made = replace(config, model=variant.model(config.model), train=variant.train(config.train))
        assert (to_dict(made) == base) == (name == "both"), name
