"""The whole model: presets, fusion, independence of samples."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ashnets.config import PRESETS, ConcreteConfig, TextConfig, tiny
from ashnets.fusion import CrossModalLayer
from ashnets.model import AshNet, normalise, parameters
from tests.ashnets.batches import tokens


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


@pytest.mark.parametrize("reads", ["stem", "concrete"])
def test_the_abstract_encoder_codes_what_the_config_says(micro, reads):
    model = AshNet(replace(micro, abstract=replace(micro.abstract, reads=reads)), 5).eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        vision = model.vision(images)
        read = {"stem": vision.f0, "concrete": vision.f}[reads]
        assert torch.equal(model.abstract.encoder(read), vision.s_in)
        assert torch.equal(model.code(images), vision.s_in)


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
    with pytest.raises(ValueError, match=r"is 192 wide; give that as model\.width, which is 16"):
        AshNet(replace(micro, concrete=concrete), 5)


def test_without_a_lexicon_texts_are_compared_by_their_tokens(micro):
    model = AshNet(replace(micro, text=replace(micro.text, lexicon=0)), 5).eval()
    ids, padding = torch.randint(4, 300, (2, 6)), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    found = model.embed_texts(model.text(tokens(ids, padding)), tokens(ids, padding))
    assert found.shape == (2, micro.embedding)
    changed = ids.clone()
    changed[1, 4:] = 7  # behind the padding
    again = model.embed_texts(model.text(tokens(changed, padding)), tokens(changed, padding))
    assert torch.allclose(found, again, atol=1e-6)


def test_pixels_are_normalised_to_plus_minus_one():
    assert normalise(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("images", [1, 2])
def test_texts_about_one_image_look_at_it_together_and_read_what_each_would_alone(micro, images):
    config = replace(micro, fusion=replace(micro.fusion, images=images, match=True, depth=2))
    model = AshNet(config, 5).eval()
    text_image = torch.tensor([2, 0, 2, 2, 3, 0])  # in no order, and nothing about image 1
    w, v = (
        torch.randn(6, 7, micro.width, requires_grad=True),
        torch.randn(4, images * 9, micro.width, requires_grad=True),
    )
    padding = torch.arange(7) >= torch.tensor([7, 3, 5, 2, 7, 1])[:, None]
    for ask in (model.answer, model.match):
        found = []
        for given in (ask(w, padding, v, text_image), ask(w, padding, v[text_image])):
            grads = torch.autograd.grad(
                given.square().sum(), (w, v, model.cross.layers[0].multihead_attn.in_proj_weight)
            )
            found.append((given, *grads))
        for together, alone in zip(*found, strict=True):
            torch.testing.assert_close(together, alone)
        assert found[0][2][1].abs().max() == 0


def test_a_cross_modal_layer_is_torchs_decoder_layer(micro):
    layer = CrossModalLayer(16, 2, 0.0)
    plain = nn.TransformerDecoderLayer(16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    plain.load_state_dict(layer.state_dict())
    w, v, padding = torch.randn(3, 5, 16), torch.randn(3, 9, 16), torch.arange(5) >= torch.tensor([5, 2, 4])[:, None]
    torch.testing.assert_close(layer(w, padding, v, None), plain(w, v, tgt_key_padding_mask=padding))
