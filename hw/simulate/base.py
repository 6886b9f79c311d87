"""What every simulator looks like, and the registry of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol

import numpy as np

from hw.errors import UserError
from hw.program import SpikingProgram


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """`output`: uint8 spikes [T, B, ...] of the last layer. `layers`: the same of every layer with neurons, by name,
    if asked for."""

    output: np.ndarray
    layers: dict[str, np.ndarray] = field(default_factory=dict)


class Backend(Protocol):
    """Runs one program. `run` takes uint8 spikes [T, B, *input_shape] in {0, 1}; each sample starts from zero
    states."""

    name: str

    def run(self, spikes: np.ndarray, *, layers: bool = False) -> Result: ...


BACKENDS: dict[str, str] = {
    "reference": "hw.simulate.reference:ReferenceBackend",
    "lava": "hw.lava.backend:LavaBackend",
}
"""Name -> `module:class`. The class takes the program; its module is imported when it is opened."""


def open_backend(name: str, program: SpikingProgram) -> Backend:
    """The backend `name` holding `program`; `UserError` for a name that is not there."""
    if name not in BACKENDS:
        raise UserError(f"backend '{name}' is not known; choose one of {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    make: Callable[[SpikingProgram], Backend] = getattr(import_module(module), attribute)
    return make(program)


def check_spikes(program: SpikingProgram, spikes: np.ndarray) -> np.ndarray:
    """The spikes as uint8, or `UserError` where they do not fit the program."""
    if spikes.ndim < 2 or spikes.shape[0] != program.steps or spikes.shape[2:] != program.input_shape:
        expected = ("T=" + str(program.steps), "B", *program.input_shape)
        raise UserError(f"input spikes have shape {spikes.shape}, the program takes ({', '.join(map(str, expected))})")
    if spikes.dtype == bool:
        return spikes.astype(np.uint8)
    if np.any((spikes != 0) & (spikes != 1)):
        raise UserError("input spikes hold values other than 0 and 1; encode them as spikes first")
    return spikes.astype(np.uint8)
