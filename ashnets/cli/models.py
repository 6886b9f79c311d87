"""Commands that make models: demo, train, finetune, quantize, tune."""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ashnets.cli.common import Device, RunFolder, check_samples, done, refuse_keys
from ashnets.config import PRESETS
from hw.errors import UserError
from train.config import (
    RunConfig,
    Task,
    TrainConfig,
    finetune_recipe,
    for_task,
    for_tuning,
    on_folder,
    pretrain_recipe,
    read_config,
)
from train.limits import check_numbers

Preset = Literal["tiny", "small", "base"]


def demo(
    out: Path = Path("runs/demo"), seed: int = 0, lava_samples: int = 64, device: Device = "auto", json: bool = False
) -> int:
    """The whole line on real data with the tiny model: train, fine-tune, quantize, simulate, verify, report. Finished
    steps are kept."""
    from train.demo import run_demo
    from train.run import choose_device

    check_samples(lava_samples, "--lava-samples")
    values = run_demo(out, seed, lava_samples, choose_device(device))
    done(values, json, f"wrote {values['report']}: open it in a browser")
    return 0 if values["joints_equal"] else 1


def train(
    run: RunFolder,
    /,
    train: TrainConfig = pretrain_recipe(),  # noqa: B008  (frozen)
    data: str | None = None,
    preset: Preset | None = None,
    config: Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Pre-train a model into the new folder RUN; --resume goes on with any run that was interrupted.

    data: a folder of annotations and pictures in an official format, or FORMAT:FOLDER; see 'ashnets data check'.
    preset: of the model, by default tiny. config: a file that 'ashnets recipe' wrote, instead of --preset and --train.

    workers: processes that make batches ahead; by default none on a CPU, one for each core but one on a GPU, at most 8.
    The result does not depend on it.
    """
    from train.stages import new_run

    chosen = {"--train": train != pretrain_recipe(), "--preset": preset is not None}
    if resume:
        _refuse(
            "--resume", "the run's own settings", chosen | {"--config": config is not None, "--data": data is not None}
        )
        return _resume(run, device, workers, json)
    if config is not None:
        _refuse("--config", f"the settings in {config}", chosen)
    if data is not None:
        _refuse("--data", "the data", {"--train.dataset": train.dataset != pretrain_recipe().dataset})
    made = RunConfig(model=PRESETS[preset or "tiny"](), train=train) if config is None else _float_config(config)
    made = replace(made, train=on_folder(made.train, data))
    opened = _made(run, lambda: new_run(run, made))
    return _train(opened, device, workers, json, next_step=f"ashnets finetune {run} RUN2")


def finetune(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    run: RunFolder,
    /,
    train: TrainConfig = finetune_recipe(),  # noqa: B008  (frozen)
    task: Task | None = None,
    data: str | None = None,
    config: Path | None = None,
    image_size: int | None = None,
    spikes_alone: float | None = None,
    workers: int | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Fine-tune the best weights of the run SOURCE on another task, into the new folder RUN.

    task: retrieval, vqa (questions), nlvr2 (sentences about pairs) or snli_ve (hypotheses), on the data set that each
    has at hand; by default what --train says, which is vqa on easy_vqa. data: instead, a folder of annotations and
    pictures in an official format, or FORMAT:FOLDER; see 'ashnets data check'.

    config: a file that 'ashnets recipe' wrote, instead of --train. image_size: of the pictures, by default SOURCE's.

    spikes_alone: probability that an image is seen by its spikes alone; 1 for a model without the artificial encoder.

    workers: processes that make batches ahead, see 'ashnets train'.
    """
    from train.run import open_run
    from train.stages import at_image_size, new_run

    start = open_run(source)
    if start.quantized:
        raise UserError(
            f"{source}: is quantized, and all but its stack is frozen; fine-tune the float run that it came from"
        )
    model = start.config.model
    if config is not None:
        _refuse("--config", f"the settings in {config}", {"--train": train != finetune_recipe()})
        given = _float_config(config)
        model, train = given.model, given.train
    else:
        plain = finetune_recipe()
        _refuse("SOURCE", "the tokenizer", {"--train.tokenizer-data": train.tokenizer_data != plain.tokenizer_data})
        _refuse("--data", "the data", {"--train.dataset": data is not None and train.dataset != plain.dataset})
    if task is not None:
        train = for_task(train, task)
    train = for_tuning(on_folder(train, data))
    first = {"--train.init-image": bool(train.init_image), "--train.init-text": bool(train.init_text)}
    _refuse("SOURCE", "the first weights", first)
    if image_size is not None:
        model = at_image_size(model, image_size)
    if spikes_alone is not None:
        model = replace(model, fusion=replace(model.fusion, spikes_alone=spikes_alone))
    made = replace(start.config, model=model, train=train)
    opened = _made(run, lambda: new_run(run, made, start.codec))
    return _train(opened, device, workers, json, init=start, next_step=f"ashnets quantize {run}")


def quantize(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    /,
    out: Path | None = None,
    steps: int | None = None,
    quantizer: str = "int8",
    ptq: str = "plain",
    distill: float = 0.0,
    resume: bool = False,
    workers: int | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Quantize the spiking stack of the run SOURCE (QAT), and write its integer program. Into SOURCE-QUANTIZER unless
    --out is given.

    steps: QAT steps; by default a sixth of the training's. With --resume, SOURCE is an interrupted quantized run.

    quantizer: int8, even8, int6, int4, int3, int2 or ternary for all layers, or LAYER=NAME,... with *=NAME for those
    not named. A name may say how its scale, a power of two, is found: int4:max, int4:mse, int4:trained.

    ptq: how it is quantized before it is trained: plain, best, or some of gptq, gpfq, bias, balance joined by +; with
    --steps 0, all there is. distill: weight of the distance to the float stack's firing rates, 1 for example.

    workers: processes that make batches ahead, see 'ashnets train'.
    """
    from train.run import open_run
    from train.stages import qat_config, quantized_run

    if resume:
        own = {"--out": out is not None, "--steps": steps is not None, "--quantizer": quantizer != "int8"}
        _refuse("--resume", "the run's own settings", own | {"--ptq": ptq != "plain", "--distill": distill != 0})
        if not open_run(source).quantized:
            raise UserError(f"{source}: is the float run; --resume takes the quantized one that was interrupted")
        return _resume(source, device, workers, json)
    start = open_run(source)
    suffix = "mixed" if "=" in quantizer else quantizer.replace(":", "-")
    named = source if source.name not in ("", "..") else source.resolve()
    folder = out or named.with_name(f"{named.name}-{suffix}")
    config = qat_config(start, steps, quantizer, ptq, distill)
    made = _made(folder, lambda: quantized_run(start, folder, config))
    return _train(made, device, workers, json, init=start, next_step=f"ashnets simulate {folder} --verify")


def tune(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    run: RunFolder,
    /,
    chip: str = "imperfect",
    keys: Path | None = None,
    steps: int | None = None,
    workers: int | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Go on training the quantized run SOURCE with a chip in the loop, into the new folder RUN: the forward pass is
    the chip's, the backward pass the surrogate's.

    chip: a backend, such as imperfect:dead=0.05,stuck=0.02,spread=0.1,seed=0, or addresses of workers. keys: the
    client's folder of keys, for workers on other hosts.

    steps: by default four times those of SOURCE. workers: processes that make batches ahead, see 'ashnets train'.
    """
    from train.run import open_run
    from train.stages import tuned_run

    refuse_keys(keys, chip)
    start = open_run(source)
    made = _made(run, lambda: tuned_run(start, run, chip, steps))
    next_step = f"ashnets evaluate {run} --backend {chip}"
    return _train(made, device, workers, json, init=start, keys=keys, next_step=next_step)


def _float_config(path: Path) -> RunConfig:
    """A file's configuration of a run that is not quantized."""
    config, plain = read_config(path), RunConfig()
    for name in ("quantizer", "ptq", "distill", "chip"):
        if (value := getattr(config, name)) != getattr(plain, name):
            raise UserError(f"{path}: {name} is {value}, which is for 'ashnets quantize'; leave it out here")
    try:
        check_numbers(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def _refuse(option: str, what: str, others: dict[str, bool]) -> None:
    """`UserError` where an option stands beside `option`, which decides what it would."""
    beside = [name for name, given in others.items() if given]
    if beside:
        raise UserError(f"{option} takes {what}, and {beside[0]} would change them; leave one of the two out")


def _made(folder: Path, make: Callable[[], Any]) -> Any:
    """A new run, which the first of several ranks makes; the one that is there where torchrun starts its ranks anew."""
    from train import ranks
    from train.run import open_run

    def first() -> None:
        if not ranks.made_by_this_job(folder):
            make()
            ranks.note_job(folder)

    ranks.on_first(first)
    return open_run(folder)


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """A run that is refused, or fails, before its first checkpoint leaves no folder, so that the mended command finds
    none. A resumed one has a checkpoint."""
    from train import ranks
    from train.checkpoint import newest_checkpoint

    try:
        yield
    except Exception:
        if ranks.rank() == 0 and newest_checkpoint(folder) is None:
            shutil.rmtree(folder)
        raise


def _train(
    run: Any,
    device: str,
    workers: int | None,
    json: bool,
    *,
    init: Any = None,
    keys: Path | None = None,
    next_step: str,
) -> int:
    from quantize.errors import stack_errors
    from quantize.qat import QuantizedStack
    from train.checkpoint import newest_checkpoint
    from train.progress import training_progress
    from train.report.terminal import error_table
    from train.run import choose_device, float_stack, load_model, quantized_stack
    from train.stages import train_run

    with training_progress(run.folder.name) as progress, _nothing_left(run.folder):
        train_run(run, choose_device(device), progress, init, workers, keys)
    newest = newest_checkpoint(run.folder)
    assert newest is not None  # train_run has written one
    best = next(entry for entry in newest.history if entry["step"] == newest.best_step)
    print(f"wrote {run.folder}: {newest.step} steps, best at step {newest.best_step} (validation {best['score']:.2f})")
    figures = {"run": str(run.folder), "steps": newest.step, "best": best}
    if run.quantized:
        cpu, before = choose_device("cpu"), None
        if run.config.train.steps == 0:  # else what training changed would count as an error
            before = QuantizedStack(float_stack(load_model(run, "float", cpu)), str(run.config.quantizer))
        errors = stack_errors(quantized_stack(load_model(run, "qat", cpu)), before)
        print(error_table(errors))
        figures["layers"] = [
            {key: None if value == math.inf else value for key, value in asdict(found).items()} for found in errors
        ]
    return done(figures, json, f"next: {next_step}")


def _resume(folder: Path, device: str, workers: int | None, json: bool) -> int:
    from train.run import open_run
    from train.stages import check_resumable

    run = open_run(folder)
    check_resumable(run)
    return _train(run, device, workers, json, next_step=f"ashnets evaluate {folder}")
