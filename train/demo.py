"""The whole line on real data, step by step. Each step's result is a folder or a file, so that an interrupted demo
goes on where it was."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ashnets.config import tiny
from hw.artifact import read_json, write_json
from hw.errors import UserError
from quantize.verify import Joint
from train.checkpoint import newest_checkpoint
from train.config import RunConfig, finetune_recipe, pretrain_recipe
from train.evaluate import Evaluation, evaluate
from train.joints import verify_run
from train.progress import training_progress
from train.report import write_report
from train.report.collect import collect_story
from train.run import Run, load_model, open_run
from train.seconds import seconds_of, timed
from train.stages import load_split, new_run, qat_config, quantized_run, ranking_of, train_run

STAGES = ("pretrain", "finetune", "quantized")


class _Demo:
    def __init__(self, folder: Path, seed: int, lava_samples: int, device: torch.device) -> None:
        self.folder, self.seed, self.lava_samples, self.device = folder, seed, lava_samples, device
        self.used: set[str] = set()
        """Names of the results that this demo is made of."""

    def stage(self, name: str, make: Callable[[Path], Run], init: Run | None = None) -> Run:
        """A training stage: made, gone on with, or found finished."""
        folder = self.folder / name
        if not folder.exists():
            for old in (self.folder / "results").glob("*.json"):  # of a run that is there no more
                if old.stem not in self.used:
                    old.unlink()
        run = open_run(folder) if folder.exists() else make(folder)
        if run.config.train.seed != self.seed:
            raise UserError(
                f"{folder}: was made with seed {run.config.train.seed}, not {self.seed}; choose another --out"
            )
        clock = f"{name}_seconds"
        self.used.add(clock)
        newest = newest_checkpoint(folder)
        if (
            newest is not None
            and newest.step == run.config.train.steps
            and (not run.quantized or (folder / "program").exists())
        ):
            print(f"  {folder} is finished already")
            return run
        with timed(self.result(clock)), training_progress(name) as progress:
            train_run(run, self.device, progress, init)
        return run

    def result(self, name: str) -> Path:
        return self.folder / "results" / f"{name}.json"

    def step(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result kept in results/<name>.json, computed if it is not there."""
        path = self.result(name)
        self.used.add(name)
        if path.exists():
            return read_json(path)
        start = time.monotonic()
        values = compute()
        values.setdefault("seconds", time.monotonic() - start)
        write_json(path, values)
        return values

    def evaluation(self, name: str, run: Run, backend: str, **options: Any) -> dict[str, Any]:
        """A run's test metrics with one backend; keeps the predictions too."""

        def compute() -> dict[str, Any]:
            found: Evaluation = evaluate(
                run.config.train.task,
                load_model(run, backend, self.device),
                load_split(run, "test"),
                run.codec,
                run.answers,
                ranking=ranking_of(run),
                **options,
            )
            return {"metrics": found.metrics, "predictions": found.predictions.tolist()}

        return self.step(name, compute)

    def joints(self, name: str, run: Run, runtime: str, samples: int | None) -> Joint:
        def compute() -> dict[str, Any]:
            (joint,) = verify_run(run, {runtime: samples}, self.device)
            return asdict(joint)

        values = self.step(name, compute)
        return Joint(**{key: value for key, value in values.items() if key != "seconds"})


def run_demo(folder: Path, seed: int, lava_samples: int, device: torch.device) -> dict[str, Any]:
    """Run all that is not done yet; returns the figures that the demo is about, and the report's path."""
    demo = _Demo(folder, seed, lava_samples, device)
    print(
        "1/6  Pre-train on OpenMoji: emoji, their names and kinds. An artificial and a spiking encoder learn together.",
        flush=True,
    )
    config = RunConfig(model=tiny(), train=replace(pretrain_recipe(), seed=seed))
    pretrained = demo.stage("pretrain", lambda path: new_run(path, config))

    print("2/6  Fine-tune on easy-VQA: questions about pictures, 13 possible answers.", flush=True)
    config = RunConfig(model=tiny(), train=replace(finetune_recipe(), seed=seed))
    tuned = demo.stage("finetune", lambda path: new_run(path, config, pretrained.codec), pretrained)

    print(
        "3/6  Quantize the spiking stack: Brevitas int8 weights, integer neurons, a short training that feels both.",
        flush=True,
    )
    quantized = demo.stage("quantized", lambda path: quantized_run(tuned, path, qat_config(tuned)), tuned)

    print(
        "4/6  Evaluate on unseen pictures: float, quantized, and the integer program through the bridge.",
        flush=True,
    )
    retrieval = demo.evaluation("retrieval_heldout", pretrained, "float")
    vqa = {
        name: demo.evaluation(f"vqa_{name}", quantized, backend)
        for name, backend in (("float", "float"), ("qat", "qat"), ("program", "reference"))
    }
    shuffled = demo.evaluation("vqa_shuffled", quantized, "qat", shuffle_images=True)

    print(
        f"5/6  Count every spike: quantized against reference on all, Lava against it on {lava_samples} samples.",
        flush=True,
    )
    qat_joint = demo.joints("joint_qat", quantized, "qat", None)
    lava_joint = demo.joints(f"joint_lava_{lava_samples}", quantized, "lava", lava_samples)
    answers_lava = demo.evaluation(f"vqa_lava_{lava_samples}", quantized, "lava", samples=lava_samples)

    print("6/6  Write the report.", flush=True)
    differing = sum(a != b for a, b in zip(vqa["qat"]["predictions"], vqa["program"]["predictions"], strict=True))
    seconds = sum(seconds_of(demo.result(name)) for name in sorted(demo.used))
    values = {
        "vqa_accuracy_float": vqa["float"]["metrics"]["accuracy"],
        "vqa_accuracy_qat": vqa["qat"]["metrics"]["accuracy"],
        "vqa_accuracy_program": vqa["program"]["metrics"]["accuracy"],
        "vqa_accuracy_shuffled_images": shuffled["metrics"]["accuracy"],
        "vqa_questions": int(vqa["float"]["metrics"]["questions"]),
        "vqa_answers_differing_program_qat": differing,
        "vqa_accuracy_lava": answers_lava["metrics"]["accuracy"],
        "retrieval_tr10_heldout": retrieval["metrics"]["tr@10"],
        "retrieval_heldout": retrieval["metrics"],
        "mismatching_spikes_qat_reference": qat_joint.total,
        "mismatching_spikes_lava_reference": lava_joint.total,
        "joints_equal": qat_joint.well and lava_joint.well,
        "qat_samples": qat_joint.samples,
        "lava_samples": lava_joint.samples,
        "firing_rate": vqa["program"]["metrics"]["firing_rate"],
        "seed": seed,
        "seconds": seconds,
        "joints": [asdict(joint) for joint in (qat_joint, lava_joint)],
    }
    write_json(folder / "results" / "summary.json", values)
    report = demo_report(folder)
    for key in ("vqa_accuracy_float", "vqa_accuracy_qat", "vqa_accuracy_program", "retrieval_tr10_heldout"):
        print(f"  {key:<36} {values[key]:.2f}")
    for key in ("mismatching_spikes_qat_reference", "mismatching_spikes_lava_reference"):
        print(f"  {key:<36} {values[key]}")
    return {**{k: v for k, v in values.items() if k not in ("joints", "retrieval_heldout")}, "report": str(report)}


def demo_report(folder: Path) -> Path:
    """Write report.html of a demo folder whose steps are all done."""
    path = folder / "results" / "summary.json"
    if not path.exists():
        raise UserError(
            f"{folder}: is not a finished demo (no results/summary.json); run 'ashnets demo --out {folder}' first"
        )
    summary = read_json(path)
    runs = {name: open_run(folder / name) for name in STAGES}
    return write_report(collect_story(runs, summary), folder / "report.html")
