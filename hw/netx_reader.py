"""Read a `.net` file, lava-dl's HDF5 exchange format, with h5py alone, as the program that netx and Lava would run.

netx checks next to nothing: it truncates real weights, drops what it does not know, and stores some weights as zero.
Here each of these is refused by layer, value, limit and fix. Older dialects load: neuron type LOIHI, convolution
kernels with a trailing time axis of 1, one-dimensional dense weights, scalar biases and geometry.
"""

import os
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import h5py

from hw.errors import UserError
from hw.hdf5 import opened
from hw.layers import Dense, Flatten, Input, Layer, Shape
from hw.loihi import BIAS_BITS
from hw.netx_layers import Entry, as_grid, matrix, read_conv, read_dense, read_input
from hw.program import SpikingProgram
from hw.validate import layer_problems, validate

_REFUSED = {
    "pool": "use a strided convolution",
    "unpool": "netx cannot run it either",
    "convT": "netx cannot run it either",
    "average": "read the spikes out on the host",
    "concat": "a program is a chain; run the branches as programs of their own",
    "dense_comp": "resonate-and-fire synapses do not run here",
}
_MAX_LAYERS = 1000


def read_net(
    path: str | os.PathLike[str], *, steps: int, input_shape: Shape | None = None, first: int = 0
) -> SpikingProgram:
    """The program in a `.net` file.

    steps: T of a sample, which the file does not hold. input_shape: (C, H, W) or (N,), where neither an input layer nor
    a first dense layer tells it. first: index of the layer to start with; those before it are not looked at.
    `UserError` names the layer that cannot be held exactly.
    """
    path = Path(path)
    with opened(path, "a .net file") as file:
        return validate(_program(_contents(file, first), steps, input_shape))


def first_input(path: Path, first: int = 0) -> tuple[int, int | None]:
    """(rank of one step's input, number of inputs if it is a dense layer's) of a `.net` file from layer `first` on."""
    with opened(path, "a .net file") as file:
        for i in range(first, _MAX_LAYERS):
            group = file.get(f"layer/{i}")
            if not isinstance(group, h5py.Group):
                break
            entry = Entry(group, i)
            kind = entry.text("type")
            if kind == "input" and "neuron" in group:
                return len(entry.shape()), None
            if kind == "conv":
                return 3, None
            if kind in ("dense", "dense_rec"):
                return 1, matrix(entry, "weight", prod(entry.shape())).shape[1]
        raise UserError(f"has no layer with weights from layer {first} on; export it with lava-dl")


def examine_net(path: Path) -> list[str]:
    """One line for everything in a `.net` file that keeps it from running as it is meant."""
    with opened(path, "a .net file") as file:
        contents = _contents(file, 0)
        fit = [
            f"layer {i} '{layer.name}': {problem}"
            for i, layer in contents.layers.items()
            if not isinstance(layer, Flatten)
            for problem in layer_problems(layer)
        ]
        if contents.problems or fit:
            return contents.problems + fit
        first = next(iter(contents.layers.values()), None)
        if contents.input_shape is not None or isinstance(first, Dense):  # else nothing tells what shapes there are
            try:
                validate(_program(contents, 1, None))
            except UserError as error:
                return [str(error)]
        return []


@dataclass
class _Contents:
    """What a file holds: layers and declared output shapes by index, the input's shape if told, and what is wrong."""

    layers: dict[int, Layer] = field(default_factory=dict)
    shapes: dict[int, Shape] = field(default_factory=dict)
    input_shape: Shape | None = None
    problems: list[str] = field(default_factory=list)


def _contents(file: h5py.File, first: int) -> _Contents:
    groups = file.get("layer")
    if not isinstance(groups, h5py.Group) or not 0 < len(groups) <= _MAX_LAYERS:
        raise UserError(f"holds no group 'layer' of 1 to {_MAX_LAYERS} layers; export it with lava-dl")
    if not 0 <= first < len(groups):
        raise UserError(f"has {len(groups)} layers, 0 to {len(groups) - 1}, and none to start with at {first}")
    found = _Contents()
    for i in range(first, len(groups)):
        try:
            _read_layer(found, groups.get(str(i)), i)
        except UserError as error:
            found.problems.append(str(error))
    return found


def _read_layer(found: _Contents, group: object, i: int) -> None:
    if not isinstance(group, h5py.Group):
        raise UserError(f"layer {i}: is missing between others; export the file again")
    entry = Entry(group, i)
    kind = entry.text("type")
    if kind == "input":
        if found.layers:
            raise UserError(f"layer {i} 'input{i}': stands behind other layers; an input layer is the first")
        found.input_shape = entry.shape() if "shape" in group else None
        if "neuron" in group:
            found.layers[i] = read_input(entry)
    elif kind == "flatten":
        found.layers[i] = Flatten(name=entry.name)
    elif kind in ("dense", "dense_rec"):
        found.layers[i] = read_dense(entry, recurrent=kind == "dense_rec")
        found.shapes[i] = (prod(entry.shape()),)
    elif kind == "conv":
        found.layers[i], found.shapes[i] = read_conv(entry), entry.shape()
    else:
        fix = _REFUSED.get(kind, "known are input, conv, dense, dense_rec and flatten")
        raise UserError(f"layer {i}: type '{kind}' does not run here; {fix}")


def _program(found: _Contents, steps: int, input_shape: Shape | None) -> SpikingProgram:
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise UserError(found.problems[0] + more)
    layers, first = list(found.layers.values()), next(iter(found.layers.values()), None)
    shape = input_shape or found.input_shape
    if isinstance(first, Input):
        shape = as_grid(found.input_shape or ())
        if isinstance(layers[1] if len(layers) > 1 else None, Dense):
            layers.insert(1, Flatten(name="flatten_input"))
    elif shape is None and isinstance(first, Dense):
        shape = (first.weight_int.shape[1],)
    if shape is None:
        raise UserError("the file does not tell its input's shape; give it, or spikes of that shape")
    if isinstance(first, Dense) and len(shape) > 1:
        layers.insert(0, Flatten(name="flatten_input"))
    bits = BIAS_BITS if isinstance(first, Input) else 0
    program = SpikingProgram(input_shape=shape, steps=steps, layers=tuple(layers), input_bits=bits)
    for i, declared in found.shapes.items():
        if (gives := program.shapes[found.layers[i].name]) != declared:
            raise UserError(
                f"layer {i} '{found.layers[i].name}': gives {gives} for input {shape}, the file says {declared}; "
                "give the input's shape that it was made for"
            )
    return program
