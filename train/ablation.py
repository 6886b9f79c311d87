"""What each part is worth: variants of a run, trained over seeds with equal budgets, and compared."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from ashnets.config import ModelConfig
from ashnets.model import AshNet, parameters
from ashnets.stack import SpikingStack, synaptic_operations
from hw.artifact import write_json
from hw.errors import UserError
from train import ranks
from train.checkpoint import newest_checkpoint
from train.config import RunConfig, Task, TrainConfig, finetune_recipe, for_task, for_tuning, pretrain_recipe
from train.data import load
from train.evaluate import evaluate
from train.joints import input_spikes
from train.progress import training_progress
from train.report.terminal import aligned
from train.run import Run, load_model, open_run
from train.seconds import seconds_of, timed
from train.stages import check_judge, load_split, new_run, ranking_of, train_run

CODES = 512
COUNTED = 256  # test images whose synaptic operations are counted
BOTH = "both"
ALONE = ("ann", "ann_scl", "ann_equal")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """about: what differs. model, train: from the configs with both branches to the variant's."""

    about: str
    model: Callable[[ModelConfig], ModelConfig] = lambda model: model
    train: Callable[[TrainConfig], TrainConfig] = lambda train: train


def _abstract(**changes: Any) -> Callable[[ModelConfig], ModelConfig]:
    return lambda model: replace(model, abstract=replace(model.abstract, **changes))


def _fusion(**changes: Any) -> Callable[[ModelConfig], ModelConfig]:
    return lambda model: replace(model, fusion=replace(model.fusion, **changes))


def _without(*objectives: str) -> Callable[[TrainConfig], TrainConfig]:
    def change(train: TrainConfig) -> TrainConfig:
        kept = {name: weight for name, weight in train.objectives.items() if name not in objectives}
        return replace(train, objectives=kept)

    return change


def _other_stua(train: TrainConfig) -> TrainConfig:
    return replace(train, losses=replace(train.losses, stua="text_spike"))


def deepened(model: ModelConfig) -> ModelConfig:
    """The artificial network alone, with as many more blocks of its concrete encoder as make up for the parameters of
    the spiking one."""
    alone, wanted = _fusion(r=0.0)(model), used_parameters(model)
    while used_parameters(alone) < wanted:
        alone = replace(alone, concrete=replace(alone.concrete, depth=alone.concrete.depth + 1))
    return alone


VARIANTS: dict[str, Variant] = {
    BOTH: Variant(about="both branches"),
    "ann": Variant(about="r = 0: the artificial network alone", model=_fusion(r=0.0), train=_without("scl", "stua")),
    "ann_scl": Variant(
        about="r = 0, the spiking contrast teaches the stem alone", model=_fusion(r=0.0), train=_without("stua")
    ),
    "ann_equal": Variant(
        about="the same, deeper, with at least as many parameters", model=deepened, train=_without("scl", "stua")
    ),
    "spikes": Variant(about="V' = r E: the spiking network alone", model=_fusion(spikes_alone=1.0)),
    "codebook": Variant(
        about=f"{CODES} learned codes instead of spikes", model=_abstract(codebook=CODES), train=_without("scl")
    ),
    "no_scl": Variant(about="without the spiking contrast", train=_without("scl")),
    "no_stua": Variant(about="without STUA", train=_without("stua")),
    "text_spike": Variant(about="STUA from the spikes of texts", train=_other_stua),
    "reads_concrete": Variant(
        about="spikes of F, behind the whole artificial encoder", model=_abstract(reads="concrete")
    ),
    **{f"t{steps}": Variant(about=f"T = {steps}", model=_abstract(steps=steps)) for steps in (1, 2, 8)},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant, seed and task: test score in percent, what it is the mean of or stands for in `metrics`."""

    variant: str
    seed: int
    task: str
    score: float
    metrics: dict[str, float]
    parameters: int
    synaptic_operations: float
    seconds: float


def used_parameters(model: ModelConfig) -> int:
    """Trained numbers that an output depends on: without the abstract encoder where r = 0."""
    made = AshNet(model, 0)
    return parameters(made) - (parameters(made.abstract) if model.fusion.r == 0 else 0)


def ablate(
    out: Path,
    tasks: Sequence[str],
    variants: Sequence[str],
    seeds: int,
    device: torch.device,
    *,
    model: ModelConfig,
    steps: int | None = None,
    chain: bool = False,
) -> list[Row]:
    """Train every variant on retrieval, and from there on the other tasks; test them. What is done is kept in `out`, so
    that an interrupted table goes on.

    tasks: names, or NAME:DATASET for other data than the task has at hand. chain: each starts where the one before it
    ended. steps: of each training, by default the recipes'.
    """
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"there is no variant '{name}'; choose from {', '.join(VARIANTS)}")
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; train at least 1")
    if steps is not None and steps < 1:
        raise UserError(f"--steps is {steps}; train at least 1")
    unknown = [task for task in tasks if task.partition(":")[0] not in get_args(Task)]
    if unknown or not tasks:
        raise UserError(f"tasks are {', '.join(tasks) or 'none'}; choose from {', '.join(get_args(Task))}")
    for task in tasks:
        train = _recipe(task, 0, steps)  # looked at before anything is trained for it
        check_judge(load(train.dataset, "test", model.concrete.image_size), train.task, "variants")
    rows = []
    for seed in range(seeds):
        for name in variants:
            changed = VARIANTS[name]
            config = RunConfig(model=changed.model(model), train=changed.train(_recipe("retrieval", seed, steps)))
            start = first = _trained(out / f"{name}-{seed}" / "retrieval", config, None, device)
            for task in tasks:
                run = first
                if task != "retrieval":
                    config = replace(start.config, train=changed.train(_recipe(task, seed, steps)))
                    run = _trained(out / f"{name}-{seed}" / task.replace(":", "-"), config, start, device)
                    start = run if chain else first
                rows.append(_row(run, name, seed, task, device))
    return rows


def _recipe(task: str, seed: int, steps: int | None) -> TrainConfig:
    kind, _, dataset = task.partition(":")
    train = pretrain_recipe() if kind == "retrieval" else for_task(finetune_recipe(), cast(Task, kind))
    if dataset:
        train = replace(train, dataset=dataset)
    if steps is not None:
        train = replace(train, steps=steps, warmup=min(train.warmup, steps), save_every=steps)
    return replace(train if kind == "retrieval" else for_tuning(train), seed=seed)


def _trained(folder: Path, config: RunConfig, init: Run | None, device: torch.device) -> Run:
    """The run in `folder`, made and trained to its end if it is not there."""
    clock = _beside(folder, "seconds")
    ranks.on_first(lambda: folder.exists() or new_run(folder, config, init.codec if init else None))
    run = open_run(folder)
    if run.config != new_config(run, config):
        raise UserError(f"{folder}: was made with other settings; give another folder, or the settings of then")
    newest = newest_checkpoint(folder)
    untimed = newest is None or newest.step < config.train.steps or not clock.exists()
    clocked = timed(clock) if untimed and ranks.rank() == 0 else nullcontext()
    with clocked, training_progress(f"{folder.parent.name} {folder.name}") as progress:
        train_run(run, device, progress, init)
    return run


def _beside(folder: Path, kind: str) -> Path:
    """What is kept of a run beside its folder, whose name may have dots."""
    return folder.with_name(f"{folder.name}.{kind}")


def new_config(run: Run, config: RunConfig) -> RunConfig:
    """`config` with what a run takes over from its data and its tokenizer."""
    own = run.config.model
    fusion = replace(config.model.fusion, images=own.fusion.images)
    text = replace(config.model.text, special=own.text.special)
    return replace(config, model=replace(config.model, fusion=fusion, text=text))


def _row(run: Run, variant: str, seed: int, task: str, device: torch.device) -> Row:
    kept = _beside(run.folder, "json")
    if kept.exists():
        return Row(**json.loads(kept.read_text()))
    model, data = load_model(run, "float", device), load_split(run, "test")
    found = evaluate(run.config.train.task, model, data, run.codec, run.answers, ranking=ranking_of(run))
    operations = 0.0
    stack = getattr(model.abstract, "stack", None)
    if isinstance(stack, SpikingStack) and run.config.model.fusion.r != 0:  # else no output needs the spikes
        samples = min(COUNTED, len(data))
        batches = [synaptic_operations(stack, s_in) * s_in.shape[1] for s_in in input_spikes(model, data, samples)]
        operations = sum(batches) / (samples * run.config.model.fusion.images)
    row = Row(
        variant=variant,
        seed=seed,
        task=task,
        score=found.score,
        metrics=found.metrics,
        parameters=used_parameters(run.config.model),
        synaptic_operations=operations,
        seconds=seconds_of(_beside(run.folder, "seconds")),
    )
    ranks.on_first(lambda: write_json(kept, asdict(row)))
    return row


def table(rows: Sequence[Row]) -> str:
    """Means and standard deviations over seeds for each task, and what they say of the spiking branch."""
    made = []
    for task in dict.fromkeys(row.task for row in rows):
        lines = [[task, "score", "+-", "seeds", "parameters", "syn. op./image", "seconds"]]
        scores: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(row.variant for row in rows):
            of = [row for row in rows if (row.variant, row.task) == (name, task)]
            scores[name] = np.array([row.score for row in of])
            operations = np.mean([row.synaptic_operations for row in of])
            seconds = np.mean([row.seconds for row in of])
            spread = f"{scores[name].std(ddof=1):.2f}" if len(of) > 1 else "-"
            numbers = [f"{scores[name].mean():.2f}", spread, str(len(of)), f"{of[0].parameters:,}"]
            lines.append([f"{name}: {VARIANTS[name].about}", *numbers, f"{operations:,.0f}", f"{seconds:.0f}"])
        alone = [name for name in ALONE if name in scores and BOTH in scores]
        made += [*aligned(lines), *(verdict(scores[BOTH], scores[name], name) for name in alone), ""]
    return "\n".join(made)


def verdict(both: np.ndarray, alone: np.ndarray, name: str) -> str:
    """Whether the spiking branch helps, by more than one standard deviation of the two together."""
    gain = both.mean() - alone.mean()
    if min(len(both), len(alone)) < 2:
        return f"both against {name}: {gain:+.2f}, of one seed; more seeds would tell"
    spread = float(np.sqrt((both.var(ddof=1) + alone.var(ddof=1)) / 2))
    told = "helps" if gain > spread else "does harm" if gain < -spread else "makes no difference"
    return f"both against {name}: {gain:+.2f} with a standard deviation of {spread:.2f}: the spiking branch {told}"
