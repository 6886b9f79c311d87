"""Compare spikes at the joints of the line. The number that counts is *mismatching spikes*, and it is 0 or there is a
bug."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ashnets.stack import layer_spikes
from hw.errors import BackendError
from hw.program import SpikingProgram
from hw.simulate import open_backend
from quantize.qat import QuantizedStack

Spikes = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Joint:
    """left and right: names of two ways to run the same stack. mismatches and compared: spikes (time steps x neurons
    x samples) by layer."""

    left: str
    right: str
    samples: int
    mismatches: dict[str, int]
    compared: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.mismatches.values())


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
    stack: QuantizedStack,
    program: SpikingProgram,
    batches: Iterable[torch.Tensor],
    runtimes: tuple[str, ...],
    keys: Path | None = None,
) -> list[Joint]:
    """Every layer's spikes of each runtime against the reference, over all batches of input spikes [T, B, ...].

    runtimes: 'qat' for `stack` itself, else names of backends of `program`, or addresses of workers with their keys.
    """
    reference = open_backend("reference", program)
    backends = {name: open_backend(name, program, keys) for name in runtimes if name != "qat"}
    mismatches = {name: dict.fromkeys((layer.name for layer in program.synaptic), 0) for name in runtimes}
    compared = dict.fromkeys((layer.name for layer in program.synaptic), 0)
    samples = 0
    for s_in in batches:
        samples += s_in.shape[1]
        spikes = s_in.detach().cpu().numpy().astype(np.uint8)
        truth = reference.run(spikes, layers=True).layers
        for name, values in truth.items():
            compared[name] += values.size
        for name in runtimes:
            if name == "qat":
                with torch.no_grad():
                    found = {k: v.cpu().numpy() for k, v in layer_spikes(stack, s_in).items()}
            else:
                found = backends[name].run(spikes, layers=True).layers
            for layer, count in mismatching_spikes(found, truth).items():
                mismatches[name][layer] += count
    return [
        Joint(left=name, right="reference", samples=samples, mismatches=mismatches[name], compared=dict(compared))
        for name in runtimes
    ]
