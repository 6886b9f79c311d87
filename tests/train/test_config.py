"""Configurations survive JSON, and bad ones are refused by key."""

import json
from dataclasses import replace

import pytest

from ashnets.config import PRESETS, LossConfig
from hw.errors import UserError
from train.config import (
    COMPOSED,
    EMBEDDED,
    RunConfig,
    TrainConfig,
    finetune_recipe,
    for_task,
    for_tuning,
    from_dict,
    on_folder,
    pretrain_recipe,
    qat_recipe,
    to_dict,
)
from train.data import DATASETS
from train.limits import check_numbers
from train.recipes import RECIPES


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", [pretrain_recipe, finetune_recipe])
def test_every_preset_and_recipe_survives_json(preset, recipe):
    config = RunConfig(model=PRESETS[preset](), train=qat_recipe(recipe()), quantizer="int8")
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config))), "config") == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("train", "stepz"), 3, "config.train: unknown key 'stepz'"),
        (("train", "steps"), "many", "config.train.steps: 'many' is not of type int"),
        (("train", "lr"), True, "config.train.lr: True is not of type float"),
        (("train", "task"), "poetry", "config.train.task: 'poetry'"),
        (("model", "abstract", "convs"), [[1, 2, 3]], r"config.model.abstract.convs: \[1, 2, 3\]"),
        (("model",), 7, "config.model: expected an object"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(path, value, message):
    values = json.loads(json.dumps(to_dict(RunConfig())))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UserError, match=message):
        from_dict(RunConfig, values, "config")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("log_every", 0, "1 or more"), ("texts_per_image", 0, "1 or more"), ("seed", -1, "0 or more"),
     ("crop", 1.5, "0 to 1"), ("lr", float("nan"), "0 or more")],
)  # fmt: skip
def test_a_number_that_trains_nothing_is_refused(name, value, told):
    with pytest.raises(UserError, match=f"train.{name} is {value}; give {told}"):
        check_numbers(RunConfig(train=TrainConfig(**{name: value})))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train": {"objectives": {"itc": float("nan")}}}, "train.objectives is nan; give 0 or more"),
        ({"train": {"lr": float("inf")}}, "train.lr is inf; give 0 or more"),
        ({"model": {"abstract": {"convs": [[64, 2], [0, 1]]}}}, "model.abstract.convs is 0; give 1 or more"),
        ({"model": {"abstract": {"decay_v": 1.5}}}, "model.abstract.decay_v is 1.5; give 0.001 to 0.999"),
        ({"model": {"fusion": {"images": 3}}}, "model.fusion.images is 3; give 1 to 2"),
        ({"model": {"text": {"vocabulary": 100}}}, "model.text.vocabulary is 100; give 260 or more"),
        ({"model": {"text": {"heads": 5}}}, "model.width is 96, no multiple of model.text.heads, 5"),
        ({"model": {"concrete": {"image_size": 60}}}, "image_size is 60; give a multiple of 8"),
        ({"model": {"concrete": {"backbone": "resnet18"}}}, "backbone is 'resnet18'; give conv_stem, or the name of a"),
        ({"model": {"concrete": {"backbone": "vit_tiny_patch16_224"}}}, "192 wide; give that as model.width, which is"),
        ({"model": {"abstract": {"convs": [], "dense": []}}}, "give at least one spiking layer"),
    ],
)
def test_a_config_that_makes_no_model_or_training_is_refused(values, told):
    with pytest.raises(UserError, match=told):
        check_numbers(from_dict(RunConfig, values, "config"))


def test_a_temperature_below_the_least_is_refused():
    with pytest.raises(UserError, match=r"temperature is 0.07, and train.losses.temperature_least 0.1; lower that too"):
        check_numbers(RunConfig(train=TrainConfig(losses=LossConfig(temperature=0.07))))


def test_another_task_leaves_what_was_chosen():
    chosen = replace(finetune_recipe(), dataset="mine", objectives={"vqa": 1.0})
    made = for_task(chosen, "nlvr2")
    assert (made.task, made.dataset, made.objectives) == ("nlvr2", "mine", {"vqa": 1.0})


@pytest.mark.parametrize("task", EMBEDDED)
def test_every_task_has_a_data_set_at_hand_and_objectives_that_it_can_meet(task):
    made = for_task(finetune_recipe(), task)
    assert made.task == task
    assert made.dataset in DATASETS
    assert ("vqa" in made.objectives) == (task != "retrieval")
    assert for_tuning(made).lr_concrete == (0.1 if made.dataset in COMPOSED else 1)
    assert for_tuning(replace(made, lr_concrete=1.0)).lr_concrete == 1


def test_the_texts_of_a_folder_teach_the_tokenizer_unless_others_were_chosen():
    small = RECIPES["small"]().train
    for train in (pretrain_recipe(), small):
        assert on_folder(train, "coco:mine").tokenizer_data == ("coco:mine",)
    assert on_folder(replace(small, tokenizer_data=("texts",)), "coco:mine").tokenizer_data == ("texts",)
    assert on_folder(small, None) is small
