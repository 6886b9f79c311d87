"""The whole model: presets, fusion, independence of samples, and every objective of the registry."""

from dataclasses import replace

import pytest
import torch

from ashnets.config import PRESETS, ConcreteConfig, TextConfig, tiny
from ashnets.model import AshNet, Inputs, normalise, parameters
from ashnets.objectives import OBJECTIVES
from ashnets.objectives.base import info_nce
from ashnets.text import Tokens


def tokens(ids: torch.Tensor, padding: torch.Tensor) -> Tokens:
    """Tokens with some spellings."""
    return Tokens(ids, padding, torch.randint(1, 9, (len(ids), 3)))


def inputs(config, images: int = 6, texts: int = 8) -> Inputs:
    size = config.concrete.image_size
    return Inputs(
        images=torch.rand(images, 3, size, size) * 2 - 1,
        view=torch.rand(images, 3, size, size) * 2 - 1,
        tokens=tokens(
            torch.randint(4, config.text.vocabulary, (texts, 5)),
            torch.tensor([[False] * 4 + [k % 2 == 0] for k in range(texts)]),
        ),
        text_image=torch.arange(texts) % images,
        image_ids=torch.tensor([0, 1, 2, 3, 4, 4])[:images],
        answers=torch.randint(0, 5, (texts,)),
    )


def test_tiny_has_about_a_million_parameters():
    assert 0.8e6 < parameters(AshNet(tiny(), 13)) < 1.4e6


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_and_agree_with_their_own_shapes(preset):
    config = PRESETS[preset]()
    with torch.device("meta"):  # shapes without memory
        model = AshNet(config, 13)
        size = config.concrete.image_size
        vision = model.vision(torch.empty(2, 3, size, size))
    assert vision.v.shape == vision.f.shape == (2, model.concrete.grid[0] * model.concrete.grid[1], config.width)
    assert vision.s_in.shape[0] == vision.s_out.shape[0] == config.abstract.steps


def test_without_the_spiking_branch_the_model_is_the_artificial_network_alone(micro):
    model = AshNet(micro, 5).eval()
    with torch.no_grad():
        model.fusion.r.zero_()
        vision = model.vision(torch.rand(3, 3, 32, 32))
    assert torch.equal(vision.v, vision.f)
    assert vision.e.abs().sum() > 0


def test_the_spike_code_of_an_image_does_not_depend_on_its_batch(micro):
    model = AshNet(micro, 5).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        together = model.vision(images).s_in
        alone = torch.cat([model.vision(images[i : i + 1]).s_in for i in range(4)], 1)
    assert torch.equal(together, alone)


def test_padding_of_a_question_does_not_change_its_answer(micro):
    model = AshNet(micro, 5).eval()
    ids = torch.randint(4, 300, (2, 6))
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    v = torch.rand(2, 4, micro.width)
    with torch.no_grad():
        padded = model.answer(model.text(tokens(ids, padding)), padding, v)[1]
        short = model.answer(model.text(tokens(ids[1:, :4], padding[1:, :4])), padding[1:, :4], v[1:])[0]
    assert torch.allclose(padded, short, atol=1e-5)


def test_bert_takes_the_place_of_the_small_text_encoder(micro):
    config = replace(micro, text=TextConfig(kind="bert", vocabulary=400, length=12, depth=1, heads=2))
    model = AshNet(config, 5).eval()
    ids, padding = torch.randint(4, 300, (2, 6)), torch.zeros(2, 6, dtype=torch.bool)
    assert model.text(tokens(ids, padding)).shape == (2, 6, micro.width)


def test_a_vision_transformer_of_timm_takes_the_place_of_the_stem(micro):
    concrete = ConcreteConfig(image_size=32, backbone="vit_tiny_patch16_224", depth=12, heads=3)
    model = AshNet(replace(micro, width=192, concrete=concrete), 5)
    assert model.vision(torch.rand(2, 3, 32, 32)).v.shape == (2, 4, 192)
    with pytest.raises(ValueError, match="is 192 wide, the model is 16"):
        AshNet(replace(micro, concrete=concrete), 5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_finite_and_teaches_the_spiking_stack(name, micro):
    model, objective = AshNet(micro, 5), OBJECTIVES[name](micro)
    model.text_head.learn_lexicon({str(i): 1.0 for i in range(9)})
    batch = inputs(micro)
    vision = model.vision(batch.images)
    loss, logs = objective(model, batch, vision, model.text(batch.tokens))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value) for value in logs.values())
    gradient = model.abstract.stack.layers.conv1.synapse.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert objective.needs_view == (name == "scl")


def test_stua_teaches_the_text_nothing(micro):
    model, objective = AshNet(micro, 5), OBJECTIVES["stua"](micro)
    batch = inputs(micro)
    loss, _ = objective(model, batch, model.vision(batch.images), model.text(batch.tokens))
    loss.backward()
    assert all(p.grad is None for p in (*model.text.parameters(), *model.text_head.parameters()))


def test_without_a_lexicon_texts_are_compared_by_their_tokens(micro):
    model = AshNet(replace(micro, text=replace(micro.text, lexicon=0)), 5).eval()
    ids, padding = torch.randint(4, 300, (2, 6)), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    found = model.embed_texts(model.text(tokens(ids, padding)), tokens(ids, padding))
    assert found.shape == (2, micro.embedding)
    changed = ids.clone()
    changed[1, 4:] = 7  # behind the padding
    again = model.embed_texts(model.text(tokens(changed, padding)), tokens(changed, padding))
    assert torch.allclose(found, again, atol=1e-6)


def test_pairs_of_the_same_image_are_never_negatives():
    positive = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    logits = torch.zeros(3, 3)
    raised = logits.clone()
    raised[0, 1] = raised[1, 0] = 50.0  # the other picture of the same thing looks alike: that must cost nothing
    assert info_nce(raised, positive) <= info_nce(logits, positive)
    confused = logits.clone()
    confused[0, 2] = 50.0
    assert info_nce(confused, positive) > info_nce(logits, positive) + 10


def test_itc_without_soft_targets_is_the_contrastive_loss_and_with_them_forgives_texts_alike(micro, monkeypatch):
    model, objective = AshNet(micro, 5).eval(), OBJECTIVES["itc"](micro)
    model.text_head.learn_lexicon({str(i): 1.0 for i in range(9)})
    batch = inputs(micro)
    args = (model, batch, model.vision(batch.images), model.text(batch.tokens))
    loss, logs = objective(*args)
    assert loss != logs["contrast"]
    monkeypatch.setattr(type(objective), "soft", 0.0)
    assert torch.allclose(objective(*args)[0], logs["contrast"])


def test_contrast_of_single_positives_is_cross_entropy():
    logits = torch.randn(5, 5)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(5))
    assert torch.allclose(info_nce(logits, torch.eye(5, dtype=torch.bool)), expected, atol=1e-6)


def test_pixels_are_normalised_to_plus_minus_one():
    assert normalise(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
