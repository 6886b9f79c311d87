"""Commands of the chip side: simulate, report, worker, keys, doctor."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ashnets.cli.common import Device, RunFolder, done, refuse_beside, refuse_keys
from hw.errors import UserError

SAMPLES = 64  # of a run that are simulated, unless told otherwise


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
    samples: int | None = SAMPLES,
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
    refuse_keys(keys, backend)
    if program is not None:
        refuse_beside("--program, which runs on the CPU", device=None if device == "auto" else device)
        if run is not None or verify:
            raise UserError("--program runs a file by itself: leave RUN and --verify out")
        if samples != SAMPLES:
            raise UserError("--program runs all samples of --input: leave --samples out")
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
        return done({"run": str(run), "backend": backend, "seconds": seconds, "firing_rates": rates}, json)
    runtimes = ("qat",) if backend == "reference" else ("qat", backend)
    joints = verify_run(opened, dict.fromkeys(runtimes, samples), where, keys)
    for joint in joints:
        if joint.refused:
            raise UserError(f"backend '{joint.left}' does not hold this network, nothing was compared: {joint.refused}")
        counts = ", ".join(f"{name} {count} of {joint.compared[name]}" for name, count in joint.mismatches.items())
        print(
            f"{joint.left} against {joint.right}, {joint.samples} samples: {joint.total} mismatching spikes ({counts})"
        )
        if joint.integers is False:
            print(f"{joint.left} and {joint.right} hold different integers")
    values = {f"mismatching_spikes_{joint.left}_{joint.right}": joint.total for joint in joints}
    done({"run": str(run), "samples": joints[0].samples, **values}, json)
    return 0 if all(joint.well and not joint.total for joint in joints) else 1


def _simulate_file(
    program: Path, spikes: Path | None, out: Path | None, layers: bool, json: bool, **options: Any
) -> int:
    from hw.simulate.files import simulate_file

    if spikes is None or out is None:
        raise UserError("--program also needs --input SPIKES.npy and --out OUT.npy")
    rates = simulate_file(program, spikes, out, layers=layers, **options)
    for name, rate in rates.items():
        print(f"{name:>16}  firing rate {rate:.4f}")
    return done(
        {"program": str(program), "backend": options["backend"], "out": str(out), "firing_rates": rates},
        json,
        f"wrote {out}",
    )


def report(
    run: RunFolder,
    /,
    chip: bool = False,
    input: Path | None = None,
    on: Literal["loihi1", "loihi2"] | None = None,
    samples: int | None = None,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Write report.html again from what the finished demo folder RUN holds.

    --chip: instead, what a network would cost on a chip: cores, memory, operations, energy. RUN is a quantized run,
    whose first test images are simulated, or a .net file or a program's folder with --input SPIKES.npy [T, ...] or
    [B, T, ...]. on: the chip, by default loihi1. samples: how many are simulated, by default 16. out: the page, by
    default chip.html beside RUN.
    """
    if chip:
        page = out or run.absolute().with_name("chip.html")
        return _chip_report(run, input, on or "loihi1", 16 if samples is None else samples, page, json)
    refuse_beside("a report without --chip", input=input, on=on, samples=samples, out=out)
    from train.demo import demo_report

    path = demo_report(run)
    return done({"report": str(path)}, json, f"wrote {path}: open it in a browser")


def _chip_report(source: Path, spikes: Path | None, on: str, samples: int, out: Path, json: bool) -> int:
    from hw.chips import CHIPS
    from train.report.chip import chip_job, summary, write_chip_report

    job = chip_job(source, spikes, samples)
    figures = write_chip_report(source.stem or str(source), job.program, job.spikes, out, CHIPS[on])
    print(summary(figures))
    return done({"report": str(out), **figures}, json, f"wrote {out}: open it in a browser")


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
    return done({"written": written}, json, f"wrote {', '.join(written)}\nnext: {next_step}")


def doctor(program: Path | None = None, json: bool = False) -> int:
    """Say what is there, and what to do about what is missing. Exit code 1 if something is.

    program: a program's folder or a .net file; then say instead all that the chip would not hold.
    """
    if program is not None:
        from hw.simulate.files import examine_program

        found = examine_program(program)
        for line in found:
            print(f"PROBLEM  {line}")
        return done({"ok": not found, "problems": found}, json, None if found else f"{program} fits") or int(
            bool(found)
        )
    from train.doctor import examine

    lines = []
    for well, line in examine():
        lines.append({"ok": well, "line": line})
        print(f"{'ok     ' if well else 'MISSING'}  {line}", flush=True)
    well = all(line["ok"] for line in lines)
    done(
        {"ok": well, "checks": lines},
        json,
        "everything is there; try: ashnets demo" if well else "see the lines marked MISSING",
    )
    return 0 if well else 1
