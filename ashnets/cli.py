"""The command line. Commands import what they need when they run, so that `ashnets --help` answers at once.

Exit codes: 0 done, 1 a failed check (mismatching spikes, something missing), 2 a user error in one line, 130
interrupted.
"""

import json as json_module
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ashnets.config import PRESETS
from hw.errors import BackendError, UserError
from train.config import RunConfig, TrainConfig, finetune_recipe, pretrain_recipe

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Device = Literal["auto", "cpu", "cuda"]
Preset = Literal["tiny", "small", "base"]


def train(
    run: RunFolder,
    /,
    train: TrainConfig = pretrain_recipe(),  # noqa: B008  (frozen)
    preset: Preset = "tiny",
    resume: bool = False,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Pre-train a model into the new folder RUN; --resume goes on with any run that was interrupted."""
    from train.stages import new_run

    if resume:
        return _resume(run, device, json)
    config = RunConfig(model=PRESETS[preset](), train=train)
    return _train(new_run(run, config), device, json, next_step=f"ashnets finetune {run} RUN2")


def finetune(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    run: RunFolder,
    /,
    train: TrainConfig = finetune_recipe(),  # noqa: B008  (frozen)
    spikes_alone: float | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Fine-tune the best weights of the run SOURCE on another task, into the new folder RUN.

    spikes_alone: probability that an image is seen by its spikes alone; 1 for a model without the artificial encoder.
    """
    from train.run import open_run
    from train.stages import new_run

    start = open_run(source)
    model = start.config.model
    if spikes_alone is not None:
        model = replace(model, fusion=replace(model.fusion, spikes_alone=spikes_alone))
    config = replace(start.config, model=model, train=train)
    made = new_run(run, config, start.codec)
    return _train(made, device, json, init=start, next_step=f"ashnets quantize {run}")


def quantize(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    /,
    out: Path | None = None,
    steps: int | None = None,
    quantizer: str = "int8",
    resume: bool = False,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Quantize the spiking stack of the run SOURCE (QAT), and write its integer program. Into SOURCE-int8 unless
    --out is given.

    steps: QAT steps; by default a sixth of the training's. With --resume, SOURCE is an interrupted quantized run.
    """
    from train.run import open_run
    from train.stages import qat_config, quantized_run

    if resume:
        return _resume(source, device, json)
    start = open_run(source)
    folder = out or source.with_name(f"{source.name}-{quantizer}")
    made = quantized_run(start, folder, replace(qat_config(start, steps), quantizer=quantizer))
    return _train(made, device, json, init=start, next_step=f"ashnets simulate {folder} --verify")


def tune(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    run: RunFolder,
    /,
    chip: str = "imperfect",
    steps: int | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Go on training the quantized run SOURCE with a chip in the loop, into the new folder RUN: the forward pass is
    the chip's, the backward pass the surrogate's.

    chip: a backend, such as imperfect:dead=0.05,stuck=0.02,spread=0.1,seed=0, or addresses of workers.
    """
    from train.run import open_run
    from train.stages import tuned_run

    start = open_run(source)
    made = tuned_run(start, run, chip, steps)
    return _train(made, device, json, init=start, next_step=f"ashnets evaluate {run} --backend {chip}")


def evaluate(
    run: RunFolder,
    /,
    task: Literal["retrieval", "vqa"] | None = None,
    backend: str = "float",
    keys: Path | None = None,
    split: Literal["val", "test"] = "test",
    samples: int | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Evaluate RUN with its spiking stack as 'float', 'qat', or on a backend such as 'reference', 'lava' or
    'tcp://HOST:PORT,...', the addresses of workers.

    task: by default the one that the run was trained for. samples: images, by default the whole split. keys: the
    client's folder of keys, for workers on other hosts.
    """
    from train.data import load
    from train.evaluate import evaluate as run_evaluation
    from train.run import choose_device, load_model, open_run
    from train.stages import ranking_of

    opened = open_run(run)
    task = task or opened.config.train.task
    default = {"retrieval": pretrain_recipe().dataset, "vqa": finetune_recipe().dataset}[task]
    dataset = opened.config.train.dataset if task == opened.config.train.task else default
    model = load_model(opened, backend, choose_device(device), keys)
    data = load(dataset, split, opened.config.model.concrete.image_size)
    ranking = ranking_of(opened) if task == opened.config.train.task else None
    result = run_evaluation(task, model, data, opened.codec, opened.answers, samples=samples, ranking=ranking)
    for name, value in result.metrics.items():
        print(f"{name:>16}  {value:.4g}")
    return _done(
        {"run": str(run), "task": task, "backend": backend, "dataset": dataset, "split": split, **result.metrics}, json
    )


def simulate(
    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None,
    /,
    program: Path | None = None,
    input: Path | None = None,
    out: Path | None = None,
    layers: bool = False,
    from_layer: int = 0,
    backend: str = "reference",
    keys: Path | None = None,
    samples: int | None = 64,
    verify: bool = False,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Run spikes through a spiking program on a backend: a quantized RUN's, or any file's; print firing rates.

    RUN: real samples of its test split; --verify also compares every layer's spikes with the reference and with the QAT
    forward pass, exit code 1 if one differs.

    --program NET --input SPIKES.npy --out OUT.npy: a program's folder, or a .net file that lava-dl wrote, and spikes
    [T, ...] or [B, T, ...]. --layers also writes every layer's spikes, u and v to OUT.layers.npz. --from-layer K starts
    behind the layers before K.
    """
    if program is not None:
        if run is not None or verify:
            raise UserError("--program runs a file by itself: leave RUN and --verify out")
        return _simulate_file(program, input, out, layers, json, backend=backend, keys=keys, first=from_layer)
    if run is None:
        raise UserError("nothing to simulate; give a quantized RUN, or --program NET --input SPIKES.npy --out OUT.npy")
    if input is not None or out is not None or layers or from_layer:
        raise UserError("--input, --out, --layers and --from-layer go with --program, not with a RUN")
    from train.joints import simulate_run, verify_run
    from train.run import choose_device, open_run

    opened, where = open_run(run), choose_device(device)
    if not verify:
        rates, seconds = simulate_run(opened, backend, samples, where, keys)
        for name, rate in rates.items():
            print(f"{name:>16}  firing rate {rate:.4f}")
        return _done({"run": str(run), "backend": backend, "seconds": seconds, "firing_rates": rates}, json)
    runtimes = ("qat",) if backend == "reference" else ("qat", backend)
    joints = verify_run(opened, runtimes, samples, where, keys)
    for joint in joints:
        counts = ", ".join(f"{name} {count} of {joint.compared[name]}" for name, count in joint.mismatches.items())
        print(
            f"{joint.left} against {joint.right}, {joint.samples} samples: {joint.total} mismatching spikes ({counts})"
        )
    total = sum(joint.total for joint in joints)
    values = {f"mismatching_spikes_{joint.left}_{joint.right}": joint.total for joint in joints}
    _done({"run": str(run), "samples": joints[0].samples, **values}, json)
    return 1 if total else 0


def _simulate_file(
    program: Path, spikes: Path | None, out: Path | None, layers: bool, json: bool, **options: Any
) -> int:
    from hw.simulate.files import simulate_file

    if spikes is None or out is None:
        raise UserError("--program also needs --input SPIKES.npy and --out OUT.npy")
    rates = simulate_file(program, spikes, out, layers=layers, **options)
    for name, rate in rates.items():
        print(f"{name:>16}  firing rate {rate:.4f}")
    return _done(
        {"program": str(program), "backend": options["backend"], "out": str(out), "firing_rates": rates},
        json,
        f"wrote {out}",
    )


def demo(
    out: Path = Path("runs/demo"), seed: int = 0, lava_samples: int = 64, device: Device = "auto", json: bool = False
) -> int:
    """The whole line on real data with the tiny model: train, fine-tune, quantize, simulate, verify, report. Finished
    steps are kept."""
    from train.demo import run_demo
    from train.run import choose_device

    values = run_demo(out, seed, lava_samples, choose_device(device))
    _done(values, json, f"wrote {values['report']}: open it in a browser")
    return 1 if values["mismatching_spikes_qat_reference"] or values["mismatching_spikes_lava_reference"] else 0


def report(
    run: RunFolder,
    /,
    chip: bool = False,
    input: Path | None = None,
    on: Literal["loihi1", "loihi2"] = "loihi1",
    samples: int = 16,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Write report.html again from what the finished demo folder RUN holds.

    --chip: instead, what a network would cost on a chip: cores, memory, operations, energy. RUN is a quantized run,
    whose first test images are simulated, or a .net file or a program's folder with --input SPIKES.npy [T, ...] or
    [B, T, ...]. on: the chip. samples: how many are simulated. out: the page, by default chip.html beside RUN.
    """
    if chip:
        return _chip_report(run, input, on, samples, out or run.absolute().with_name("chip.html"), json)
    if input is not None or out is not None:
        raise UserError("--input and --out go with --chip")
    from train.demo import demo_report

    path = demo_report(run)
    return _done({"report": str(path)}, json, f"wrote {path}: open it in a browser")


def _chip_report(source: Path, spikes: Path | None, on: str, samples: int, out: Path, json: bool) -> int:
    from hw.chips import CHIPS
    from train.report.chip import chip_job, summary, write_chip_report

    job = chip_job(source, spikes, samples)
    figures = write_chip_report(source.stem or str(source), job.program, job.spikes, out, CHIPS[on])
    print(summary(figures))
    return _done({"report": str(out), **figures}, json, f"wrote {out}: open it in a browser")


def worker(listen: str = "tcp://127.0.0.1:5555", backend: str = "events", keys: Path | None = None) -> int:
    """Serve a backend to bridges on this or other hosts, until Ctrl-C.

    listen: tcp://HOST:PORT (port * for any free one) or ipc://PATH. keys: the worker's folder of keys; without, only
    addresses of this machine are allowed.
    """
    from hw.bridge.worker import run_worker

    run_worker(listen, backend, keys)
    return 0


def keys(
    what: Annotated[Literal["new"], tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    /,
    json: bool = False,
) -> int:
    """Make keys for a worker and its clients in the new FOLDER.

    The worker's host needs worker.json and client.public.json, the client's host client.json and worker.public.json.
    """
    from hw.bridge.keys import make_keys

    written = [str(path) for path in make_keys(folder)]
    next_step = f"ashnets worker --listen tcp://HOST:PORT --keys {folder}"
    return _done({"written": written}, json, f"wrote {', '.join(written)}\nnext: {next_step}")


def bench(
    what: Annotated[Literal["simulate"], tyro.conf.Positional], /, program: Path | None = None, json: bool = False
) -> int:
    """Time the simulators side by side with Lava's process simulation; outputs are compared first.

    program: a program's folder, to be timed too.
    """
    from hw.bench import cases, measure
    from hw.program_file import load_program

    rows = []
    for case in cases(load_program(program) if program else None):
        rows.append(row := measure(case))
        ours = ", ".join(f"{name[:-11]} {value:.0f}x" for name, value in row.items() if name.endswith("_times_lava"))
        print(f"{case.name}, batch {case.batch}: Lava {row['lava_us']:.0f} us a step; faster: {ours}", flush=True)
    return _done({"bench": what, "rows": rows}, json)


def doctor(program: Path | None = None, json: bool = False) -> int:
    """Say what is there, and what to do about what is missing. Exit code 1 if something is.

    program: a program's folder or a .net file; then say instead all that the chip would not hold.
    """
    if program is not None:
        from hw.simulate.files import examine_program

        found = examine_program(program)
        for line in found:
            print(f"PROBLEM  {line}")
        return _done({"ok": not found, "problems": found}, json, None if found else f"{program} fits") or int(
            bool(found)
        )
    from train.doctor import examine

    lines = []
    for well, line in examine():
        lines.append({"ok": well, "line": line})
        print(f"{'ok     ' if well else 'MISSING'}  {line}", flush=True)
    well = all(line["ok"] for line in lines)
    _done(
        {"ok": well, "checks": lines},
        json,
        "everything is there; try: ashnets demo" if well else "see the lines marked MISSING",
    )
    return 0 if well else 1


DESCRIPTION = (
    "Train artificial-spiking vision-language models and take their spiking encoder to the chip, every spike equal."
)
COMMANDS = {
    "demo": demo,
    "train": train,
    "finetune": finetune,
    "quantize": quantize,
    "tune": tune,
    "evaluate": evaluate,
    "simulate": simulate,
    "report": report,
    "worker": worker,
    "keys": keys,
    "bench": bench,
    "doctor": doctor,
}


def _train(run: Any, device: str, json: bool, *, init: Any = None, next_step: str) -> int:
    from train.checkpoint import newest_checkpoint
    from train.progress import training_progress
    from train.run import choose_device
    from train.stages import train_run

    with training_progress(run.folder.name) as progress:
        train_run(run, choose_device(device), progress, init)
    newest = newest_checkpoint(run.folder)
    assert newest is not None  # train_run has written one
    best = next(entry for entry in newest.history if entry["step"] == newest.best_step)
    print(f"wrote {run.folder}: {newest.step} steps, best at step {newest.best_step} (validation {best['score']:.2f})")
    return _done({"run": str(run.folder), "steps": newest.step, "best": best}, json, f"next: {next_step}")


def _resume(folder: Path, device: str, json: bool) -> int:
    from train.run import open_run
    from train.stages import check_resumable

    run = open_run(folder)
    check_resumable(run)
    return _train(run, device, json, next_step=f"ashnets evaluate {folder}")


def _done(values: dict[str, Any], json: bool, line: str | None = None) -> int:
    if line:
        print(line)
    if json:
        print(json_module.dumps(values, allow_nan=False))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every error that a user can mend is one line on standard error."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # speaks of CUDA_HOME where there is no GPU
    try:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="ashnets", description=DESCRIPTION, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
        )
    except UserError as error:
        print(f"ashnets: {error}", file=sys.stderr)
        return 2
    except BackendError as error:
        print(f"ashnets: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"ashnets: {error.filename or 'file system'}: {error.strerror or error}; nothing was half written",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("ashnets: interrupted; a run goes on from its last checkpoint with --resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
