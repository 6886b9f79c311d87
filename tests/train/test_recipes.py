"""Recipes build, are told on paper as they are, and survive a file."""

import json
from dataclasses import replace

import pytest
import torch

from ashnets.abstract import SpikeEncoder
from ashnets.cli import main
from hw.artifact import write_json
from tests.conftest import MICRO, micro_config
from train.config import read_config, to_dict
from train.cost import cost, random_inputs
from train.loop import Trainer
from train.recipes import ANSWERS, PAPERS, RECIPES, TUNED, base_tuned
from train.run import Bundle, load_model, open_run
from train.stages import at_image_size, load_split, new_run, starting_weights, train_run

CPU = torch.device("cpu")
TUNE = {"steps": 2, "batch": 8, "warmup": 1, "save_every": 2, "texts-per-image": 2}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name, tmp_path, capsys):
    path = tmp_path / "config.json"
    assert main(["recipe", name, "--out", str(path)]) == 0
    assert read_config(path) == RECIPES[name]()
    command = "finetune SOURCE RUN" if name in TUNED else "train RUN"
    assert f"ashnets {command} --config {path}" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["retrieval", "vqa", "nlvr2", "snli_ve"])
def test_the_base_model_is_tuned_on_every_task(task):
    made = base_tuned(task, "data")
    assert (made.train.task, made.train.dataset, made.model.concrete.image_size) == (task, "data", 384)
    Bundle(replace(micro_config(), train=made.train), answers=2)


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
    texts = config.train.texts_per_image
    assert texts == 2
    assert texts * linear <= more.flops - one.flops <= texts * (linear + 2 * attention)
    assert more.state_bytes - one.state_bytes == 16 * (more.parameters["text"] - one.parameters["text"])


def test_answers_are_a_part_of_the_cost():
    config = micro_config()
    two, many = (cost(config, 2, answers) for answers in (2, 102))
    assert sum(many.parameters.values()) - sum(two.parameters.values()) == 100 * (2 * MICRO.width + 1)
    assert ANSWERS.keys() == TUNED.keys() - {"base-retrieval"}


@pytest.mark.slow
def test_the_base_model_takes_an_optimiser_step_on_the_cpu():
    recipe = RECIPES["base-4m"]()
    config = replace(recipe, train=replace(recipe.train, losses=replace(recipe.train.losses, queue=64)))
    torch.manual_seed(0)
    bundle = Bundle(config, 0).train()
    trained = [p for p in bundle.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    inputs = random_inputs(config.model, 2)
    loss = bundle(inputs)[0]
    loss.backward()
    assert set(config.train.objectives) == set(PAPERS)
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in trained)
    before = bundle.model.abstract.stack.neural_layers["conv1"].synapse.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, bundle.model.abstract.stack.neural_layers["conv1"].synapse.weight)


def test_a_run_is_tuned_on_larger_pictures_with_the_same_spiking_stack(tmp_path, few_records, capsys):
    start = train_run(new_run(tmp_path / "a", micro_config("retrieval", steps=2)), CPU)
    made, program = tmp_path / "b", tmp_path / "b-int8"
    tuned = [f"--train.{key}={value}" for key, value in TUNE.items()]
    few = ["--train.dataset", "few_vqa", *tuned]
    assert main(["finetune", str(start.folder), str(made), "--image-size", "48", *few]) == 0
    run = open_run(made)
    assert run.config.model.concrete.image_size == 48
    before, after = (load_model(r, "float", CPU) for r in (start, run))
    assert (before.concrete.grid, after.concrete.grid) == ((4, 4), (6, 6))
    shapes = [[p.shape for p in model.abstract.parameters()] for model in (before, after)]
    assert shapes[0] == shapes[1]
    first = Trainer(run, load_split(run, "train"), load_split(run, "val"), CPU)
    first.load_weights(starting_weights(run, start))
    fitted = first.bundle.model.concrete.vit.pos_embed.detach().unflatten(1, (6, 6))
    there = starting_weights(run, start)["model.concrete.vit.pos_embed"].unflatten(1, (4, 4))
    assert torch.allclose(fitted.mean((1, 2)), there.mean((1, 2)), atol=0.01)
    assert fitted.std() > there.std() / 2
    assert main(["quantize", str(made), "--steps", "1", "--out", str(program)]) == 0
    assert main(["verify", str(program), "--samples", "4", "--slow-samples", "1"]) == 0
    assert main(["export", str(program), "--format", "bundle"]) == 0
    capsys.readouterr()
    assert main(["finetune", str(start.folder), str(tmp_path / "c"), "--image-size", "50", *few]) == 2
    assert "looks at patches of 8 px; give a multiple of 8" in capsys.readouterr().err


def test_tokens_of_a_larger_picture_are_coded_as_those_of_the_smaller(micro):
    """A picture that is even looks the same at every size."""
    large = at_image_size(micro, 64)
    small, big = (SpikeEncoder(m, (side, side)).eval() for m, side in ((micro, 4), (large, 8)))
    big.load_state_dict(small.state_dict())
    token = torch.randn(2, 1, 16)
    assert torch.equal(small(token.expand(2, 16, 16)), big(token.expand(2, 64, 16)))
    assert at_image_size(large, 32).abstract.grid == 4


def test_a_run_is_tuned_by_a_file(tmp_path, few_records):
    start = train_run(new_run(tmp_path / "a", micro_config("retrieval", steps=2)), CPU)
    config = micro_config("vqa", steps=1, save_every=1, lr_concrete=0.5)
    write_json(tmp_path / "config.json", to_dict(config))
    assert main(["finetune", str(start.folder), str(tmp_path / "b"), "--config", str(tmp_path / "config.json")]) == 0
    assert open_run(tmp_path / "b").config == config
