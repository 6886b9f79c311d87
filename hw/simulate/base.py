"""What every simulator looks like, and the registry of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import NamedTuple, Protocol

import numpy as np

from hw.errors import UserError
from hw.program import SpikingProgram


class LayerState(NamedTuple):
    """What a layer remembers between two steps: u and v [B, channels, ...], the input spikes that still wait in its
    delays [longest delay, B, in], the last output spikes [B, channels, ...]. All int64."""

    u: np.ndarray
    v: np.ndarray
    waiting: np.ndarray
    last: np.ndarray


State = dict[str, LayerState]
"""States of all layers with neurons, by name: where a stream goes on. `{}` is the start, all zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """`output`: uint8 spikes [T, B, ...] of the last layer. If asked for: `layers`, the same of every layer with
    neurons, by name; `u` and `v` of each, int64, as they are at the end of a step; `state`, to go on from."""

    output: np.ndarray
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    u: dict[str, np.ndarray] = field(default_factory=dict)
    v: dict[str, np.ndarray] = field(default_factory=dict)
    state: State = field(default_factory=dict)


class Backend(Protocol):
    """Runs one program. `run` takes spikes [T, B, *input_shape], see `check_spikes`.

    Without `state`, T is the program's and each sample starts from zero states. With one, the spikes are the next piece
    of B streams, of any length, and the result's `state` is where it ended; not every backend can.
    """

    name: str

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result: ...


BACKENDS: dict[str, str] = {
    "reference": "hw.simulate.reference:ReferenceBackend",
    "events": "hw.simulate.events:EventsBackend",
    "batched": "hw.simulate.batched:BatchedBackend",
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


def check_spikes(program: SpikingProgram, spikes: np.ndarray, *, stream: bool = False) -> np.ndarray:
    """The spikes as uint8, or as int32 where they are graded; `UserError` where they do not fit the program.

    stream: any T will do.
    """
    steps_fit = spikes.ndim > 0 and (stream or spikes.shape[0] == program.steps)
    if spikes.ndim < 2 or not spikes.shape[0] or not steps_fit or spikes.shape[2:] != program.input_shape:
        expected = ("T" if stream else f"T={program.steps}", "B", *map(str, program.input_shape))
        raise UserError(f"input spikes have shape {spikes.shape}, the program takes ({', '.join(expected)})")
    if spikes.dtype == bool:
        return spikes.astype(np.uint8)
    if program.input_bits:
        limit = 1 << program.input_bits
        if spikes.dtype.kind not in "iu" or spikes.max(initial=0) >= limit or spikes.min(initial=0) <= -limit:
            raise UserError(
                f"input spikes are {spikes.dtype} in [{spikes.min(initial=0)}, {spikes.max(initial=0)}], the program "
                f"takes integers of {program.input_bits} bits, [{1 - limit}, {limit - 1}]; rescale them"
            )
        return spikes.astype(np.int32)
    if np.any((spikes != 0) & (spikes != 1)):
        raise UserError("input spikes hold values other than 0 and 1; encode them as spikes first")
    return spikes.astype(np.uint8)


def check_state(program: SpikingProgram, state: State, samples: int) -> None:
    """`UserError` where a state is not one of this program and batch. `{}` fits all."""
    for layer in program.synaptic:
        shape = (samples, *program.shapes[layer.name])
        if state and (layer.name not in state or state[layer.name].u.shape != shape):
            found = state[layer.name].u.shape if layer.name in state else "nothing"
            raise UserError(
                f"layer '{layer.name}': the state holds {found}, {samples} streams need {shape}; start with state={{}}"
            )
