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
    tensors: dict[str, np.ndarray] = {}
    layers = []
    for layer in program.layers:
        entry: dict[str, Any] = {"type": type(layer).__name__.lower()}
        for item in fields(layer):
            value = getattr(layer, item.name)
            if isinstance(value, np.ndarray):
                tensors[f"{layer.name}.{item.name}"] = value
            else:
                entry[item.name] = value
        layers.append(entry)
    save_file(tensors, folder / "weights.safetensors")
    spec = {"input_shape": program.input_shape, "input_bits": program.input_bits, "steps": program.steps}
    write_json(folder / "program.json", {**spec, "layers": layers})


def load_program(folder: Path) -> SpikingProgram:
    """Read and check a folder that `save_program` wrote."""
    return validate(read_program(open_artifact(folder, KIND).folder))


def read_program(folder: Path) -> SpikingProgram:
    """Read the two files of a folder whose hashes were checked. Whether the chip could hold it is not."""
    path = folder / "program.json"
    spec = read_json(path)
    try:
        tensors = load_file(folder / "weights.safetensors")
        layers = tuple(_layer(entry, tensors) for entry in spec["layers"])
        program = SpikingProgram(
            input_shape=tuple(spec["input_shape"]),
            steps=spec["steps"],
            layers=layers,
            input_bits=spec.get("input_bits", 0),
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a program of ours ({type(error).__name__}: {error}); write it anew") from error
    return program


def _layer(entry: dict[str, Any], tensors: dict[str, np.ndarray]) -> Layer:
    kind = _LAYERS[entry["type"]]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items() if key != "type"}
    arrays: dict[str, Any] = {
        item.name: tensors[f"{entry['name']}.{item.name}"]
        for item in fields(kind)
        if item.name not in values and not (item.name == "delay" and f"{entry['name']}.delay" not in tensors)
    }
    return kind(**values, **arrays)
