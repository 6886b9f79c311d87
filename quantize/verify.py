"""Compare spikes at the joints of the line. The number that counts is *mismatching spikes*, and it is 0 or there is a
bug."""

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ashnets.stack import layer_spikes
from hw.errors import BackendError, RefusedError
from hw.exchange.formats import FORMATS, Sample, difference
from hw.program import SpikingProgram
from hw.simulate import Backend, open_backend
from hw.simulate.base import check_spikes
from quantize.lower import lower
from quantize.qat import QuantizedStack

Spikes = Mapping[str, np.ndarray]
FLOAT = "float"
RUNTIMES: dict[str, int | None] = {
    FLOAT: None,
    "qat": None,
    "reference": None,
    "events": None,
    "batched": None,
    "qcdq": None,
    "qcdq-scan": None,
    "nir": None,
    "netx": None,
    "qonnx": 64,
    "lava": 64,
}
"""Every way to run a network, and how many samples of it (None: all). A name of `hw.exchange.formats.FORMATS` is the
file of that format, written, read back and run by what it is for."""


@dataclass(frozen=True, kw_only=True)
class Joint:
    """left and right: names of two ways to run the same stack. mismatches and compared: spikes (time steps x neurons
    x samples) by layer. integers: both hold the same ones; None where the left holds none. refused: why the left cannot
    hold the network at all; nothing was compared then."""

    left: str
    right: str
    samples: int
    mismatches: dict[str, int]
    compared: dict[str, int]
    integers: bool | None = True
    refused: str | None = None

    @property
    def total(self) -> int:
        return sum(self.mismatches.values())

    @property
    def output_equal(self) -> bool | None:
        """Whether every spike of the last layer is equal; None where none was compared."""
        return not list(self.mismatches.values())[-1] if self.samples else None

    @property
    def well(self) -> bool:
        """No mismatch, or one that is only there to be seen. Nothing compared is not well, but for a network that the
        left cannot hold."""
        compared = bool(self.samples or self.refused)
        return self.left == FLOAT or (compared and not self.total and self.integers is not False)


def mismatching_spikes(left: Spikes, right: Spikes) -> dict[str, int]:
    """Number of unequal spikes of each layer. Both sides must hold the same layers in the same shapes."""
    if list(left) != list(right):
        raise BackendError(f"the two sides recorded different layers: {list(left)} and {list(right)}")
    counts = {}
    for name, a in left.items():
        b = right[name]
        if a.shape != b.shape:
            raise BackendError(f"layer '{name}': the two sides have shapes {a.shape} and {b.shape}")
        counts[name] = int(np.count_nonzero(a != b))
    return counts


def verify(
    program: SpikingProgram,
    batches: Iterable[Tensor],
    runtimes: Mapping[str, int | None] = RUNTIMES,
    *,
    stack: QuantizedStack | None = None,
    floats: nn.Module | None = None,
    keys: Path | None = None,
) -> list[Joint]:
    """Every layer's spikes of each runtime against the reference, over the batches of input spikes [T, B, ...].

    runtimes: names of `RUNTIMES` or of backends, or addresses of workers with their keys, each with how many samples
    it runs. 'qat' is `stack` and 'float' is `floats`, left out where they are not given.
    """
    given = {"qat": stack, FLOAT: floats}
    wanted = {name: limit for name, limit in runtimes.items() if name not in given or given[name] is not None}
    reference = open_backend("reference", program)
    with ExitStack() as cleanup:
        ways = {name: _Way(name, program, given.get(name), keys, cleanup) for name in wanted}
        for s_in in batches:
            spikes = check_spikes(program, s_in.detach().cpu().numpy())
            truth = reference.run(spikes, layers=True).layers
            for name, limit in wanted.items():
                ways[name].compare(s_in, spikes, truth, limit)
            if all(limit is not None and ways[name].samples >= limit for name, limit in wanted.items()):
                break
    return [way.joint() for way in ways.values()]


class _Way:
    """One runtime, and what it gave so far."""

    def __init__(
        self, name: str, program: SpikingProgram, module: nn.Module | None, keys: Path | None, cleanup: ExitStack
    ) -> None:
        self.name, self.module, self.samples = name, module, 0
        self.backend: Backend | None = None
        self.refused: str | None = None
        self.integers: bool | None = None if name == FLOAT else True
        layers = [layer.name for layer in program.synaptic]
        self.mismatches, self.compared = dict.fromkeys(layers, 0), dict.fromkeys(layers, 0)
        if isinstance(module, QuantizedStack):
            self.integers = difference(lower(module), program) is None
        elif name in FORMATS:
            self._through_file(program)
        elif module is None:
            try:
                self.backend = open_backend(name, program, keys)
            except RefusedError as error:
                self.refused, self.integers = str(error), None
        if close := getattr(self.backend, "close", None):
            cleanup.callback(close)

    def _through_file(self, program: SpikingProgram) -> None:
        kind = FORMATS[self.name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / kind.file
            try:
                kind.write(program, path)
            except RefusedError as error:
                self.refused, self.integers = str(error), None
                return
            found = kind.read(path, Sample.of(program))
        self.integers = difference(program, found) is None
        self.backend = open_backend(kind.runtime, found)

    def compare(self, s_in: Tensor, spikes: np.ndarray, truth: Spikes, limit: int | None) -> None:
        room = spikes.shape[1] if limit is None else min(limit - self.samples, spikes.shape[1])
        if self.refused or room <= 0:
            return
        self.samples += room
        expected = {name: values[:, :room] for name, values in truth.items()}
        for layer, count in mismatching_spikes(self._run(s_in[:, :room], spikes[:, :room], expected), expected).items():
            self.mismatches[layer] += count
            self.compared[layer] += expected[layer].size

    def _run(self, s_in: Tensor, spikes: np.ndarray, expected: Spikes) -> Spikes:
        if self.module is not None:
            with torch.no_grad():
                return {name: values.cpu().numpy() for name, values in layer_spikes(self.module, s_in).items()}
        assert self.backend is not None
        found = self.backend.run(spikes, layers=True).layers
        return dict(zip(expected, found.values(), strict=True))  # a .net file does not hold the layers' names

    def joint(self) -> Joint:
        return Joint(
            left=self.name,
            right="reference",
            samples=self.samples,
            mismatches=self.mismatches,
            compared=self.compared,
            integers=self.integers,
            refused=self.refused,
        )
