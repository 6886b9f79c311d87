"""Weights of others: read from a folder, fitted to our image size, refused in one line where there are none."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from ashnets.config import ConcreteConfig, TextConfig
from ashnets.model import AshNet
from ashnets.text import train_tokenizer
from hw.errors import UserError
from tests.conftest import MICRO, micro_config
from train.pretrained import load_image_weights, load_text_weights, pretrained_tokenizer
from train.stages import new_run, train_run

VIT = replace(MICRO, width=192, concrete=ConcreteConfig(image_size=32, backbone="vit_tiny_patch16_224", heads=3))
BERT = replace(MICRO, text=TextConfig(kind="bert", vocabulary=400, length=12, depth=1, heads=2))


@pytest.fixture
def bert(tmp_path):
    """A folder with a BERT of random weights and its tokenizer."""
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    train_tokenizer(["a red circle", "ein rotes Bild"], 400, 40).save(str(tmp_path / "bert" / "tokenizer.json"))
    return tmp_path / "bert"


@pytest.fixture
def vit(tmp_path):
    """A folder with a ViT of random weights for images of 224 pixels."""
    torch.manual_seed(7)
    made = timm.create_model("vit_tiny_patch16_224")
    (tmp_path / "vit").mkdir()
    save_file(made.state_dict(), tmp_path / "vit" / "model.safetensors")
    return tmp_path / "vit", made


def test_an_image_backbone_of_another_size_is_fitted_to_ours(vit):
    folder, source = vit
    model = AshNet(VIT, 0)
    load_image_weights(model, str(folder))
    found = model.concrete.vit
    assert torch.equal(found.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)
    assert found.pos_embed.shape == (1, 1 + 4, 192)
    torch.testing.assert_close(found.pos_embed[:, 0], source.pos_embed[:, 0])  # of the class token


def test_a_bert_and_its_tokenizer_come_from_a_folder(bert):
    model = AshNet(BERT, 0)
    load_text_weights(model, str(bert))
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    truth = BertModel(config, add_pooling_layer=False).state_dict()
    assert all(torch.equal(value, truth[name]) for name, value in model.text.bert.state_dict().items())
    tokenizer = pretrained_tokenizer(str(bert), BERT.text)
    assert len(tokenizer.encode("a red circle " * 20).ids) == 12


def test_a_run_starts_from_them(bert, tmp_path, few_records):
    config = micro_config(steps=1, init_text=str(bert), lr=0.0)
    config = replace(config, model=replace(config.model, text=BERT.text))
    run = new_run(tmp_path / "run", config)
    assert run.codec.tokenizer.token_to_id("[MASK]") == 3
    train_run(run, torch.device("cpu"))
    from train.run import load_model

    model = AshNet(BERT, 0)
    load_text_weights(model, str(bert))
    found = load_model(run, "float", torch.device("cpu")).text.state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.text.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: load_image_weights(AshNet(VIT, 0), str(p)), "no model.safetensors"),
        (lambda p: load_image_weights(AshNet(MICRO, 0), "hub:"), "'conv_stem' is our own"),
        (lambda p: load_text_weights(AshNet(BERT, 0), str(p)), "no BERT of this model's size"),
        (lambda p: load_text_weights(AshNet(MICRO, 0), str(p)), "is our own, not a BERT"),
        (lambda p: pretrained_tokenizer(str(p), BERT.text), "no tokenizer.json"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(call, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_hub_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_image_weights, load_text_weights):
        model = AshNet(replace(BERT, width=192, concrete=VIT.concrete), 0)
        with pytest.raises(UserError, match="give a folder that holds them, or mend the network") as caught:
            load(model, "hub:nobody/has-this")
        assert "\n" not in str(caught.value)


def test_a_tokenizer_of_other_special_tokens_is_refused(bert):
    with pytest.raises(UserError, match=r"set text.vocabulary and text.special"):
        pretrained_tokenizer(str(bert), replace(BERT.text, special=(0, 101, 102, 103)))


def test_a_bert_of_another_width_is_refused(bert):
    with pytest.raises(UserError, match="no BERT of this model's size"):
        load_text_weights(AshNet(replace(BERT, width=32), 0), str(bert))


def test_a_bert_with_weights_missing_is_refused(bert):
    """transformers would make random ones of them."""
    tensors = load_file(bert / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if not k.startswith("encoder")}, bert / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"encoder.layer.0.*more are missing"):
        load_text_weights(AshNet(BERT, 0), str(bert))


def test_a_bert_that_differs_in_what_no_shape_tells_is_refused(bert):
    with pytest.raises(UserError, match=r"its num_attention_heads is 2, the model's 4"):
        load_text_weights(AshNet(replace(BERT, text=replace(BERT.text, heads=4)), 0), str(bert))
