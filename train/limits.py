"""Which numbers a run can be made by."""

import math
from operator import attrgetter
from typing import Any

from ashnets.config import ModelConfig
from hw.errors import UserError
from train.config import RunConfig

_COUNTS = """
train.batch train.texts_per_image train.answers_least train.save_every train.log_every train.losses.queue
model.width model.embedding model.concrete.image_size model.concrete.depth model.concrete.heads model.concrete.stem
model.abstract.steps model.abstract.channels model.abstract.convs model.abstract.dense
model.text.depth model.text.heads model.fusion.depth model.fusion.heads
"""
_POSITIVE = """
train.steps train.lr train.warmup train.weight_decay train.clip train.rotate train.neighbours train.again
train.save_minutes train.seed train.losses.hardness train.losses.mixed train.losses.rate_weight train.objectives
model.abstract.grid model.abstract.codebook model.text.special model.text.lexicon model.fusion.r distill
"""
_SHARES = """
train.lr_concrete train.crop train.erase train.view_hue train.view_grey train.losses.soft train.losses.momentum
train.losses.masked train.losses.rate_target model.concrete.dropout model.text.dropout model.fusion.dropout
model.fusion.spikes_alone
"""
RANGES = {
    **dict.fromkeys(_COUNTS.split(), (1, math.inf)),
    **dict.fromkeys(_POSITIVE.split(), (0, math.inf)),
    **dict.fromkeys(_SHARES.split(), (0, 1)),
    **dict.fromkeys(("train.losses.temperature", "train.losses.temperature_least"), (0.001, 0.5)),
    "train.ema": (0, 0.999999),
    **dict.fromkeys(("model.abstract.decay_u", "model.abstract.decay_v"), (0.001, 0.999)),  # learned as logits
    "model.text.vocabulary": (260, math.inf),  # all bytes, and four special tokens
    "model.text.length": (3, math.inf),  # those at a text's ends, and one between them
    "model.fusion.images": (1, 2),
}
"""Least and most of the numbers in a `RunConfig`, and of those in its tuples and dictionaries."""


def check_numbers(config: RunConfig) -> None:
    """`UserError` where a number is none that a run can be made by."""
    for name, (least, most) in RANGES.items():
        for value in _numbers(attrgetter(name)(config)):
            if not (least <= value <= most and math.isfinite(value)):
                limits = f"{least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
                raise UserError(f"{name} is {value:g}; give {limits}")
    losses = config.train.losses
    if losses.temperature < losses.temperature_least:
        raise UserError(
            f"train.losses.temperature is {losses.temperature:g}, and train.losses.temperature_least "
            f"{losses.temperature_least:g}; lower that too"
        )
    _check_sizes(config.model)


def _numbers(value: Any) -> list[float]:
    """Of a number that may be left out, or of what holds some."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return [number for inner in value for number in _numbers(inner)]
    return [] if value is None else [value]


def _check_sizes(model: ModelConfig) -> None:
    """What has to go with what."""
    concrete = model.concrete
    for name, heads in (("concrete", concrete.heads), ("text", model.text.heads), ("fusion", model.fusion.heads)):
        if model.width % heads:
            raise UserError(f"model.width is {model.width}, no multiple of model.{name}.heads, {heads}; change one")
    patch = 2 ** (len(concrete.stem) + 1)
    if concrete.backbone != "conv_stem":
        _check_backbone(model)
    elif concrete.image_size % patch:
        raise UserError(
            f"model.concrete.image_size is {concrete.image_size}; give a multiple of {patch}, which a stem of "
            f"{len(concrete.stem) + 1} stages makes one token of"
        )
    if not model.abstract.convs + model.abstract.dense:
        raise UserError("model.abstract has neither convs nor dense; give at least one spiking layer")


def _check_backbone(model: ModelConfig) -> None:
    import torch
    from timm.models import is_model_in_modules

    from ashnets.concrete import VisualConcreteEncoder

    name = model.concrete.backbone
    if not is_model_in_modules(name, ["vision_transformer", "deit"]):
        raise UserError(
            f"model.concrete.backbone is '{name}'; give conv_stem, or the name of a Vision Transformer of timm, for "
            "example vit_base_patch16_224"
        )
    try:
        with torch.device("meta"):
            VisualConcreteEncoder(model)
    except (ValueError, AssertionError) as error:  # timm's own of sizes
        raise UserError(str(error)) from error
