"""A program on disk: a folder with `program.json` (structure), `weights.safetensors` (integers) and a manifest with
their hashes."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hw.artifact import open_artifact, read_json, staged_artifact, write_json
from hw.errors import UserError
from hw.program import Conv, Dense, Flatten, Input, Layer, Recurrent, SpikingProgram
from hw.validate import validate

KIND = "program"
_LATER = ("delay", "weight_bits", "scale_exp")  # which older files do not hold
_LAYERS: dict[str, type[Layer]] = {
    "input": Input,
    "conv": Conv,
    "dense": Dense,
    "recurrent": Recurrent,
    "flatten": Flatten,
}


def save_program(program: SpikingProgram, folder: Path) -> Path:
    """Write the folder, whole or not at all."""
    validate(program)
    with staged_artifact(folder, KIND, {"layers": len(program.layers), "steps": program.steps}) as temporary:
        write_program(program, temporary)
    return folder


def write_program(program: SpikingProgram, folder: Path) -> None:
    """Write the two files into `folder`, for an artifact that holds more than the program."""
    spec, tensors = program_parts(program)
    save_file(tensors, folder / "weights.safetensors")
    write_json(folder / "program.json", spec)


def program_parts(program: SpikingProgram) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(structure as JSON values, integers by `<layer>.<field>` in the smallest type that holds them)."""
    tensors: dict[str, np.ndarray] = {}
    layers = []
    for layer in program.layers:
        entry: dict[str, Any] = {"type": type(layer).__name__.lower()}
        for item in fields(layer):
            value = getattr(layer, item.name)
            if isinstance(value, np.ndarray):
                tensors[f"{layer.name}.{item.name}"] = value.astype(smallest(value))
            else:
                entry[item.name] = value
        layers.append(entry)
    spec = {"input_shape": program.input_shape, "input_bits": program.input_bits, "steps": program.steps}
    return {**spec, "layers": layers}, tensors


def smallest(value: np.ndarray) -> type[np.signedinteger]:
    """The smallest signed integer type that holds every value."""
    low, high = (int(value.min()), int(value.max())) if value.size else (0, 0)
    kinds = (np.int8, np.int16, np.int32)
    return next((kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max), np.int64)


def load_program(folder: Path) -> SpikingProgram:
    """Read and check a folder that `save_program` wrote."""
    return validate(read_program(open_artifact(folder, KIND).folder))


def read_program(folder: Path) -> SpikingProgram:
    """Read the two files of a folder whose hashes were checked. Whether the chip could hold it is not."""
    path = folder / "program.json"
    spec = read_json(path)
    try:
        tensors = load_file(folder / "weights.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: its weights cannot be read ({error}); write it anew") from error
    return program_of(spec, tensors, path)


def program_of(spec: Any, tensors: dict[str, np.ndarray], where: Path | str) -> SpikingProgram:
    """The program of `program_parts`, whose types are checked and whose limits are not."""
    try:
        steps, input_bits = _integers((spec["steps"], spec.get("input_bits", 0)))
        return SpikingProgram(
            input_shape=_integers(spec["input_shape"]),
            steps=steps,
            layers=tuple(_layer(entry, tensors) for entry in spec["layers"]),
            input_bits=input_bits,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: not a program of ours ({type(error).__name__}: {error}); write it anew") from error


def _integers(values: Any) -> tuple[int, ...]:
    if any(type(value) is not int or not 0 <= value < 1 << 31 for value in values):
        raise TypeError(f"{values!r} are not integers of 31 bits")
    return tuple(values)


def _layer(entry: dict[str, Any], tensors: dict[str, np.ndarray]) -> Layer:
    kind = _LAYERS[entry["type"]]
    values: dict[str, Any] = {}
    for item in fields(kind):
        what = f"{entry['name']}.{item.name}"
        value = tensors.get(what) if item.type is np.ndarray else entry.get(item.name)
        if value is not None:
            values[item.name] = _checked(what, value, item.type)
        elif item.name not in _LATER:
            raise KeyError(what)
    unknown = set(entry) - {item.name for item in fields(kind)} - {"type"}
    if unknown:
        raise KeyError(f"unknown '{min(unknown)}'")
    return kind(**values)


def _checked(what: str, value: Any, kind: Any) -> Any:
    """The value of a field that is declared as `kind`."""
    if kind is np.ndarray:
        if not value.size:
            raise ValueError(f"{what} is empty, of shape {value.shape}")
    elif kind in (int, str):
        if type(value) is not kind:
            raise TypeError(f"{what} is {value!r}, {kind.__name__} is expected")
    else:
        if not isinstance(value, (list, tuple)) or len(_integers(value)) != 2:
            raise TypeError(f"{what} is {value!r}, two integers are expected")
        return tuple(value)
    return value
