"""The command that times: simulators, Lava, batches, a training step."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ashnets.cli.common import Device, check_samples, done, refuse_beside
from hw.artifact import check_place
from hw.errors import UserError

_TAKES = {
    "simulate": ("program", "out"),
    "lava": ("program", "samples"),
    "loader": ("run", "config", "steps", "device"),
    "step": ("run", "config", "steps", "device", "out"),
}


def bench(
    what: Annotated[Literal["simulate", "lava", "loader", "step"], tyro.conf.Positional],
    /,
    program: Path | None = None,
    run: Path | None = None,
    config: Path | None = None,
    samples: int | None = None,
    steps: int | None = None,
    out: Path | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Time the parts of this toolchain, side by side on this machine.

    simulate: every simulator against Lava's process simulation, outputs compared first; with --out PAGE.html also how
    the cost grows with neurons, synapses, density, batch and T, as a page with plots. program: a program's folder, to
    be timed too.

    lava: from start to stop, --samples (256) of --program streamed through one network, against one network per sample.

    loader: how many images a second 0, 1, 2 and more processes make into batches, and how many training takes. Of the
    data and recipe of --run or --config, by default tiny's. steps: batches to time, by default 20.

    step: where a training step spends its time, by the parts of the model, and the spiking branch's share; steps: to
    profile, by default 5. out: a file for the profiler's view, to open in Perfetto or chrome://tracing.
    """
    from hw.program_file import load_program

    given = {"program": program, "run": run, "config": config, "samples": samples, "steps": steps, "out": out}
    given["device"] = None if device == "auto" else device
    refuse_beside(f"'bench {what}'", **{name: value for name, value in given.items() if name not in _TAKES[what]})
    if what in ("loader", "step"):
        if steps is not None and steps < 1:
            raise UserError(f"--steps is {steps}; time at least 1")
        if out is not None:
            check_place(out, "trace.json")
        with tempfile.TemporaryDirectory() as folder:
            trained = _run(run, config, Path(folder))
            if what == "loader":
                return _bench_loader(trained, device, steps, json)
            return _bench_step(trained, device, steps, out, json)
    loaded = load_program(program) if program else None
    if what == "lava":
        if loaded is None:
            raise UserError("bench lava needs --program FOLDER, for example runs/demo/quantized/program")
        return _bench_lava(loaded, 256 if samples is None else samples, json)
    return _bench_simulate(loaded, out, json)


def _run(run: Path | None, config: Path | None, folder: Path) -> Any:
    from train.config import read_config
    from train.recipes import tiny_recipe
    from train.run import open_run
    from train.stages import new_run

    if run is not None and config is not None:
        raise UserError("--run and --config were both given; give one of them")
    if run is not None:
        return open_run(run)
    return new_run(folder / "run", read_config(config) if config else tiny_recipe())


def _bench_loader(run: Any, device: str, steps: int | None, json: bool) -> int:
    from train.bench import loader_speed
    from train.run import choose_device

    found = loader_speed(run, choose_device(device), steps or 20)
    for workers, speed in found.images_per_second.items():
        print(f"{workers or 'no':>2} processes make {speed:,.0f} images a second")
    print(f"training takes {found.wanted:,.0f} images a second")
    if found.enough is None:
        line = "no number of processes keeps up with training on this machine"
    else:
        line = f"--workers {found.enough} keeps up with training"
    values = {"images_per_second": {str(n): speed for n, speed in found.images_per_second.items()}}
    return done({"bench": "loader", **values, "wanted": found.wanted, "enough": found.enough}, json, line)


def _bench_step(run: Any, device: str, steps: int | None, out: Path | None, json: bool) -> int:
    from train.bench import trainer_of
    from train.profiler import SPIKING, profile_step
    from train.run import choose_device

    found = profile_step(trainer_of(run, choose_device(device)), steps or 5, out)
    print(f"{'milliseconds of a step':<24}{'forward':>10}{'backward':>10}{'share':>8}")
    for part, (forward, backward) in found.milliseconds.items():
        print(f"{part:<24}{forward:>10.1f}{backward:>10.1f}{100 * found.shares[part]:>7.1f}%")
    line = f"the spiking branch takes {100 * found.shares[SPIKING]:.1f} % of a step of {found.total:.0f} ms"
    if out is not None:
        line += f"\nwrote {out}: open it in Perfetto (ui.perfetto.dev)"
    values = {"milliseconds": found.milliseconds, "shares": found.shares, "trace": str(out) if out else None}
    return done({"bench": "step", **values}, json, line)


def _bench_lava(program: Any, samples: int, json: bool) -> int:
    from hw.bench_lava import end_to_end

    check_samples(samples)
    row = end_to_end(program, samples)
    human = (
        f"{samples} samples of {row['steps']} steps: {row['streamed_seconds']:.1f} s streamed, "
        f"{row['network_per_sample_seconds']:.1f} s with a network for each; {row['times_faster']:.1f}x"
    )
    return done({"bench": "lava", **row}, json, human)


def _bench_simulate(program: Any, out: Path | None, json: bool) -> int:
    from hw.bench import cases, measure
    from hw.bench_growth import growth
    from train.report.bench import write_bench_page

    if out is not None:
        check_place(out, "bench.html")
    rows = []
    for case in cases(program):
        rows.append(row := measure(case))
        ours = ", ".join(f"{name[:-11]} {value:.0f}x" for name, value in row.items() if name.endswith("_times_lava"))
        print(
            f"{case.name}, batch {case.batch}: Lava {row['lava_us']:.0f} us a step; faster: {ours}; events at "
            f"{100 * float(row['events_share_of_limit']):.0f} % of the caches' bandwidth",
            flush=True,
        )
    if out is None:
        return done({"bench": "simulate", "rows": rows}, json)
    grown = growth()
    write_bench_page(rows, grown, out)
    sweeps = [{"name": g.sweep.name, "what": g.sweep.what, "values": g.sweep.values, "us": g.us} for g in grown]
    found = {"bench": "simulate", "rows": rows, "growth": sweeps, "page": str(out)}
    return done(found, json, f"wrote {out}: open it in a browser")
