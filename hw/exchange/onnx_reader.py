"""Read an ONNX file that we wrote back into the program. The file's integers are taken by name, the graph that they
make is built anew, and the file's must be the same graph: whatever else was changed in it is refused, not run.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from hw.errors import UserError
from hw.exchange.onnx_scan import scan_model
from hw.exchange.onnx_step import METADATA_KEY, StepGraph
from hw.program import SpikingProgram
from hw.program_file import program_of
from hw.validate import validate

Form = Literal["qcdq", "qcdq-scan", "qonnx"]
_MAX_BYTES = 1 << 30


def model_of(program: SpikingProgram, form: Form, batch: int | str | None = None) -> onnx.ModelProto:
    """The graph of a program. batch: by default free, and 1 in QONNX, whose tools want every shape."""
    if form == "qcdq-scan":
        return scan_model(program)
    return StepGraph(program, form, batch or (1 if form == "qonnx" else "B")).model()


def read_onnx(path: Path, form: Form) -> SpikingProgram:
    """The program in a step or scan file; `UserError` where it is not one of ours, whole and unchanged in structure."""
    model = load_model(path)
    graph = model.graph
    if form == "qcdq-scan":
        bodies = [a.g for node in graph.node if node.op_type == "Scan" for a in node.attribute if a.name == "body"]
        if len(bodies) != 1:
            raise UserError(f"{path}: holds {len(bodies)} Scan nodes, an export of ours holds 1; export it anew")
        tensors = integers_of(bodies[0].initializer, path)
    else:
        tensors = integers_of(graph.initializer, path)
    structure = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY)
    if structure is None:
        raise UserError(f"{path}: has no metadata '{METADATA_KEY}', so that it is no export of ours; export it anew")
    try:
        spec = json.loads(structure)
    except (ValueError, RecursionError) as error:  # not JSON, or not even UTF-8
        raise UserError(f"{path}: its metadata '{METADATA_KEY}' is not JSON ({error}); export it anew") from error
    if form != "qonnx":  # whose weights are written with their scale
        tensors |= {name: value * _scale_of(name, tensors) for name, value in tensors.items()}
    program = validate(program_of(spec, tensors, path))
    batch = "B" if form == "qcdq-scan" else _batch(graph, path)
    if _structure(model) != _structure(model_of(program, form, batch)):
        raise UserError(f"{path}: its graph is not the one that its integers make; it was changed, export it anew")
    return program


def load_model(path: Path) -> onnx.ModelProto:
    """The model in a file, with nothing read from outside it."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: larger than {_MAX_BYTES >> 30} GiB, no export of ours")
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check the path") from error
    except (OSError, DecodeError, ValueError) as error:
        raise UserError(f"{path}: not an ONNX model ({error}); export it anew") from error
    for tensor in _tensors(model.graph):
        if not isinstance(tensor.name, str):  # protobuf gives bytes for what is no UTF-8
            raise UserError(f"{path}: a tensor's name {tensor.name!r} is no UTF-8; export it anew")
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")
            raise UserError(
                f"{path}: tensor {tensor.name!r} lies in another file ({where!r}), an export of ours holds its own; "
                "export it anew"
            )
    return model


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    """Every tensor of a graph, of its attributes and of the graphs inside it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(inner)


def integers_of(tensors: Iterable[onnx.TensorProto], path: Path) -> dict[str, np.ndarray]:
    """int64 of every initializer that holds whole numbers, by name; neuron parameters are laid flat."""
    found: dict[str, np.ndarray] = {}
    for tensor in tensors:
        try:
            value = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            raise UserError(f"{path}: tensor {tensor.name!r} cannot be read ({error}); export it anew") from error
        if value.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                whole = np.isfinite(value).all() and (np.abs(value) < 1 << 24).all() and (value == value.round()).all()
            if not whole:
                continue  # a factor below one; it is compared with the rest of the graph
        field = tensor.name.rpartition(".")[2]
        if value.ndim and field in ("decay_u_int", "decay_v_int", "v_th_mant", "bias_mant"):
            value = value.reshape(-1)
        found[tensor.name] = value.astype(np.int64)
    return found


def _scale_of(name: str, tensors: dict[str, np.ndarray]) -> np.ndarray | int:
    """The number that a tensor's integers are multiples of; one of another shape is refused with the graph."""
    scale = tensors.get(f"{name}.scale")
    return scale if scale is not None and scale.ndim == 0 else 1


def _batch(graph: onnx.GraphProto, path: Path) -> int | str:
    """The batch that the graph's spikes have: a number, or the name of a free axis."""
    for value in graph.input:
        if value.name == "spikes" and len(value.type.tensor_type.shape.dim) > 1:
            axis = value.type.tensor_type.shape.dim[0]
            return axis.dim_param or axis.dim_value
    raise UserError(f"{path}: has no input 'spikes' [B, ...]; export it anew")


def _structure(model: onnx.ModelProto) -> bytes:
    """All that says what a model computes. Shapes inside it are left out, they follow."""
    kept = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    kept.graph.CopyFrom(model.graph)
    del kept.graph.value_info[:]
    kept.graph.ClearField("doc_string")
    return kept.SerializeToString(deterministic=True)
