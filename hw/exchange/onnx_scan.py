"""The step graph (`hw.exchange.onnx_step`) inside an ONNX Scan: all T steps in one call.

    spikes [T, B, ...] float32 -> LAYER.spikes [T, B, ...] float32 of every layer with neurons

The last layer's are the network's output. T and B are free. A sample starts from zero states, which the graph makes
itself.
"""

import onnx
from onnx import TensorProto, helper

from hw.errors import RefusedError
from hw.exchange.onnx_step import StepGraph, finished
from hw.program import SpikingProgram


def scan_model(program: SpikingProgram) -> onnx.ModelProto:
    """The QCDQ step wrapped in Scan."""
    step = StepGraph(program, "qcdq")
    body = helper.make_graph(step.nodes, "step", step.inputs(), step.outputs(), step.initializers)
    names = ("batch_at", "batch_to")
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], [i]) for i, name in enumerate(names, 1)]
    nodes = [
        helper.make_node("Shape", ["spikes"], ["shape"]),
        helper.make_node("Slice", ["shape", *names], ["batch"]),
    ]
    zeros = []
    for name, dtype, shape in step.states:
        parts = []
        for axis, size in enumerate(shape):
            if size == step.batch:
                parts.append("batch")
                continue
            key = f"{name}.size_{axis}"
            constants.append(helper.make_tensor(key, TensorProto.INT64, [1], [int(size)]))
            parts.append(key)
        nodes.append(helper.make_node("Concat", parts, [f"{name}.shape"], axis=0))
        kind = TensorProto.FLOAT if dtype == "float32" else TensorProto.INT64
        zero = helper.make_tensor("zero", kind, [1], [0])
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}.shape"], [f"{name}.start"], value=zero))
        zeros.append(f"{name}.start")
    ends = [f"{name}.end" for name, _, _ in step.states]
    series = [f"series.{name}" for name, _ in step.spikes]
    nodes.append(helper.make_node("Scan", [*zeros, "spikes"], [*ends, *series], body=body, num_scan_inputs=1))
    if odd := set(series) & {name for name, _ in step.spikes}:
        spikes = odd.pop()
        raise RefusedError(
            f"layer '{spikes.removesuffix('.spikes')}': a scan needs the name '{spikes}' for another layer; rename it, "
            "or export to qcdq"
        )
    for (name, _), found in zip(step.spikes, series, strict=True):
        nodes.append(helper.make_node("Identity", [found], [name]))
    graph = helper.make_graph(
        nodes,
        "sample",
        [helper.make_tensor_value_info("spikes", TensorProto.FLOAT, ("T", step.batch, *program.input_shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("T", *shape)) for name, shape in step.spikes],
        constants,
    )
    return finished(graph, program, "qcdq")
