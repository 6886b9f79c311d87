"""What a network would cost on the chip: one run, its counts as figures, and a page that shows them."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from hw.artifact import check_place, kind_of
from hw.chips import RESOURCES, Chip
from hw.energy import NO_LOIHI2
from hw.errors import UserError
from hw.program import SpikingProgram
from hw.resources import Misfit
from hw.simulate.files import Job, load_job, load_numbers
from train.report.chip_page import chip_page
from train.report.chip_story import ChipStory, cores_of, si, span, tell
from train.report.page import save
from train.report.terminal import aligned


def chip_job(source: Path, spikes: Path | None, samples: int) -> Job:
    """The program and the input spikes [T, B, ...] of a quantized run's folder (its first test images), or of a `.net`
    file or a program's folder with an `.npy` of spikes."""
    if samples < 1:
        raise UserError(f"--samples is {samples}; run at least 1 sample")
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder; give a run, a program's folder or a .net file")
    if kind_of(source) == "run":
        if spikes is not None:
            raise UserError(f"{source}: a run brings its own test samples; leave --input out")
        return _job_of_run(source, samples)
    if spikes is None:
        raise UserError(f"{source}: a network without data needs spikes to run; give --input SPIKES.npy")
    job = load_job(source, load_numbers(spikes), spikes)
    return replace(job, spikes=job.spikes[:, :samples])


def _job_of_run(folder: Path, samples: int) -> Job:
    from train.joints import input_spikes
    from train.run import choose_device, load_model, open_run, run_program
    from train.stages import load_split

    run = open_run(folder)
    program, model = run_program(run), load_model(run, "float", choose_device("cpu"))
    batches = [batch.numpy().astype(np.uint8) for batch in input_spikes(model, load_split(run, "test"), samples)]
    return Job(program=program, spikes=np.concatenate(batches, axis=1), batch=True)


def write_chip_report(name: str, program: SpikingProgram, spikes: np.ndarray, path: Path, chip: Chip) -> dict[str, Any]:
    """Run `spikes` [T, B, ...], write the page to `path`, whole or not at all, and return all figures as JSON values.

    name: what the page calls the network.
    """
    check_place(path, "chip.html")
    story = tell(name, program, spikes, chip)
    save(chip_page(story), path)
    return figures_of(story)


def figures_of(story: ChipStory) -> dict[str, Any]:
    """All figures as JSON values. Counts are of all samples together, joules of one."""
    placed, counts = story.resources, story.counts
    use = placed.utilisation
    layers = [
        {
            "name": layer.name,
            **{key.replace(" ", "_"): int(value) for key, value in zip(RESOURCES, layer.needs, strict=True)},
            "synapses": layer.synapses,
            "blocks": layer.blocks,
            "cores": cores_of(placed, layer.name),
            **{key: value for key, value in asdict(counts.layers[layer.name]).items() if key != "neurons"},
        }
        for layer in placed.layers.values()
    ]
    return {
        "name": story.name,
        "chip": placed.chip.name,
        "samples": counts.samples,
        "steps": counts.steps,
        "fits": not placed.misfits,
        "misfits": [asdict(misfit) for misfit in placed.misfits],
        "cores": placed.cores,
        "chips": placed.chips,
        "limits": [asdict(limit) for limit in placed.chip.limits],
        "core_loads": placed.loads.tolist(),
        "mean_utilisation": dict(zip(RESOURCES, use.mean(0).tolist(), strict=True)) if placed.cores else {},
        "input": {"spikes": counts.input_spikes, "rate": counts.input_rate, "messages": counts.input_messages},
        "layers": layers,
        "energy": [asdict(estimate) for estimate in story.estimates],
        "energy_note": NO_LOIHI2,
        "measured": asdict(story.measured),
    }


def summary(figures: dict[str, Any]) -> str:
    """A compact table of `figures_of`, for a terminal."""

    def per_sample(value: int | None) -> str:
        return "-" if value is None else f"{value / figures['samples']:,.0f}"

    head = (
        "layer",
        "neurons",
        "synapses",
        "in axons",
        "out axons",
        "KB",
        "cores",
        "rate %",
        "spikes",
        "synops",
        "msgs",
    )
    given = figures["input"]
    of_input = (f"{100 * given['rate']:.2f}", per_sample(given["spikes"]), "", per_sample(given["messages"]))
    rows = [head, ("input", *[""] * 6, *of_input)]
    for layer in figures["layers"]:
        sizes = [f"{layer[key]:,}" for key in ("neurons", "synapses", "input_axons", "output_axons")]
        place = (f"{layer['synapse_bits'] / 8192:,.0f}", str(len(layer["cores"])), f"{100 * layer['rate']:.2f}")
        rows.append((layer["name"], *sizes, *place, *(per_sample(layer[k]) for k in ("spikes", "synops", "messages"))))
    lines = aligned(rows)
    lines += [
        "",
        f"{figures['cores']} cores, {figures['chips']} chip{'s' * (figures['chips'] != 1)} ({figures['chip']})",
    ]
    lines += ["does not fit: " + "; ".join(str(Misfit(**misfit)) for misfit in figures["misfits"])] * (
        not figures["fits"]
    )
    lines += [
        "",
        f"energy per sample of {figures['steps']} steps, estimated (spikes, synops, msgs above: per sample too)",
    ]
    for entry in figures["energy"]:
        known = entry["low"] is not None
        lines.append(f"  {entry['name']:<42} {span(entry['low'], entry['high']) if known else entry['note']}")
    measured = figures["measured"]
    for counter, joules in (measured["joules"] or {}).items():
        lines.append(f"  this machine, simulating: {counter:<16} {si(joules / figures['samples'])}, measured")
    if measured["joules"] is None:
        lines.append(f"  this machine, simulating: not measured ({measured['reason']})")
    return "\n".join(lines)
