"""Recipes build, are told on paper as they are, and survive a file."""

import json
from dataclasses import replace

import pytest
import torch

from ashnets.cli import main
from tests.conftest import MICRO, micro_config
from train.config import read_config
from train.cost import cost, loss_of, random_inputs
from train.recipes import PAPERS, RECIPES, base_tuned
from train.run import Bundle, open_run


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name, tmp_path, capsys):
    path = tmp_path / "config.json"
    assert main(["recipe", name, "--out", str(path)]) == 0
    assert read_config(path) == RECIPES[name]()
    assert f"ashnets train RUN --config {path}" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["retrieval", "vqa", "nlvr2", "snli_ve"])
def test_the_base_model_is_tuned_on_every_task(task):
    made = base_tuned(task, "data")
    assert (made.task, made.dataset) == (task, "data")
    Bundle(replace(micro_config(), train=made), answers=2)


def test_a_run_is_trained_from_a_file_that_leaves_things_out(tmp_path, few_records, capsys):
    path = tmp_path / "config.json"
    train = {"dataset": "few_openmoji", "tokenizer_data": ["few_openmoji"], "steps": 1, "batch": 4, "save_every": 1}
    model = {"width": 16, "concrete": {"image_size": 32, "heads": 2}, "abstract": {"reads": "concrete"}}
    path.write_text(json.dumps({"model": model, "train": train}))
    assert main(["train", str(tmp_path / "run"), "--config", str(path)]) == 0
    assert open_run(tmp_path / "run").config.model.abstract.reads == "concrete"
    path.write_text(json.dumps({"model": {"widht": 16}}))
    assert main(["train", str(tmp_path / "other"), "--config", str(path)]) == 2
    assert "config.json.model: unknown key 'widht' in ModelConfig" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_operations_are_counted_by_hand_for_a_small_model():
    """Twice the images with their texts are twice the operations, and those of one more block are known."""
    model = replace(MICRO, text=replace(MICRO.text, lexicon=0))
    config = replace(micro_config("retrieval"), model=model)
    one, two = cost(config, 2), cost(config, 4)
    assert 0.9 < two.flops / one.flops < 1.1
    assert sum(one.parameters.values()) == sum(p.numel() for p in Bundle(config, 0).model.parameters())
    assert one.images == config.train.steps * config.train.batch
    more = cost(replace(config, model=replace(model, text=replace(model.text, depth=2))), 2)
    # One more block of width 16 over 12 tokens: four projections and an MLP of four times the width, forward and twice
    # as much backward, and what attention itself takes.
    linear = 3 * 2 * 12 * (4 * 16 * 16 + 8 * 16 * 16)
    attention = 3 * 2 * 2 * 12 * 12 * 16
    assert linear <= more.flops - one.flops <= linear + 2 * attention
    assert more.state_bytes - one.state_bytes == 16 * (more.parameters["text"] - one.parameters["text"])


@pytest.mark.slow
def test_the_base_model_takes_an_optimiser_step_on_the_cpu():
    recipe = RECIPES["base-4m"]()
    config = replace(recipe, train=replace(recipe.train, losses=replace(recipe.train.losses, queue=64)))
    torch.manual_seed(0)
    bundle = Bundle(config, 0).train()
    trained = [p for p in bundle.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    inputs = random_inputs(config.model, 2)
    loss = loss_of(bundle, config, inputs)
    loss.backward()
    assert set(config.train.objectives) == set(PAPERS)
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in trained)
    before = bundle.model.abstract.stack.neural_layers["conv1"].synapse.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, bundle.model.abstract.stack.neural_layers["conv1"].synapse.weight)
