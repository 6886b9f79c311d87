"""Layers as explicit dense matrices, one weight at a time: what the counts of `hw.connections` are held against."""

from itertools import product
from math import prod

import numpy as np

from hw import Conv, Dense, Flatten, Recurrent, SpikingProgram


def conv_matrix(layer: Conv, shape: tuple[int, ...], weight: np.ndarray) -> np.ndarray:
    """[outputs, inputs] of a convolution of inputs `shape`."""
    out, height, width = layer.output_shape(shape)
    matrix = np.zeros((out, height, width, *shape), np.int64)
    per_group, kernel = weight.shape[1], weight.shape[2:]
    for o, y, x, c, i, j in product(range(out), range(height), range(width), range(per_group), *map(range, kernel)):
        row = y * layer.stride[0] + i * layer.dilation[0] - layer.padding[0]
        column = x * layer.stride[1] + j * layer.dilation[1] - layer.padding[1]
        if 0 <= row < shape[1] and 0 <= column < shape[2]:
            channel = o // (out // layer.groups) * per_group + c
            matrix[o, y, x, channel, row, column] = weight[o, c, i, j]
    return matrix.reshape(prod((out, height, width)), prod(shape))


def matrices(program: SpikingProgram, *, heard: bool = False) -> dict[str, dict[str | None, np.ndarray]]:
    """layer -> source (None is the input) -> weights [neurons, source's neurons]. heard: instead, 1 where an axon
    leads: a convolution's lead wherever a tap lies, whatever its weight."""
    found: dict[str, dict[str | None, np.ndarray]] = {}
    source, shape = None, program.input_shape
    for layer in program.layers:
        if isinstance(layer, Flatten):
            continue
        if isinstance(layer, Conv):
            weight = np.ones_like(layer.weight_int) if heard else layer.weight_int
            found[layer.name] = {source: conv_matrix(layer, shape, weight)}
        elif isinstance(layer, Dense):
            found[layer.name] = {source: layer.weight_int}
            if isinstance(layer, Recurrent):
                found[layer.name][layer.name] = layer.weight_rec_int
        source, shape = layer.name, program.shapes[layer.name]
    return found
