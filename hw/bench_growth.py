"""How the cost of a step grows: with neurons, synapses, density, batch and T, one at a time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hw.bench import SIMULATORS, Case, dense_program, us_per_step
from hw.simulate import open_backend


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What varies, over which values; `case` of a value. what: the rest of the network, in words."""

    name: str
    what: str
    values: tuple[float, ...]
    case: Callable[[float], Case]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """us per sample and step of each simulator, for each value."""

    sweep: Sweep
    us: dict[str, list[float]]


def _dense(inputs: int, out: int, *, steps: int = 16, batch: int = 16, density: float = 0.1) -> Case:
    program = dense_program((inputs, out), steps)
    return Case(name=f"dense {inputs}-{out}", program=program, batch=batch, density=density)


SWEEPS = (
    Sweep(
        name="neurons",
        what="16 inputs, silent: neuron updates alone",
        values=(64, 256, 1024, 4096, 16384),
        case=lambda n: _dense(16, int(n), density=0.0),
    ),
    Sweep(
        name="synapses",
        what="256 neurons, 10 % of the inputs spike",
        values=(2**14, 2**16, 2**18, 2**20, 2**22),
        case=lambda n: _dense(int(n) // 256, 256),
    ),
    Sweep(
        name="density",
        what="dense 1024-256, share of the inputs that spikes",
        values=(0.002, 0.01, 0.05, 0.2, 1.0),
        case=lambda d: _dense(1024, 256, density=d),
    ),
    Sweep(
        name="batch",
        what="dense 256-256, 10 %, T = 16",
        values=(1, 4, 16, 64, 256),
        case=lambda n: _dense(256, 256, batch=int(n)),
    ),
    Sweep(
        name="T",
        what="dense 256-256, 10 %, batch 1",
        values=(4, 16, 64, 256, 1024),
        case=lambda n: _dense(256, 256, steps=int(n), batch=1),
    ),
)


def growth(sweeps: Iterable[Sweep] = SWEEPS, seconds: float = 0.2) -> list[Growth]:
    """Every sweep on every simulator; outputs are compared first."""
    found = []
    for sweep in sweeps:
        us: dict[str, list[float]] = {name: [] for name in SIMULATORS}
        for value in sweep.values:
            case = sweep.case(value)
            spikes = case.spikes()
            truth = open_backend("reference", case.program).run(spikes).output
            for name in SIMULATORS:
                us[name].append(us_per_step(name, case, spikes, truth, "those of 'reference'", seconds))
        found.append(Growth(sweep=sweep, us=us))
    return found
