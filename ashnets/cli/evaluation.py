"""The command that judges models: evaluate."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from ashnets.cli.common import Device, RunFolder, done, refuse_keys
from hw.artifact import check_place
from hw.errors import UserError
from train.config import EMBEDDED, Task
from train.limits import check_numbers


def evaluate(
    run: RunFolder,
    /,
    task: Task | Literal["zero_shot"] | None = None,
    data: str | None = None,
    templates: tuple[str, ...] = ("{}",),
    predictions: Path | None = None,
    again: int | None = None,
    backend: str = "float",
    keys: Path | None = None,
    split: Literal["val", "test"] = "test",
    samples: int | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Evaluate RUN with its spiking stack as 'float', 'qat', or on a backend such as 'reference', 'lava' or
    'tcp://HOST:PORT,...', the addresses of workers.

    task: by default the one that the run was trained for; zero_shot names each picture by the nearest class, a text of
    the data, put into --templates such as "a photo of a {}". data: a folder in an official format, by default the run's
    own data. samples: images, by default the whole split. keys: the client's folder of keys, for workers on other
    hosts.

    again: how many of the first retrieval ranks anew by the matching head; by default what the run's config says.

    predictions: write the answers to this file, as the task's official evaluation takes them: JSON for VQA, CSV for
    NLVR2, JSON lines for SNLI-VE and retrieval.
    """
    from train import ranks
    from train.data import load
    from train.evaluate import evaluate as run_evaluation
    from train.predictions import write_predictions
    from train.run import choose_device, load_model, open_run
    from train.stages import ranking_of
    from train.zero_shot import evaluate_zero_shot

    refuse_keys(keys, backend)
    opened = open_run(run)
    task = task or opened.config.train.task
    if templates != ("{}",) and task != "zero_shot":
        raise UserError(f"--templates are for zero_shot, and this evaluates '{task}'; leave them out")
    if predictions is not None:
        check_place(predictions, "predictions.json")
    own = task == opened.config.train.task
    if again is not None:
        if task != "retrieval":
            raise UserError(f"--again {again}: retrieval alone ranks again, and this evaluates '{task}'; leave it out")
        config = opened.config
        opened = replace(opened, config=replace(config, train=replace(config.train, again=again)))
        check_numbers(opened.config)
    dataset = data or (opened.config.train.dataset if own or task == "zero_shot" else EMBEDDED[task])
    model = load_model(opened, backend, choose_device(device), keys)
    records = load(dataset, split, opened.config.model.concrete.image_size)
    if task == "zero_shot":
        result = evaluate_zero_shot(model, records, opened.codec, templates, samples)
    else:
        ranking = ranking_of(opened) if own or again else None
        result = run_evaluation(task, model, records, opened.codec, opened.answers, samples=samples, ranking=ranking)
    for name, value in result.metrics.items():
        print(f"{name:>16}  {value:.4g}")
    if predictions is not None:
        ranks.on_first(lambda: write_predictions(task, predictions, result, records, opened.answers))
        print(f"wrote {predictions}")
    return done(
        {"run": str(run), "task": task, "backend": backend, "dataset": dataset, "split": split, **result.metrics}, json
    )
