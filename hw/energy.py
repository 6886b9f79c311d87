"""What a run costs: operations counted from its spikes, and joules under published models of each operation.

    synaptic operations = sum over sources of  spikes . fan-out       fan-out: nonzero weights that a spike meets
    neuron updates      = neurons T B
    messages            = spikes . number of cores that hear the neuron       hops = messages . tiles between the two
    joules              = sum over operations of  count . picojoules . 1e-12

Spikes are those of the input and of every layer, a recurrent layer's own included. A graded spike counts once. Delays
change no count: the weights are read when the spike arrives, also where the sample ends before they are heard.

Placement is simple: cores are filled in the order of the layers, four to a tile, tiles row by row, 8 x 4 of them to a
chip (as in SANA-FE's loihi.yaml), chips side by side; hops are the Manhattan distance of tiles. The host's input spikes
reach as many cores as hear them and cross no counted tile; the last layer's spikes are a message each, to the host.
What the host, the links between chips, and idle silicon cost is in no model here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hw.connections import links_of
from hw.program import SpikingProgram
from hw.resources import Resources

CORES_PER_TILE, TILES_ACROSS, TILES_DOWN = 4, 8, 4  # [SANA-FE loihi.yaml, of Davies et al. 2018]
MAC_PJ = 4.6  # 32-bit float multiply 3.7 and add 0.9, 45 nm [Horowitz 2014]
NO_LOIHI2 = (
    "Loihi 2 has no public table of energy per operation: the Loihi figures below are Loihi 1's, whatever chip the "
    "resources are counted for."
)


@dataclass(frozen=True, kw_only=True)
class LayerCounts:
    """Of all samples together, but macs: of the same layer in a dense network, one pass. messages, hops: None where a
    layer is not placed."""

    neurons: int
    spikes: int
    rate: float
    synops: int
    updates: int
    messages: int | None
    hops: int | None
    macs: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """graded: the synaptic operations that multiply, since the spike carries a number."""

    samples: int
    steps: int
    input_spikes: int
    input_rate: float
    input_messages: int | None
    graded: int
    layers: dict[str, LayerCounts]

    def total(self, key: str) -> int | None:
        """The sum over the layers, None where one of them is not known."""
        if key == "graded":
            return self.graded
        values = [getattr(layer, key) for layer in self.layers.values()]
        return None if None in values else sum(values)


def count(
    program: SpikingProgram, spikes: np.ndarray, layers: Mapping[str, np.ndarray], placed: Resources | None = None
) -> Counts:
    """spikes: input [T, B, ...]. layers: the spikes of every layer, `Result.layers`. placed: for messages and hops."""
    fired: dict[str | None, np.ndarray] = {None: (spikes != 0).sum((0, 1))}
    fired |= {name: (values != 0).sum((0, 1)) for name, values in layers.items()}
    steps, samples = spikes.shape[:2]
    counts, graded = {}, 0
    for name, links in links_of(program).items():
        synops = [int((fired[link.source] * link.fan_out()).sum()) for link in links]
        if program.input_bits and links and links[0].source is None:
            graded = synops[0]
        messages, hops = routes(program, placed, name) if placed else (None, None)
        counts[name] = LayerCounts(
            neurons=fired[name].size,
            spikes=int(fired[name].sum()),
            rate=float(fired[name].mean() / (steps * samples)),
            synops=sum(synops),
            updates=fired[name].size * steps * samples,
            messages=None if messages is None else int((fired[name] * messages).sum()),
            hops=None if hops is None else int((fired[name] * hops).sum()),
            macs=sum(link.macs for link in links),
        )
    heard = routes(program, placed, None)[0] if placed else None
    return Counts(
        samples=samples,
        steps=steps,
        input_spikes=int(fired[None].sum()),
        input_rate=float(fired[None].mean() / (steps * samples)),
        input_messages=None if heard is None else int((fired[None] * heard).sum()),
        graded=graded,
        layers=counts,
    )


def tile(core: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a core's tile."""
    chip, place = np.divmod(np.asarray(core) // CORES_PER_TILE, TILES_ACROSS * TILES_DOWN)
    return place % TILES_ACROSS + chip * TILES_ACROSS, place // TILES_ACROSS


def routes(
    program: SpikingProgram, placed: Resources, source: str | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(messages, hops) that one spike of each neuron of `source` makes: int64 of its shape. None where they are not
    known, since a layer is not placed."""
    if any(layer.cores.min() < 0 for layer in placed.layers.values()):
        return None, None
    shape = program.input_shape if source is None else program.shapes[source]
    heard: dict[int, np.ndarray] = {}
    for core, block in placed.placed:
        if source in block.heard:
            heard[core] = block.heard[source].grid() | heard.get(core, np.zeros(shape, bool))
    to_host = source == program.synaptic[-1].name
    messages, hops = np.full(shape, int(to_host), np.int64), np.zeros(shape, np.int64)
    here = tile(placed.layers[source].cores) if source is not None else None
    for core, grid in heard.items():
        messages += grid
        if here is not None:
            x, y = tile(core)
            hops += grid * (np.abs(here[0] - x) + np.abs(here[1] - y))
    return messages, hops


@dataclass(frozen=True, kw_only=True)
class EnergyModel:
    """pj: operation -> (low, high), picojoules each. An operation is a field of `LayerCounts`, or 'graded'."""

    name: str
    pj: dict[str, tuple[float, float]]
    source: str
    note: str


MODELS = (
    EnergyModel(
        name="Loihi 1, keras-spiking",
        pj={"synops": (23.6, 23.6 + 3.5), "updates": (81.0, 81.0)},
        source="keras-spiking model_energy.py (23.6 + 3.5 and 81 pJ), citing Davies et al. 2018",
        note="no messages; every neuron is updated at every step",
    ),
    EnergyModel(
        name="Loihi 1, SANA-FE",
        pj={
            "synops": (24.0, 35.5),  # loihi_conv_synapse .. loihi_dense_synapse
            "updates": (51.2, 51.2 + 21.6),  # access, and update of the neurons with input
            "spikes": (69.3, 69.3),
            "messages": (76.8, 111.0),  # 111.0 in the file, 76.8 until its commit 95a76c0
            "hops": (3.0, 4.2),  # east-west .. north-south
        },
        source="SANA-FE arch/loihi.yaml, commit 8951ab0, citing Davies et al. 2018; 76.8 pJ a message: before 95a76c0",
        note="SPICE-derived; input messages from the host are counted and not priced",
    ),
    EnergyModel(
        name="45 nm accumulates",
        pj={"synops": (0.9, 0.9), "graded": (MAC_PJ - 0.9, MAC_PJ - 0.9)},
        source="Horowitz, ISSCC 2014: 32-bit float add 0.9 pJ, multiply 3.7 pJ",
        note="arithmetic only: no neurons, memory or communication",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Joules per sample; None with a `note` that says why."""

    name: str
    low: float | None
    high: float | None
    source: str
    note: str


def estimates(counts: Counts) -> list[Estimate]:
    """A range under every model, and the same layers as a dense network, run once and at every step."""
    found = []
    for model in MODELS:
        totals = {key: counts.total(key) for key in model.pj}
        unknown = [key for key, value in totals.items() if value is None]
        low, high = (
            sum((totals[key] or 0) * pj[end] for key, pj in model.pj.items()) * 1e-12 / counts.samples for end in (0, 1)
        )
        note = f"not known: {' and '.join(unknown)} of a layer that is not placed" if unknown else model.note
        found.append(
            Estimate(
                name=model.name,
                low=None if unknown else low,
                high=None if unknown else high,
                source=model.source,
                note=note,
            )
        )
    macs, source = (counts.total("macs") or 0) * MAC_PJ * 1e-12, MODELS[-1].source
    dense = "every weight multiplied, spikes or not; arithmetic only"
    for times, when in ((1, "once"), (counts.steps, f"at each of {counts.steps} steps")):
        name = f"45 nm, dense network, {when}"
        found.append(Estimate(name=name, low=macs * times, high=macs * times, source=source, note=dense))
    return found
