"""What a spike meets: the synapses between two layers, counted, and what a block of neurons needs of a core for them.

Counted by nengo-loihi's model of a Loihi core (`nengo_loihi/block.py`, `builder/connection.py`, `conv.py`, commit
e564f66; `docs/tips.rst`), which is the only public one:

- Dense: discrete axons. A core has one input axon for every neuron that it hears, a neuron one output axon for every
  block that it reaches. Each input axon has its own weights.
- Conv: population axons of type 32, nengo-loihi's default. All channels of a pixel share an axon and the channel
  travels along: a core has one input axon for every *pixel* that it hears, and a pixel takes 2 output axons for every
  block that it reaches. Pixels under which the same kernel taps lie, and whose first output is in the same span of
  256 positions, share one set of weights.
- Memory of n weights in a row (`SynapseConfig.bits_per_axon`): every 64 of them take 64 b + 10 bits, rounded up to
  words of 64. b = the layer's weight bits (a weight of 7 bits takes 8) + 6 delay bits in a layer with delays + index
  bits, which are ceil(log2(largest index + 1)), and at least 6 unless 0. A dense row is kept without indices and with
  its zeros, or as its nonzero weights with indices, whichever is smaller; a convolution's sets hold nonzero weights
  with indices.

For a convolution without zeros these are nengo-loihi's own numbers, as its code gives them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import numpy as np

from hw.program import Conv, Dense, Flatten, Input, Recurrent, Shape, SpikingProgram

DELAY_BITS = 6  # steps 0..63 [lava-nc]
WORD_BITS = 64  # of synapse memory [nengo-loihi: bits_per_memunit]
ROW_SYNAPSES, ROW_BITS = 64, 10  # synapses in one entry, and bits that the entry itself takes [nengo-loihi]
INDEX_BITS_MIN = 6  # [nengo-loihi: INDEX_BITS_MAP]
BASE_SPAN = 256  # positions that an axon's base can name [nengo-loihi: conv2d_loihi_weights]
POPULATION_SLOTS = 2  # output axons that a population axon of type 32 takes [nengo-loihi: Axon.slots_per_axon]

Box = tuple[slice, ...]
"""A block of neurons: a slice of each axis of its layer's shape."""


def row_bits(weights: np.ndarray, bits: int) -> np.ndarray:
    """Memory, in bits, of rows of so many weights of so many bits."""

    def words(n: np.ndarray) -> np.ndarray:
        return -(-(n * bits + ROW_BITS) // WORD_BITS) * WORD_BITS

    full, rest = np.divmod(weights, ROW_SYNAPSES)
    return full * words(np.array(ROW_SYNAPSES)) + np.where(rest > 0, words(rest), 0)


def held_bits(weight_bits: int) -> int:
    """Bits that a weight takes in memory, 1 to 6 or 8 [nengo-loihi: WEIGHT_BITS_MAP]."""
    return weight_bits + (weight_bits == 7)


def index_bits(largest: int) -> int:
    """Bits for indices 0..largest."""
    return max(INDEX_BITS_MIN, largest.bit_length()) if largest else 0


class Heard(ABC):
    """Which neurons of a source a block hears."""

    @abstractmethod
    def grid(self) -> np.ndarray:
        """bool, of the source's shape."""

    @abstractmethod
    def slots(self, box: Box) -> int:
        """Output axons that the source's block `box` needs to reach it."""


@dataclass(frozen=True, eq=False)
class HeardNeurons(Heard):
    """neurons: bool, of the source's shape."""

    neurons: np.ndarray

    def grid(self) -> np.ndarray:
        return self.neurons

    def slots(self, box: Box) -> int:
        return int(self.neurons[box].sum())


@dataclass(frozen=True, eq=False)
class HeardPixels(Heard):
    """channels, rows, columns: bool [C], [H], [W] of the source."""

    channels: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    def grid(self) -> np.ndarray:
        return self.channels[:, None, None] & self.rows[:, None] & self.columns

    def slots(self, box: Box) -> int:
        pixels = int(self.rows[box[1]].sum()) * int(self.columns[box[2]].sum())
        return POPULATION_SLOTS * pixels * bool(self.channels[box[0]].any())


@dataclass(frozen=True, eq=False)
class Needs:
    """What a block takes of its core for one of its sources."""

    axons: int
    bits: int
    heard: Heard


class Links(ABC):
    """All synapses from one source to one layer. source: a layer's name, None for the host's input."""

    source: str | None
    macs: int
    """Multiplications of the same layer in a dense network, once."""

    @abstractmethod
    def fan_out(self) -> np.ndarray:
        """int64, of the source's shape: nonzero weights that a spike of each neuron meets, padding excluded."""

    @abstractmethod
    def needs(self, box: Box) -> Needs: ...


class DenseLinks(Links):
    def __init__(self, source: str | None, shape: Shape, weight: np.ndarray, bits: int, delays: bool) -> None:
        """shape: the source's. weight: [out, in]. bits: of one weight."""
        self.source, self.shape, self.macs = source, shape, weight.size
        self.used = weight != 0
        self.bits = held_bits(bits) + DELAY_BITS * delays

    def fan_out(self) -> np.ndarray:
        return self.used.sum(0).reshape(self.shape)

    def needs(self, box: Box) -> Needs:
        used = self.used[box]
        weights, neurons = used.sum(0), len(used)
        weights = weights[weights > 0]
        listed = row_bits(weights, self.bits + index_bits(neurons - 1))
        in_full = row_bits(np.array(neurons), self.bits)
        heard = HeardNeurons(used.any(0).reshape(self.shape))
        return Needs(len(weights), int(np.minimum(listed, in_full).sum()), heard)


class ConvLinks(Links):
    def __init__(self, source: str | None, shape: Shape, layer: Conv) -> None:
        self.source, self.shape, self.layer = source, shape, layer
        self.out = layer.output_shape(shape)
        self.used = layer.weight_int != 0  # [out, in / groups, kH, kW]
        self.macs = self.used[0].size * prod(self.out)

    def _landing(self, axis: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Along y (axis 0) or x (1), for outputs low..high-1: bool [size, k], whether input i under tap k meets one of
        them; and the first and the last that each input meets, counted from `low` (meaningless where it meets none)."""
        layer, taps = self.layer, np.arange(self.used.shape[2 + axis])
        place = np.arange(self.shape[1 + axis])[:, None] + layer.padding[axis] - layer.dilation[axis] * taps
        output, off_stride = np.divmod(place, layer.stride[axis])
        meets = (off_stride == 0) & (output >= low) & (output < high)
        return meets, np.where(meets, output, high).min(1) - low, np.where(meets, output, low).max(1) - low

    def fan_out(self) -> np.ndarray:
        groups = self.used.reshape(self.layer.groups, -1, *self.used.shape[1:])
        weights = groups.sum(1).reshape(-1, *self.used.shape[2:])  # [in, kH, kW]
        rows, columns = (self._landing(axis, 0, self.out[1 + axis])[0].astype(np.int64) for axis in (0, 1))
        return np.einsum("cij,yi,xj->cyx", weights, rows, columns, optimize=True)

    def needs(self, box: Box) -> Needs:
        channels, height, width = (range(*part.indices(n)) for part, n in zip(box, self.out, strict=True))
        landing = [self._landing(axis, part.start, part.stop) for axis, part in enumerate((height, width))]
        heard_rows, heard_columns = (np.any(meets, axis=1) for meets, _, _ in landing)
        (rows, top, bottom), (columns, left, right) = (
            [values[heard] for values in each] for each, heard in zip(landing, (heard_rows, heard_columns), strict=True)
        )
        weights = self.used[box[0]].sum((0, 1))  # [kH, kW]
        under = rows.astype(np.int64) @ weights @ columns.T.astype(np.int64)
        spans = (top[:, None] * len(width) + left) // BASE_SPAN
        extent = (bottom - top)[:, None] * len(width) + right - left
        largest = spans * BASE_SPAN + (len(channels) - 1) * len(height) * len(width) + extent
        kinds = np.broadcast_arrays(_kinds(rows)[:, None], _kinds(columns), spans)
        _, sets = np.unique(np.stack(kinds).reshape(3, -1), axis=1, return_index=True)
        bits = row_bits(
            under.reshape(-1)[sets], held_bits(self.layer.weight_bits) + index_bits(int(largest.max(initial=0)))
        ).sum()
        heard = HeardPixels(self._heard_channels(channels), heard_rows, heard_columns)
        return Needs(len(rows) * len(columns), int(bits), heard)

    def _heard_channels(self, channels: range) -> np.ndarray:
        heard = np.zeros((self.layer.groups, self.used.shape[1]), bool)
        heard[np.unique(np.array(channels) // (self.out[0] // self.layer.groups))] = True
        return heard.reshape(-1)


def _kinds(patterns: np.ndarray) -> np.ndarray:
    """A number for every row of a bool array, the same for the same rows."""
    return np.unique(patterns, axis=0, return_inverse=True)[1].reshape(-1)


def links_of(program: SpikingProgram) -> dict[str, list[Links]]:
    """The synapses into every layer with neurons, by its name: from the layer before, and from itself where it is
    recurrent. An `Input` layer has none, the host writes to its biases."""
    links: dict[str, list[Links]] = {}
    source, shape = None, program.input_shape
    for layer in program.layers:
        if isinstance(layer, Flatten):
            continue
        if isinstance(layer, Conv):
            links[layer.name] = [] if isinstance(layer, Input) else [ConvLinks(source, shape, layer)]
        elif isinstance(layer, Dense):
            delays = bool(layer.delay.any())
            links[layer.name] = [DenseLinks(source, shape, layer.weight_int, layer.weight_bits, delays)]
            if isinstance(layer, Recurrent):
                own = (layer.channels,)
                links[layer.name].append(DenseLinks(layer.name, own, layer.weight_rec_int, layer.weight_bits, False))
        source, shape = layer.name, program.shapes[layer.name]
    return links
