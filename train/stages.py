"""The stages of the line, each a function whose result is a run on disk: pretrain -> finetune -> quantize."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from ashnets.concrete import VisualConcreteEncoder
from ashnets.config import ModelConfig, TextConfig
from ashnets.model import AshNet
from ashnets.objectives import OBJECTIVES
from ashnets.text import TextCodec, train_lexicon, train_tokenizer
from hw.errors import UserError
from hw.program_file import save_program
from hw.simulate import check_backend
from quantize import lower
from quantize.errors import refuse_crushed
from quantize.ptq import calibrated, settled, steps_of
from train import ranks
from train.checkpoint import best_checkpoint, newest_checkpoint
from train.config import RunConfig, Task, TrainConfig, qat_recipe, tune_recipe
from train.data import ImageTextData, answer_vocabulary, load, pictures_each
from train.evaluate import Ranking, image_batches, images_of
from train.limits import check_numbers
from train.loader import workers_for
from train.loop import Report, Trainer
from train.pretrained import load_image_weights, load_text_weights, pretrained_tokenizer
from train.run import Bundle, Run, create_run, fill_from_best, float_stack, quantized_stack

log = logging.getLogger(__name__)


def load_split(run: Run, split: str) -> ImageTextData:
    """A split of the run's data set at the model's image size."""
    return load(run.config.train.dataset, split, run.config.model.concrete.image_size)


def ranking_of(run: Run) -> Ranking | None:
    """How the run's retrieval ranks, if not by the plain cosine."""
    t = run.config.train
    if not t.neighbours and not t.views and not t.again:
        return None
    return Ranking(data=load_split(run, "train"), neighbours=t.neighbours, views=t.views, again=t.again)


def train_codec(data: ImageTextData, sources: list[ImageTextData], config: TextConfig) -> TextCodec:
    """A tokenizer learned from `sources`, a lexicon from `data`; the lexicon counts records once that share an image id
    and the names of their texts."""
    texts = [text for source in sources for i in range(len(source)) for text in source.texts(i)]
    of_id = {(data.image_id(i), *data.text_ids(i)[:1]): " ".join(data.texts(i)) for i in reversed(range(len(data)))}
    tokenizer = train_tokenizer(texts, config.vocabulary, config.length)
    return TextCodec(tokenizer, train_lexicon(of_id.values(), config.lexicon))


def at_image_size(model: ModelConfig, size: int) -> ModelConfig:
    """The same model for pictures of another size: more tokens, and as many of them coded as before, so that the
    spiking stack is the same."""
    with torch.device("meta"):
        grid = VisualConcreteEncoder(model).grid[0]
    patch = model.concrete.image_size // grid
    if size % patch or size < patch:
        raise UserError(f"--image-size {size}: the model looks at patches of {patch} px; give a multiple of {patch}")
    return replace(
        model,
        concrete=replace(model.concrete, image_size=size),
        abstract=replace(model.abstract, grid=model.abstract.grid or grid),
    )


def new_run(folder: Path, config: RunConfig, codec: TextCodec | None = None) -> Run:
    """A run that was not trained yet, of a model that takes as many images with a text as the data has. Without a
    codec, one is learned from the training texts of `tokenizer_data`."""
    check_numbers(config)
    size = config.model.concrete.image_size
    data = load(config.train.dataset, "train", size)
    # A validation split that is not there is refused now, and not behind the first step.
    splits = {"train": data, "val": load(config.train.dataset, "val", size)}
    if config.train.batch > len(data):
        raise UserError(
            f"{data.name}: has {len(data)} training images, fewer than the batch of {config.train.batch}; "
            f"use --train.batch {len(data)} or less"
        )
    if codec is None and config.train.init_text:
        codec = TextCodec(pretrained_tokenizer(config.train.init_text, config.model.text), {})
    elif codec is None:
        sources = [load(name, "train", size) for name in config.train.tokenizer_data]
        codec = train_codec(data, sources, config.model.text)
    check_codec(codec, config.model.text)
    fusion = replace(config.model.fusion, images=pictures_each(data))
    text = replace(config.model.text, special=codec.special)
    config = replace(config, model=replace(config.model, fusion=fusion, text=text))
    texts_count = sum(len(data.texts(i)) for i in range(len(data)))
    summary = {"name": data.name, "images": len(data), "texts": texts_count}
    summary |= {"fingerprint": data.fingerprint, "fingerprint_val": splits["val"].fingerprint}
    answered = (splits.get(s) or load(config.train.dataset, s, size) for s in config.train.answers_from)
    answers = answer_vocabulary(*answered, least=config.train.answers_least)
    asking = [o for o in config.train.objectives if o in OBJECTIVES and OBJECTIVES[o].needs_answers]
    if config.train.task != "retrieval" and not asking:
        raise UserError(
            f"task '{config.train.task}' is judged by answers, and no objective of "
            f"{', '.join(config.train.objectives)} teaches any; give --train.objectives vqa 1.0"
        )
    if not answers and asking:
        raise UserError(
            f"{data.name}: holds no answers that are given {config.train.answers_least} times, and task "
            f"'{config.train.task}' learns from answers; choose another task or other data"
        )
    check_judge(splits["val"], config.train.task, "checkpoints")
    return create_run(folder, config, codec, answers, summary)


def check_judge(data: ImageTextData, task: Task, judged: str) -> None:
    """`UserError` where a task wants answers to judge by, and a split has none."""
    if task != "retrieval" and not any(any(data.votes(i)) for i in range(len(data))):
        raise UserError(f"{data.name}: the {data.split} split holds no answers, by which {judged} are judged; add them")


def check_codec(codec: TextCodec, text: TextConfig) -> None:
    """`UserError` where a text encoder was made for other texts than a codec, another run's or BERT's, gives."""
    made = {
        "vocabulary": (codec.tokenizer.get_vocab_size(), text.vocabulary),
        "length": ((codec.tokenizer.truncation or {}).get("max_length", text.length), text.length),
        "lexicon": (len(codec.lexicon) if text.lexicon else 0, text.lexicon),
    }
    for name, (given, taken) in made.items():
        if given > taken or (name == "length" and given != taken):
            raise UserError(
                f"model.text.{name} is {taken}, and the tokenizer that the run starts with has {given}; give that"
            )


def train_run(
    run: Run,
    device: torch.device,
    report: Report | None = None,
    init: Run | None = None,
    workers: int | None = None,
    keys: Path | None = None,
) -> Run:
    """Train a run to its end, from its newest checkpoint or, before the first, from the best weights of `init`.
    workers: processes that make batches ahead; None as `workers_for` the device. keys: for a chip on another host."""
    data, val = load_split(run, "train"), load_split(run, "val")
    for part, known in ((data, run.data["fingerprint"]), (val, run.data.get("fingerprint_val", val.fingerprint))):
        if part.fingerprint != known:
            raise UserError(
                f"{run.folder}: data set '{data.name}', split {part.split}, is not the one that the run started with; "
                "put its records and pictures back as they were (where a package holds them, install the version of "
                "requirements.lock), or start a new run"
            )
    workers = workers_for(device) if workers is None else workers
    if workers < 0:
        raise UserError(f"--workers is {workers}; give the number of processes that make batches, 0 for none")
    trainer = Trainer(run, data, val, device, workers, keys)
    if newest_checkpoint(run.folder) is None:
        if init is not None:
            trainer.load_weights(starting_weights(run, init))
        elif not run.quantized:
            load_pretrained(trainer.bundle.model, run.config.train)
    trainer.train(report)
    if run.quantized:
        ranks.on_first(lambda: write_program(run))
    return run


def load_pretrained(model: AshNet, config: TrainConfig) -> None:
    """The weights of others that a run starts from, where its config names any."""
    if config.init_image:
        load_image_weights(model, config.init_image)
    if config.init_text:
        load_text_weights(model, config.init_text)


def starting_weights(run: Run, init: Run) -> dict[str, torch.Tensor]:
    """The best weights of `init`; its norms folded and its stack quantized where `run` is quantized and `init` not."""
    if run.config.quantizer is not None and not init.quantized:
        return quantized_weights(init, run.config.quantizer, run.config.ptq)
    return best_checkpoint(init.folder).evaluated_weights()


def quantized_weights(source: Run, quantizer: str, ptq: str = "plain") -> dict[str, torch.Tensor]:
    """The best weights of the float run `source`, its norms folded and its stack quantized. `UserError` where the
    quantizer does not fit its layers, or leaves nothing of one."""
    bundle = Bundle(source.config, len(source.answers))
    fill_from_best(bundle, source)
    floats = float_stack(bundle.model)
    bundle.quantize(quantizer)
    if steps_of(ptq):
        made = calibrated(floats, calibration_spikes(source, bundle.model), quantizer, ptq)
        quantized_stack(bundle.model).load_state_dict(made.state_dict())
    refuse_crushed(quantized_stack(bundle.model))
    lower(quantized_stack(bundle.model), clamped=False)  # refuses what the chip does not hold before it is trained
    return bundle.state_dict()


@torch.no_grad()
def calibration_spikes(source: Run, model: AshNet, images: int = 256) -> torch.Tensor:
    """s_in [T, B, C, h, w] of the first training images, which is what post-training quantization looks at."""
    data = load_split(source, "train")
    model.eval()
    batches = (images_of(data, indices, torch.device("cpu")) for indices in image_batches(data, min(images, len(data))))
    return torch.cat([model.code(batch) for batch in batches], 1)


def check_quantizable(run: Run) -> None:
    """`UserError` where a run has no float stack."""
    if run.quantized:
        raise UserError(f"{run.folder}: is quantized already; pass the float run that it came from")
    if run.config.model.abstract.codebook:
        raise UserError(f"{run.folder}: holds a codebook where spikes would be; there is no stack to quantize")


def quantized_run(source: Run, folder: Path, config: RunConfig) -> Run:
    """A run that starts from the best weights of `source`, its stack folded and quantized. `config` has a quantizer."""
    check_quantizable(source)
    if config.quantizer is None:
        raise UserError("a quantized run needs a quantizer, for example --quantizer int8")
    check_numbers(config)
    layers = float_stack(AshNet(source.config.model, len(source.answers))).neural_layers
    quantizer = settled(config.quantizer, layers, config.ptq)
    config = replace(config, quantizer=quantizer)
    quantized_weights(source, quantizer)  # refuses before anything is written
    weights = {
        k.removeprefix("model."): v
        for k, v in best_checkpoint(source.folder).evaluated_weights().items()
        if k.startswith("model.")
    }
    return create_run(folder, config, source.codec, source.answers, source.data, float_weights=weights)


def qat_config(
    source: Run, steps: int | None = None, quantizer: str = "int8", ptq: str = "plain", distill: float = 0.0
) -> RunConfig:
    """The config of `source`'s quantized run. quantizer: as in `quantize.quantizers.quantizers_of`. steps: 0 for
    post-training quantization alone."""
    recipe = qat_recipe(source.config.train)
    if steps is not None:
        recipe = replace(recipe, steps=steps, save_every=max(1, steps))
    return replace(source.config, train=recipe, quantizer=quantizer, ptq=ptq, distill=distill)


def tuned_run(source: Run, folder: Path, chip: str, steps: int | None = None) -> Run:
    """A run that goes on from the best weights of the quantized run `source`, with its forward pass taken from the
    backend `chip`. steps: by default four times those of `source`, or as many if it was tuned before."""
    if not source.quantized:
        raise UserError(f"{source.folder}: is not quantized; make it so with 'ashnets quantize {source.folder}'")
    check_backend(chip)
    recipe = source.config.train if source.config.chip else tune_recipe(source.config.train)
    if steps is not None:
        recipe = replace(recipe, steps=steps, save_every=max(1, steps // 2))
    config = replace(source.config, train=recipe, chip=chip)
    check_numbers(config)
    floats = load_file(source.folder / "float.safetensors")
    return create_run(folder, config, source.codec, source.answers, source.data, float_weights=floats)


def write_program(run: Run) -> None:
    """Lower the best checkpoint of a quantized run to `program/`, replacing an older one."""
    bundle = Bundle(run.config, len(run.answers))
    fill_from_best(bundle, run)
    program, folder = lower(quantized_stack(bundle.model)), run.folder / "program"
    if folder.exists():
        shutil.rmtree(folder)
    save_program(program, folder)


def check_resumable(run: Run) -> None:
    """`UserError` where a run was killed before its first checkpoint and cannot go on by itself."""
    if newest_checkpoint(run.folder) is None:
        raise UserError(f"{run.folder}: has no checkpoint to resume from; remove the folder and start it again")
