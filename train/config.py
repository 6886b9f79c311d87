"""What a run is: a model, how it is trained, and whether its spiking stack is quantized. Frozen dataclasses, stored
as JSON."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ashnets.config import LossConfig, ModelConfig, tiny
from hw.artifact import read_json
from hw.errors import UserError

Task = Literal["retrieval", "vqa", "nlvr2", "snli_ve"]
T = TypeVar("T")
EMBEDDED: dict[str, str] = {
    "retrieval": "openmoji",
    "vqa": "easy_vqa",
    "nlvr2": "easy_nlvr2",
    "snli_ve": "easy_snli_ve",
}
"""The data set that each task has at hand, without a download."""
COMPOSED = ("easy_vqa_new", "easy_nlvr2", "easy_snli_ve")
"""Data sets that test combinations of shape and colour that training never shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run. `objectives` maps names of `ashnets.objectives.OBJECTIVES` to their weights."""

    task: Task = "retrieval"
    """What checkpoints are evaluated on: recall of texts and images, or accuracy of answers to questions about an
    image, of sentences about pairs, of hypotheses about an image."""
    dataset: str = "openmoji"
    tokenizer_data: tuple[str, ...] = ("openmoji", "easy_vqa")
    """Data sets whose training texts teach the tokenizer."""
    objectives: dict[str, float] = field(default_factory=lambda: {"itc": 1.0, "scl": 0.2, "stua": 0.2})
    losses: LossConfig = field(default_factory=LossConfig)
    init_image: str = ""
    """Where the image backbone's first weights come from, see `train.pretrained`: a folder, or hub:NAME."""
    init_text: str = ""
    """The same for the text encoder and its tokenizer."""
    steps: int = 700
    batch: int = 96
    """Images per step."""
    texts_per_image: int = 1
    answers_from: tuple[str, ...] = ("train",)
    """Splits whose answers a model may choose from."""
    answers_least: int = 1
    """How often an answer must be given there to be one of them; a question with another answer teaches nothing."""
    lr: float = 1e-3
    lr_concrete: float | None = None
    """The concrete encoder's learning rate, as a share of `lr`. A low one keeps what a pre-training has taught it from
    being bent to what the new data happens to show. By default 1; in tuning 0.1 for data that tests combinations of
    shape and colour that training never shows: easy_vqa_new, easy_nlvr2, easy_snli_ve."""
    warmup: int = 50
    """Steps of linear warm-up; a cosine to zero follows."""
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest gradient norm; 0 for any."""
    ema: float = 0.0
    """Decay of the averaged weights that are evaluated; 0 for none."""
    crop: float = 0.7
    """Smallest share of an image that a random crop keeps; 1 for no cropping."""
    rotate: float = 0.0
    """Largest random rotation in degrees, white behind it."""
    flip: bool = False
    """Mirror images at random. Wrong for data that says left and right."""
    erase: float = 0.0
    """Probability that a random rectangle of an image, 5 to 25% of it, is painted white."""
    view_hue: float = 0.0
    """Largest turn of the hue of the second view, which the spikes are to see as the same; 0.5 is any. What is left to
    have in common is shape."""
    view_grey: float = 0.0
    """Probability that the second view has no colours at all."""
    neighbours: int = 0
    """Retrieval discounts pictures and captions that are near to everything, judged by so many of the nearest training
    items (CSLS); 0 for the plain cosine."""
    again: int = 0
    """How many of the first retrieval ranks anew by the matching head that `itm` trains; ALBEF: 128 for Flickr30K, 256
    for COCO."""
    views: bool = False
    """Retrieval looks at a picture ten times: whole, enlarged and turned, and mirrored (`train.views`). Mirroring is
    wrong for data that says left and right."""
    save_every: int = 175
    """Steps between checkpoints; each is evaluated on the validation split."""
    save_minutes: float = 0.0
    """Minutes after which a checkpoint is written between those, without an evaluation; 0 for none."""
    save_beside: bool = False
    """Checkpoints are written by a thread while training goes on. Takes memory for a copy of all that is saved."""
    log_every: int = 10
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the model's matrix products; weights and neurons' states stay float32. auto: bfloat16 on CUDA and on
    processors with units for it (AVX512-BF16, AMX), else float32."""
    compile: Literal["", "default", "reduce-overhead", "max-autotune"] = ""
    """torch.compile's mode for stem, transformers and spiking layers; reduce-overhead records CUDA graphs, which small
    models gain by. Empty: none."""
    recompute: bool = False
    """Transformer blocks keep their inputs alone and compute the rest again in the backward pass: less memory, more
    time (activation checkpointing)."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Where several ranks train, started by torchrun: each with a whole copy of weights and optimiser state (DDP), or
    with its part of them (FSDP2; the spiking stack of a quantized run is small, and always copied)."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """quantizer: None for a float run, else as in `quantize.quantizers.quantizers_of`; then only the stack is
    trained. ptq: how the stack was quantized before it is trained, see `quantize.ptq`. distill: weight of the mean
    squared difference between the last layer's firing rates and those of the float stack. chip: the backend that the
    forward pass of a quantized run's training is taken from, None for torch. A model that trains by `itm` has the
    head for it."""

    model: ModelConfig = field(default_factory=tiny)
    train: TrainConfig = field(default_factory=TrainConfig)
    quantizer: str | None = None
    ptq: str = "plain"
    distill: float = 0.0
    chip: str | None = None

    def __post_init__(self) -> None:
        if "itm" in self.train.objectives and not self.model.fusion.match:
            model = replace(self.model, fusion=replace(self.model.fusion, match=True))
            object.__setattr__(self, "model", model)


def pretrain_recipe() -> TrainConfig:
    """OpenMoji: ITC, spiking contrast, STUA. Minutes on two cores for the tiny model. The second view has other colours
    or none, so that the stem tells shapes by their outlines before it is tuned, and colours by the captions."""
    return TrainConfig(
        steps=900,
        batch=128,
        lr=2e-3,
        weight_decay=0.3,
        save_every=225,
        crop=0.35,
        rotate=15.0,
        flip=True,
        erase=0.5,
        ema=0.98,
        neighbours=20,
        views=True,
        view_hue=0.5,
        view_grey=0.3,
    )


def finetune_recipe() -> TrainConfig:
    """easy-VQA: answers from the cross-modal encoder. The spikes are drawn to what a picture has in common with itself
    in other colours, so that shape is told from colour where training never showed the two together."""
    return TrainConfig(
        task="vqa",
        dataset="easy_vqa",
        objectives={"vqa": 1.0, "scl": 0.5},
        steps=600,
        batch=64,
        texts_per_image=4,
        flip=True,
        crop=0.8,
        view_hue=0.5,
        view_grey=0.3,
        ema=0.98,
        save_every=300,
    )


def for_task(train: TrainConfig, task: Task) -> TrainConfig:
    """The recipe for another task, on the data set that it has at hand and with the objectives that it takes, unless
    `train` has others than `finetune_recipe`."""
    plain = finetune_recipe()
    changes: dict[str, Any] = {"task": task}
    if train.dataset == plain.dataset:
        changes["dataset"] = EMBEDDED[task]
    if train.objectives == plain.objectives and task == "retrieval":
        changes["objectives"] = pretrain_recipe().objectives
    return replace(train, **changes)


def for_tuning(train: TrainConfig) -> TrainConfig:
    """With the concrete encoder's rate that tuning on the data wants, if none was chosen. Where new combinations are
    asked for, it learns slowly, or it would bend the colours that it knows to the shapes that it sees."""
    if train.lr_concrete is not None:
        return train
    return replace(train, lr_concrete=0.1 if train.dataset in COMPOSED else 1.0)


def on_folder(train: TrainConfig, folder: str | None) -> TrainConfig:
    """The recipe on data in a folder, if there is one. Its texts teach the tokenizer, unless others were chosen."""
    if folder is None:
        return train
    texts = train.tokenizer_data
    own = texts in (TrainConfig().tokenizer_data, (train.dataset,))
    return replace(train, dataset=folder, tokenizer_data=(folder,) if own else texts)


def qat_recipe(train: TrainConfig) -> TrainConfig:
    """From the recipe of the float run: the same task, a short run at a lower rate, the spiking stack alone. There is
    nothing for averaged encoders to follow then, since the host is frozen: `itc` takes the place of `itc_queue`."""
    objectives = {name.replace("itc_queue", "itc"): weight for name, weight in train.objectives.items()}
    return replace(
        train,
        objectives=objectives,
        steps=max(1, train.steps // 6),
        lr=train.lr / 5,
        warmup=min(10, train.warmup),
        save_every=max(1, train.steps // 6),
    )


def tune_recipe(qat: TrainConfig) -> TrainConfig:
    """From the recipe of a quantized run: four times the steps, at the float run's rate, since the weights have to find
    their way around a chip's flaws."""
    return replace(qat, steps=4 * qat.steps, lr=5 * qat.lr, save_every=2 * qat.steps)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: Any, where: str) -> T:
    """Rebuild a (nested) config from JSON. `UserError` names the key that is unknown, missing or of the wrong type."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with the fields of {kind.__name__}, found {values!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{where}: unknown key '{unknown[0]}' in {kind.__name__}; known: {', '.join(hints)}")
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def read_config(path: Path) -> RunConfig:
    """A whole configuration from a JSON file; what it leaves out has its default."""
    return from_dict(RunConfig, read_json(path), str(path))


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            return tuple(_value(h, v, where) for h, v in zip(inner, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(k): _value(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise UserError(f"{where}: {value!r} is not of type {getattr(hint, '__name__', hint)}")
