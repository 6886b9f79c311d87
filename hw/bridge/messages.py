"""Programs, spikes and results as messages, and back with every shape checked."""

import json
from collections.abc import Iterator

import numpy as np

from hw.bridge.codec import Flags, FrameError, Kind, Message
from hw.errors import UserError
from hw.program import SpikingProgram
from hw.program_file import program_of, program_parts
from hw.simulate.base import LayerState, Result, State, initial_state


def open_message(program: SpikingProgram, session: int) -> Message:
    """The program for a worker: its structure and the names of its arrays, then the arrays."""
    spec, tensors = program_parts(program)
    text = json.dumps({"spec": spec, "names": list(tensors)}).encode()
    return Message(kind=Kind.OPEN, session=session, values=(text, *tensors.values()))


def program_from(message: Message) -> SpikingProgram:
    """The program of an `open_message`. Whether the chip could hold it is for the backend to say."""
    first, *arrays = message.values or (b"",)
    try:
        content = json.loads(first if isinstance(first, bytes) else b"")
        named = dict(zip(content["names"], arrays, strict=True))
        spec = content["spec"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FrameError(f"program: cannot be read ({type(error).__name__}: {error})") from error
    return program_of(spec, {name: _array(value) for name, value in named.items()}, "program")


def run_message(
    spikes: np.ndarray, state: State | None, *, layers: bool, states: bool, session: int, sequence: int
) -> Message:
    """state: None for whole samples, {} for the start of a stream."""
    flags = Flags.LAYERS * layers | Flags.STATES * states | Flags.STREAM * (state is not None)
    values = (spikes, *(array for layer in (state or {}).values() for array in layer))
    return Message(kind=Kind.RUN, session=session, sequence=sequence, flags=flags, values=values)


def run_from(message: Message, program: SpikingProgram) -> tuple[np.ndarray, State | None]:
    """(spikes, state) of a `run_message`."""
    _expect(len(message.values) > 0, "no spikes")
    spikes, *arrays = (_array(value) for value in message.values)
    if not message.flags & Flags.STREAM:
        _expect(not arrays, "a state without a stream")
        return spikes, None
    samples = spikes.shape[1] if spikes.ndim > 1 and spikes.size else 0
    return spikes, _state(arrays, program, samples) if arrays else {}


def result_message(result: Result, request: Message) -> Message:
    values = (
        result.output,
        *result.layers.values(),
        *result.u.values(),
        *result.v.values(),
        *(array for layer in result.state.values() for array in layer),
    )
    return Message(
        kind=Kind.RESULT, session=request.session, sequence=request.sequence, flags=request.flags, values=values
    )


def result_from(message: Message, program: SpikingProgram, steps: int, samples: int) -> Result:
    """The result of a `result_message` for spikes [steps, samples, ...]."""
    names = [layer.name for layer in program.synaptic]
    arrays = iter([_array(value) for value in message.values])

    def take(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        array = next(arrays, None)
        _expect(array is not None and array.shape == (steps, samples, *shape), f"expected [T, B, ...] of shape {shape}")
        assert array is not None
        return array.astype(dtype, copy=False)

    def of_layers(wanted: bool, dtype: type) -> dict[str, np.ndarray]:
        return {name: take(program.shapes[name], dtype) for name in names} if wanted else {}

    output = take(program.output_shape, np.uint8)
    layers = of_layers(bool(message.flags & Flags.LAYERS), np.uint8)
    u, v = (of_layers(bool(message.flags & Flags.STATES), np.int64) for _ in range(2))
    state = _state(list(arrays), program, samples) if message.flags & Flags.STREAM else {}
    _expect(next(arrays, None) is None, "more arrays than it should hold")
    for spikes in (output, *layers.values()):
        _expect(spikes.max(initial=0) <= 1, "spikes other than 0 and 1")
    return Result(output=output, layers=layers, u=u, v=v, state=state)


def _state(arrays: list[np.ndarray], program: SpikingProgram, samples: int) -> State:
    groups: Iterator[np.ndarray] = iter(arrays)
    _expect(len(arrays) == len(LayerState._fields) * len(program.synaptic), f"a state of {len(arrays)} arrays")
    state: State = {}
    for layer in program.synaptic:
        zero = initial_state(layer, samples, program.shapes[layer.name])
        found = [next(groups) for _ in zero]
        _expect(
            [a.shape for a in found] == [a.shape for a in zero],
            f"layer '{layer.name}' has a state of other shapes than {samples} streams",
        )
        state[layer.name] = LayerState(*(a.astype(np.int64) for a in found))
    return state


def _array(value: np.ndarray | bytes) -> np.ndarray:
    if isinstance(value, bytes):
        raise FrameError("message: holds a text where an array belongs")
    return value


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise FrameError(f"message: {what}")


def error_message(error: Exception, request: Message) -> Message:
    """A request's failure in words; `Flags.BAD_REQUEST` where its sender can mend it."""
    flags = Flags.BAD_REQUEST if isinstance(error, UserError) else 0
    text = f"{type(error).__name__}: {error}"[:8000].encode()
    return Message(kind=Kind.ERROR, session=request.session, sequence=request.sequence, flags=flags, values=(text,))
