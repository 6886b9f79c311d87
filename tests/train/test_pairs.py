"""Texts about pairs of images: both are seen, in their order, through training, quantization and evaluation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ashnets.config import LossConfig
from ashnets.model import AshNet
from tests.ashnets.batches import tokens
from tests.conftest import MICRO, micro_config
from train.data import collate, load
from train.evaluate import evaluate_answers
from train.joints import verify_run
from train.loader import picture_ids
from train.logs import read_log
from train.loop import Trainer
from train.run import load_model
from train.stages import load_split, new_run, qat_config, quantized_run, train_run

CPU = torch.device("cpu")
PAIRS = replace(MICRO, fusion=replace(MICRO.fusion, images=2))


def test_the_two_images_of_a_pair_follow_each_other_in_a_batch(few_records):
    data = load("few_pairs", "train", 32)
    batch = collate(data, [3, 7], np.random.default_rng(0), None)
    assert batch.images.shape == (4, 3, 32, 32)
    for k, (i, side) in enumerate([(3, 0), (3, 1), (7, 0), (7, 1)]):
        np.testing.assert_array_equal(batch.images[k], data.image(i)[side].transpose(2, 0, 1))
    assert batch.text_image.tolist() == [0, 1]
    assert data.text_ids(3) == ("train-0-3-0",)


def test_a_picture_that_two_pairs_share_is_the_same_to_the_spiking_contrast(few_records, tmp_path):
    data = load("few_pairs", "train", 32)
    batch = collate(data, [3, 7], np.random.default_rng(0), None)
    shared = replace(batch, images=batch.images[[0, 1, 1, 3]])
    ids = picture_ids(shared, np.array([5, 9]))
    assert len(set(ids)) == 3
    assert ids[1] == ids[2]
    alone = replace(batch, images=batch.images[:2])
    assert picture_ids(alone, np.array([5, 9])).tolist() == [5, 9]
    trained = micro_config("nlvr2", objectives={"vqa": 1.0, "scl": 1.0})
    run = new_run(tmp_path / "run", trained)
    trainer = Trainer(run, load_split(run, "train"), load_split(run, "val"), CPU)
    given = trainer.batches[0].to(CPU)
    vision = trainer.bundle.model.vision(given.images)
    loss = trainer.bundle.objectives["scl"]
    same = torch.zeros(16, dtype=torch.long)
    of_all = [
        loss(trainer.bundle.model, replace(given, picture_ids=ids), vision, torch.empty(0))[0]
        for ids in (given.picture_ids, same)
    ]
    assert given.picture_ids.shape == (16,)
    assert of_all[1] < of_all[0]  # nothing is a negative where all are the same


def test_tokens_of_a_pair_stand_in_one_row_and_no_pair_sees_another():
    model = AshNet(PAIRS, 2).eval()
    images = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        vision = model.vision(images)
        alone = model.vision(images[2:4])
    tokens_of_one = model.concrete.grid[0] * model.concrete.grid[1]
    assert vision.v.shape == (3, 2 * tokens_of_one, MICRO.width)
    assert vision.f.shape[0] == vision.s_out.shape[1] == 6
    torch.testing.assert_close(alone.v[0], vision.v[1])


def test_a_text_can_tell_the_left_image_from_the_right():
    """The same two pictures in either order, and a text that is true of one order: it is learned."""
    torch.manual_seed(0)
    model = AshNet(PAIRS, 2)
    dark, light = -torch.ones(3, 32, 32), torch.ones(3, 32, 32)
    images = torch.stack([dark, light, light, dark])
    ids = torch.tensor([[1, 20, 2]] * 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        words = tokens(ids, ids == 0)
        logits = model.answer(model.text(words), words.padding, model.vision(images).v)
        loss = F.cross_entropy(logits, torch.tensor([0, 1]))
        loss.backward()
        optimiser.step()
    assert loss < 0.1


def test_pairs_are_trained_quantized_and_verified_like_single_images(tmp_path, few_records):
    source = train_run(new_run(tmp_path / "float", micro_config("nlvr2", steps=3)), CPU)
    assert source.config.model.fusion.images == 2
    made = train_run(quantized_run(source, tmp_path / "int8", qat_config(source, 2)), CPU, init=source)
    data = load_split(made, "test")
    found = [
        evaluate_answers("nlvr2", load_model(made, backend, CPU), data, made.codec, made.answers, keep_scores=True)
        for backend in ("qat", "reference")
    ]
    assert np.array_equal(found[0].scores, found[1].scores)
    assert {"accuracy", "consistency", "questions"} <= found[0].metrics.keys()
    (joint,) = verify_run(made, {"reference": 8}, CPU)
    assert joint.total == 0


def test_a_model_of_single_images_becomes_one_of_pairs_when_it_is_tuned_on_them(tmp_path, few_records):
    source = train_run(new_run(tmp_path / "float", micro_config(steps=2)), CPU)
    config = replace(micro_config("nlvr2", steps=2, lr=0.0), model=source.config.model)
    tuned = train_run(new_run(tmp_path / "tuned", config, source.codec), CPU, init=source)
    a, b = (load_model(run, "float", CPU).state_dict() for run in (source, tuned))
    assert torch.equal(a["concrete.vit.norm.weight"], b["concrete.vit.norm.weight"])
    assert torch.equal(a["cross.norm.weight"], b["cross.norm.weight"])
    assert (
        b["answer_head.classify.0.weight"].shape[1]
        == 4 * MICRO.width
        == 2 * a["answer_head.classify.0.weight"].shape[1]
    )


@pytest.mark.parametrize("how", ["spike_to_text", "text_spike"])
def test_spikes_of_pairs_are_aligned_to_their_sentences(how, tmp_path, few_records):
    objectives = {"vqa": 1.0, "stua": 0.2}
    config = micro_config("nlvr2", steps=1, save_every=1, objectives=objectives, losses=LossConfig(stua=how))
    run = train_run(new_run(tmp_path / "run", config), CPU)
    assert all(math.isfinite(entry["stua"]) for entry in read_log(run.folder) if entry["split"] == "train")
