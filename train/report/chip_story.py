"""One run of a program and all that is counted from it."""

from dataclasses import dataclass

import numpy as np

from hw.chips import Chip
from hw.energy import Counts, Estimate, count, estimates
from hw.meter import Measured, measured_joules
from hw.program import SpikingProgram
from hw.resources import Resources, resources
from hw.simulate import open_backend
from hw.simulate.base import Result, check_spikes


@dataclass(frozen=True, kw_only=True, eq=False)
class ChipStory:
    """Everything that the page shows. spikes: input [T, B, ...]. result: the run, with every layer's spikes and
    states."""

    name: str
    program: SpikingProgram
    spikes: np.ndarray
    result: Result
    resources: Resources
    counts: Counts
    estimates: list[Estimate]
    measured: Measured


def tell(name: str, program: SpikingProgram, spikes: np.ndarray, chip: Chip) -> ChipStory:
    """Pack the program, run it, count. The energy of this machine is that of the run, without compilation."""
    spikes = check_spikes(program, spikes)
    backend = open_backend("events", program)
    backend.run(spikes[:, :1], layers=True, states=True)  # compiles
    result, measured = measured_joules(lambda: backend.run(spikes, layers=True, states=True))
    placed = resources(program, chip)
    counts = count(program, spikes, result.layers, placed)
    return ChipStory(
        name=name,
        program=program,
        spikes=spikes,
        result=result,
        resources=placed,
        counts=counts,
        estimates=estimates(counts),
        measured=measured,
    )


def cores_of(placed: Resources, layer: str) -> list[int]:
    """The cores that hold a part of the layer, ascending."""
    return sorted({core for core, block in placed.placed if block.layer == layer})


def si(joules: float) -> str:
    """Joules with a prefix: 3.2e-6 is '3.20 uJ', with the sign of micro."""
    for prefix, size in (("", 1.0), ("m", 1e-3), ("\u00b5", 1e-6), ("n", 1e-9)):
        if joules >= size:
            return f"{joules / size:.3g}\u00a0{prefix}J"
    return f"{joules / 1e-12:.3g}\u00a0pJ"


def span(low: float, high: float) -> str:
    return si(low) if low == high else f"{si(low)} to {si(high)}"
