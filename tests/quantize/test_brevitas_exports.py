"""Brevitas' own exports of a layer hold the integers that the program and our files hold."""

import warnings
from copy import deepcopy
from importlib import import_module

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from qonnx.custom_op.general.quant import quant

from quantize import lower
from quantize.quantizers import FORMATS
from tests.quantize.test_quantizers import stack


def exported(how: str, layer, path) -> list[np.ndarray]:
    """What Brevitas' function `how` gives the Quant or Clip node of a layer's weight, in the node's order."""
    shape = (1, 3, 6, 6) if layer.synapse.weight.ndim == 4 else (1, layer.synapse.in_features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Brevitas imports, and of torch's older exporter, which integers need
        export = getattr(import_module("brevitas.export"), how)
        export(deepcopy(layer.synapse), args=torch.zeros(shape), export_path=str(path), dynamo=False, opset_version=18)
    graph = onnx.load(path).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first = next(node for node in graph.node if node.op_type in ("Quant", "Clip"))
    return [held[name] for name in first.input]


@pytest.mark.parametrize("name", FORMATS)
def test_brevitas_writes_the_integers_of_the_program(name, tmp_path):
    made = stack(name)
    program = {layer.name: layer.weight_int for layer in lower(made).synaptic}
    step = FORMATS[name].step
    for key, layer in made.layers.named_children():
        if key not in program:
            continue
        weight, scale, zero, bits = exported("export_qonnx", layer, tmp_path / "q.onnx")
        found = quant(weight, scale, zero, bits, 1, FORMATS[name].narrow, "ROUND") / scale
        np.testing.assert_array_equal(found * step, program[key])
        integers, *_ = exported("export_onnx_qcdq", layer, tmp_path / "c.onnx")
        assert integers.dtype == np.int8
        np.testing.assert_array_equal(integers.astype(np.int64) * step, program[key])
