"""Weights that others trained: timm's for the image side, BERT's for the text side, from their hub or from a folder.

SOURCE is a folder, or `hub:NAME` with the name that the hub has (for an image backbone its own name may be left out:
`hub:`). In a folder only safetensors are read. What was trained at another image size is fitted to ours by timm.
"""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from ashnets.config import TextConfig
from ashnets.model import AshNet
from hw.errors import UserError

HUB = "hub:"
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")


def load_image_weights(model: AshNet, source: str) -> None:
    """Fill the concrete encoder's backbone, a model of timm, with weights of `source`."""
    import timm

    backbone = model.config.concrete.backbone
    if backbone == "conv_stem":
        raise UserError(f"--train.init-image {source}: the backbone 'conv_stem' is our own and has no such weights")
    size = model.config.concrete.image_size
    if source.startswith(HUB):
        overlay = {"hf_hub_id": source.removeprefix(HUB)} if source != HUB else None
    else:
        overlay = {"state_dict": _tensors(Path(source))}
    try:
        made = timm.create_model(
            backbone, pretrained=True, pretrained_cfg_overlay=overlay, img_size=size, num_classes=0
        )
        model.concrete.vit.load_state_dict(made.state_dict())
    except Exception as error:  # the network, the hub and torch each raise their own
        raise _refused("--train.init-image", source, f"no weights of {backbone}", error) from error


def load_text_weights(model: AshNet, source: str) -> None:
    """Fill the text encoder, a BERT, with weights of `source`."""
    from transformers import BertModel

    if model.config.text.kind != "bert":
        raise UserError(f"--train.init-text {source}: the text encoder is our own, not a BERT; use --preset base")
    try:
        made, found = cast(Any, BertModel).from_pretrained(
            source.removeprefix(HUB),
            add_pooling_layer=False,
            local_files_only=not source.startswith(HUB),
            use_safetensors=True,  # the other form is a pickle
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):  # which would be random
            raise KeyError(f"{missing[0]} and {len(missing) - 1} more are missing")
        for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):  # what no shape tells
            its, ours = getattr(made.config, name), getattr(model.text.bert.config, name)
            if its != ours:
                raise ValueError(f"its {name} is {its}, the model's {ours}")
        model.text.bert.load_state_dict(made.state_dict())
    except Exception as error:  # the network, the hub and torch each raise their own
        raise _refused("--train.init-text", source, "no BERT of this model's size", error) from error


def pretrained_tokenizer(source: str, config: TextConfig) -> Tokenizer:
    """The tokenizer of a BERT, cutting and padding to the model's length. Its special tokens must be those that the
    model's configuration names."""
    try:
        if source.startswith(HUB):
            tokenizer = Tokenizer.from_pretrained(source.removeprefix(HUB))
        else:
            tokenizer = Tokenizer.from_file(str(Path(source) / "tokenizer.json"))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise _refused("--train.init-text", source, "no tokenizer.json", error) from error
    found = tuple(tokenizer.token_to_id(token) for token in SPECIAL)
    if found != config.special or tokenizer.get_vocab_size() > config.vocabulary:
        raise UserError(
            f"--train.init-text {source}: its tokenizer has {tokenizer.get_vocab_size()} tokens and {SPECIAL} at "
            f"{found}, the model {config.vocabulary} and {config.special}; set text.vocabulary and text.special"
        )
    tokenizer.enable_truncation(config.length)
    tokenizer.enable_padding(length=config.length, pad_id=found[0], pad_token=SPECIAL[0])
    return tokenizer


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise _refused("--train.init-image", str(folder), "no model.safetensors", error) from error


def _refused(option: str, source: str, what: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{option} {source}: {what} ({reason}); give a folder that holds them, or mend the network")
