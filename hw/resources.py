"""What a program takes of a chip: cores filled by a real packing, and what does not fit.

Every layer is cut into blocks, boxes of equal size along its axes, as few as meet every limit of one core. A block has

    neurons,   input axons = sum over its sources,   output axons = sum over the blocks that hear it,   synapse bits

by the model of `hw.connections`; the last layer's neurons have one output axon each, to the host. Layers are cut from
the last to the first, since a layer's output axons follow from the blocks behind it. Then first-fit decreasing: blocks
in falling order of their largest share of a core, each into the first core where all four sums stay within the limits.
Blocks of one layer on one core share nothing in this count, so that it errs upward.

A layer of which not even one neuron fits into a core is reported, and not placed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from hw.chips import RESOURCES, Chip
from hw.connections import Box, Heard, Links, links_of
from hw.program import Input, Shape, SpikingProgram

NEURONS, IN_AXONS, OUT_AXONS, BITS = range(4)


@dataclass(frozen=True, eq=False)
class Block:
    """needs: int64 [4], in the order of `RESOURCES`. heard: by source (None is the host), the neurons that it hears."""

    layer: str
    box: Box
    needs: np.ndarray
    heard: dict[str | None, Heard]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerResources:
    """needs: sums over the layer's blocks, in the order of `RESOURCES`. cores: int64, of the layer's shape, the core
    of every neuron, -1 where the layer is not placed."""

    name: str
    synapses: int
    needs: np.ndarray
    blocks: int
    cores: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A limit that a program breaks. what: one of `RESOURCES` where one neuron alone breaks it."""

    layer: str
    what: str
    value: int
    limit: int
    source: str
    fix: str

    def __str__(self) -> str:
        found = f"layer '{self.layer}': {self.what} {self.value:,}, the chip holds {self.limit:,} ({self.source})"
        return f"{found}; {self.fix}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Resources:
    """loads: int64 [cores, 4], what each core holds, in the order of `RESOURCES`. placed: (core, block)."""

    chip: Chip
    layers: dict[str, LayerResources]
    loads: np.ndarray
    placed: tuple[tuple[int, Block], ...]
    misfits: tuple[Misfit, ...]

    @property
    def cores(self) -> int:
        return len(self.loads)

    @property
    def chips(self) -> int:
        return -(-self.cores // self.chip.cores)

    @property
    def utilisation(self) -> np.ndarray:
        """float [cores, 4]: shares of the limits."""
        return self.loads / self.chip.values


def resources(program: SpikingProgram, chip: Chip) -> Resources:
    """Cut, pack, and report."""
    links, shapes = links_of(program), program.shapes
    blocks: dict[str, list[Block]] = {}
    misfits = (
        [] if chip.graded or not program.input_bits or isinstance(program.layers[0], Input) else [_graded(program)]
    )
    behind: str | None = None
    for layer in reversed(program.synaptic):
        name = layer.name
        hearing = None if behind is None else [block.heard[name] for block in blocks[behind]]
        cutter = _Cutter(name, shapes[name], links[name], hearing)
        blocks[name], worst = cutter.cut(chip)
        misfits += _misfits(name, worst, chip) if worst is not None else []
        behind = name
    unplaced = {misfit.layer for misfit in misfits if misfit.what in RESOURCES}
    in_order = [block for layer in program.synaptic for block in blocks[layer.name] if layer.name not in unplaced]
    cores = pack(np.array([block.needs for block in in_order]).reshape(-1, 4), chip.values)
    loads = np.zeros((cores.max(initial=-1) + 1, 4), np.int64)
    np.add.at(loads, cores, np.array([block.needs for block in in_order]).reshape(-1, 4))
    placed = tuple(zip(cores.tolist(), in_order, strict=True))
    layers = {}
    for layer in program.synaptic:
        grid = np.full(shapes[layer.name], -1, np.int64)
        for core, block in placed:
            if block.layer == layer.name:
                grid[block.box] = core
        layers[layer.name] = LayerResources(
            name=layer.name,
            synapses=sum(int(link.fan_out().sum()) for link in links[layer.name]),
            needs=np.sum([block.needs for block in blocks[layer.name]], axis=0),
            blocks=len(blocks[layer.name]),
            cores=grid,
        )
    return Resources(chip=chip, layers=layers, loads=loads, placed=placed, misfits=tuple(misfits))


class _Cutter:
    """Finds the fewest equal blocks of one layer that each fit into a core."""

    def __init__(self, name: str, shape: Shape, links: list[Links], hearing: list[Heard] | None) -> None:
        """hearing: by each block of the layer behind, None behind the last layer."""
        self.name, self.shape, self.links, self.hearing = name, shape, links, hearing

    def cut(self, chip: Chip) -> tuple[list[Block], np.ndarray | None]:
        """(blocks, None), or the whole layer as one block and the needs of its hungriest neuron."""
        for size in self._sizes(int(chip.values[NEURONS])):
            found = self._blocks(size, chip.values)
            if found is not None:
                return found, None
        unlimited = np.full(4, np.iinfo(np.int64).max)
        single = self._blocks((1,) * len(self.shape), unlimited) or []
        whole = self._blocks(self.shape, unlimited) or []
        return whole, np.max([block.needs for block in single], axis=0)

    def _sizes(self, neurons: int) -> list[Shape]:
        """Block shapes of at most so many neurons, those that make the fewest blocks first; among them those that cut
        channels before rows and columns, since then a kernel is stored once."""
        axes = [sorted({-(-n // parts) for parts in range(1, n + 1)}) for n in self.shape]
        sizes = [size for size in product(*axes) if prod(size) <= neurons]

        def rank(size: Shape) -> tuple[int, int]:
            parts = [-(-n // part) for n, part in zip(self.shape, size, strict=True)]
            return prod(parts), prod(parts[1:])

        return sorted(sizes, key=rank)

    def _boxes(self, size: Shape) -> Iterator[Box]:
        starts = (range(0, n, part) for n, part in zip(self.shape, size, strict=True))
        for corner in product(*starts):
            yield tuple(
                slice(start, min(start + part, n)) for start, part, n in zip(corner, size, self.shape, strict=True)
            )

    def _blocks(self, size: Shape, limits: np.ndarray) -> list[Block] | None:
        """The layer in blocks of that shape, None where one of them breaks a limit."""
        found = []
        for box in self._boxes(size):
            parts = {link.source: link.needs(box) for link in self.links}
            neurons = prod(part.stop - part.start for part in box)
            in_axons, bits = (sum(getattr(part, key) for part in parts.values()) for key in ("axons", "bits"))
            needs = np.array([neurons, in_axons, 0, bits], np.int64)
            if np.any(needs > limits):
                return None
            found.append(Block(self.name, box, needs, {source: part.heard for source, part in parts.items()}))
        own = [block.heard[self.name] for block in found if self.name in block.heard]
        for block in found:
            to_host = block.needs[NEURONS] if self.hearing is None else 0
            block.needs[OUT_AXONS] = to_host + sum(heard.slots(block.box) for heard in (self.hearing or []) + own)
            if block.needs[OUT_AXONS] > limits[OUT_AXONS]:
                return None
        return found


def pack(needs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """First-fit decreasing in all resources at once: needs int64 [blocks, R], limits [R] -> core of each block.

    Each block alone fits. Cores are numbered in the order of their first blocks.
    """
    cores = np.full(len(needs), -1)
    free = np.zeros((0, needs.shape[1]), np.int64)
    for block in np.argsort(-(needs / limits).max(1, initial=0), kind="stable"):
        fitting = np.flatnonzero((free >= needs[block]).all(1))
        if not fitting.size:
            free = np.vstack([free, limits])
        cores[block] = fitting[0] if fitting.size else len(free) - 1
        free[cores[block]] -= needs[block]
    _, first, numbers = np.unique(cores, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]


def _misfits(name: str, worst: np.ndarray, chip: Chip) -> list[Misfit]:
    """worst: the most that one neuron alone needs of each resource."""
    fixes = ("", "prune its inputs", "make the layer behind it smaller", "prune its inputs")
    over = [
        Misfit(
            layer=name,
            what=limit.what,
            value=int(value),
            limit=limit.value,
            source=limit.source,
            fix=f"one neuron needs so many; {fix}",
        )
        for limit, value, fix in zip(chip.limits, worst, fixes, strict=True)
        if value > limit.value
    ]
    # A recurrent layer cut into single neurons needs output axons that it would not need if it fitted.
    return [misfit for misfit in over if misfit.what != RESOURCES[OUT_AXONS]] or over


def _graded(program: SpikingProgram) -> Misfit:
    return Misfit(
        layer=program.synaptic[0].name,
        what="bits of a graded input spike",
        value=program.input_bits,
        limit=1,
        source="Davies et al. 2018: Loihi 1 sends binary spikes",
        fix="encode the input as binary spikes, or take loihi2",
    )
