"""What every simulator looks like, and the registry of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from math import isfinite
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from hw.errors import UserError
from hw.program import Conv, Dense, SpikingProgram


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
    program: SpikingProgram

    def run(
        self, spikes: np.ndarray, *, layers: bool = False, states: bool = False, state: State | None = None
    ) -> Result: ...


BACKENDS: dict[str, str] = {
    "auto": "hw.simulate.auto:AutoBackend",
    "reference": "hw.simulate.reference:ReferenceBackend",
    "events": "hw.simulate.events:EventsBackend",
    "batched": "hw.simulate.batched:BatchedBackend",
    "lava": "hw.lava.backend:LavaBackend",
    "loihi2": "hw.lava.backend:Loihi2Backend",
    "onnx-step": "hw.exchange.onnx_backends:StepBackend",
    "onnx-scan": "hw.exchange.onnx_backends:ScanBackend",
    "qonnx": "hw.exchange.onnx_backends:QonnxBackend",
    "imperfect": "hw.simulate.imperfect:ImperfectBackend",
}
"""Name -> `module:class`. The class takes the program and, as keywords declared `float`, numbers that stand behind the
name: "imperfect:dead=0.1,seed=3". Its module is imported when it is opened."""


def check_backend(name: str, others: tuple[str, ...] = ()) -> str:
    """The name itself, if there is such a backend or it is one of `others`; `UserError` else."""
    if name not in others and name.partition(":")[0] not in BACKENDS and "://" not in name:
        raise UserError(
            f"backend '{name}' is not known; choose one of {', '.join((*others, *BACKENDS))}, or addresses of workers "
            "(tcp://HOST:PORT,...)"
        )
    return name


def open_backend(name: str, program: SpikingProgram, keys: Path | None = None) -> Backend:
    """The backend `name` holding `program`. Addresses, separated by commas, are workers (`hw.bridge.worker`); keys is
    the folder of keys to reach them with."""
    check_backend(name)
    try:
        return _opened(name, program, keys)
    except ModuleNotFoundError as error:
        raise UserError(
            f"backend '{name}' needs the package '{error.name}', which is not installed; 'ashnets doctor' tells all "
            "that are missing"
        ) from error


def _opened(name: str, program: SpikingProgram, keys: Path | None) -> Backend:
    if "://" in name:
        from hw.bridge.keys import load_keys
        from hw.bridge.remote import RemoteBackend

        return RemoteBackend(program, name.split(","), keys=load_keys(keys, "client") if keys else None)
    kind, _, text = name.partition(":")
    module, _, attribute = BACKENDS[kind].partition(":")
    make: Callable[..., Backend] = getattr(import_module(module), attribute)
    options = [key for key, item in signature(make).parameters.items() if item.annotation is float]
    try:
        numbers = {key: float(value) for key, _, value in (part.partition("=") for part in text.split(",") if part)}
    except ValueError as error:
        raise UserError(f"backend '{name}': {error}; give NAME or NAME:KEY=NUMBER,...") from error
    for key, number in numbers.items():
        if key not in options or not isfinite(number):
            takes = ", ".join(f"{option}=NUMBER" for option in options) or "no options"
            raise UserError(f"backend '{name}': has no {key}={number:g}, it takes {takes}")
    return make(program, **numbers)


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
    valid = spikes.max(initial=0) <= 1 if spikes.dtype == np.uint8 else np.isin(spikes, (0, 1)).all()
    if not valid:
        raise UserError("input spikes hold values other than 0 and 1; encode them as spikes first")
    return spikes.astype(np.uint8, copy=False)


def check_state(program: SpikingProgram, state: State, samples: int) -> None:
    """`UserError` where a state is not one of this program and batch. `{}` fits all."""
    for layer in program.synaptic if state else ():
        if layer.name not in state:
            raise UserError(f"layer '{layer.name}': the state holds nothing for it; start with state={{}}")
        expected = initial_state(layer, samples, program.shapes[layer.name])
        for key, found, zero in zip(LayerState._fields, state[layer.name], expected, strict=True):
            if found.shape != zero.shape:
                raise UserError(
                    f"layer '{layer.name}': the state's {key} has shape {found.shape}, {samples} streams need "
                    f"{zero.shape}; start with state={{}}"
                )


def refuse_streams(backend: str, state: State | None) -> None:
    """`UserError` for a backend that runs whole samples only and is asked to go on from a state."""
    if state is not None:
        raise UserError(f"backend '{backend}' runs whole samples only; choose another for streams that go on")


def initial_state(layer: Conv | Dense, samples: int, shape: tuple[int, ...]) -> LayerState:
    """All zero. shape: the layer's output of one sample."""
    zero = np.zeros((samples, *shape), np.int64)
    inputs = layer.weight_int.shape[1] if isinstance(layer, Dense) else 0
    longest = int(layer.delays[-1]) if isinstance(layer, Dense) else 0
    return LayerState(u=zero, v=zero, waiting=np.zeros((longest, samples, inputs), np.int64), last=zero)
