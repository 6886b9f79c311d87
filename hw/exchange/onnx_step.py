"""A program as an ONNX graph of one time step with explicit state, in two dialects that differ only in how a weight is
written:

    qcdq     weight_int / scale (int4 to int16) -> DequantizeLinear, scale   standard ONNX, opset 21
    qonnx    weight_int (float32) -> Quant, its bits, scale                  QONNX, for FINN-style tools

scale is the power of two that all weights share: weights of few bits are multiples of one, to fill the eight of a chip.

Inputs and outputs of the step, all zero at a sample's start:

    spikes [B, ...] float32      LAYER.u, LAYER.v [B, ...] int64      LAYER.waiting [longest delay, B, in] float32
    -> LAYER.spikes [B, ...] float32      LAYER.u_next, LAYER.v_next, LAYER.waiting_next

A recurrent layer also takes LAYER.last, its own spikes of the step before. The arithmetic is `hw.program`'s: sums of
weights in float32, exact since a valid program keeps them below 2**23; neurons in int64, whose Div rounds toward zero.
Every integer of the program is an initializer LAYER.FIELD; the structure stands in the metadata. So a file is read
back by name, and it is ours if the graph made anew from it is the same, to the last byte (`hw.exchange.onnx_reader`).
"""

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hw import loihi
from hw.errors import RefusedError, UserError
from hw.program import Conv, Dense, Flatten, Recurrent, SpikingProgram
from hw.program_file import program_parts
from hw.validate import shared_zero_bits, validate

OPSET = 21
IR_VERSION = 10
DIALECTS = ("qcdq", "qonnx")
METADATA_KEY = "ashnets.program"
_QONNX_DOMAIN = "qonnx.custom_op.general"
_STORED = {"int4": (-8, 7), "int8": (-128, 127), "uint8": (0, 255), "int16": (-(1 << 15), (1 << 15) - 1)}
_ONNX_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


class StepGraph:
    """The nodes and tensors of one step of `program`. batch: a number, or the name of a free axis."""

    def __init__(self, program: SpikingProgram, dialect: str, batch: int | str = "B") -> None:
        if dialect not in DIALECTS:
            raise UserError(f"ONNX dialect '{dialect}' is not known; choose from {', '.join(DIALECTS)}")
        self.program, self.dialect, self.batch = validate(program), dialect, batch
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.known: list[onnx.ValueInfoProto] = []  # shapes that ONNX does not infer
        self.states: list[tuple[str, str, tuple[int | str, ...]]] = []  # (name, dtype, shape)
        self.spikes: list[tuple[str, tuple[int | str, ...]]] = []
        x, shape = "spikes", program.input_shape
        for layer in program.layers:
            shape = program.shapes[layer.name]
            if isinstance(layer, Flatten):
                x = self._add("Flatten", [x], f"{layer.name}.spikes", axis=1)
            else:
                x = self._layer(layer, x, shape)
        self.output = x

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """States in order, then the spikes."""
        values = [_value(name, dtype, shape) for name, dtype, shape in self.states]
        return [*values, _value("spikes", "float32", (self.batch, *self.program.input_shape))]

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """The next states in the order of the inputs, then the spikes of every layer with neurons."""
        values = [_value(f"{name}_next", dtype, shape) for name, dtype, shape in self.states]
        return [*values, *(_value(name, "float32", shape) for name, shape in self.spikes)]

    def model(self) -> onnx.ModelProto:
        parts = self.nodes, "step", self.inputs(), self.outputs(), self.initializers
        model = finished(helper.make_graph(*parts, value_info=self.known), self.program, self.dialect)
        return onnx.shape_inference.infer_shapes(model)

    def _add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any, dtype: str = "int64") -> str:
        """An initializer; one of the same name is made once."""
        if all(known.name != name for known in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def _layer(self, layer: Conv | Dense, x: str, shape: tuple[int, ...]) -> str:
        name = layer.name
        a = self._conv(layer, x) if isinstance(layer, Conv) else self._dense(layer, x)
        s = self._neurons(layer, a, shape)
        self.spikes.append((s, (self.batch, *shape)))
        if isinstance(layer, Recurrent):
            self.states.append((f"{name}.last", "float32", (self.batch, *shape)))
            self._add("Identity", [s], f"{name}.last_next")
        return s

    def _conv(self, layer: Conv, x: str) -> str:
        (ph, pw), name = layer.padding, layer.name
        geometry = {"strides": layer.stride, "pads": (ph, pw, ph, pw), "dilations": layer.dilation}
        weight = self._weight(layer, "weight_int")
        return self._summed(layer, self._add("Conv", [x, weight], f"{name}.sum", **geometry, group=layer.groups))

    def _dense(self, layer: Dense, x: str) -> str:
        name, longest = layer.name, int(layer.delays[-1])
        weight = self._weight(layer, "weight_int")
        if longest:
            inputs = layer.weight_int.shape[1]
            self.states.append((f"{name}.waiting", "float32", (longest, self.batch, inputs)))
            one = self._add("Unsqueeze", [x, self.constant("axis_0", [0])], f"{name}.now")
            line = self._add("Concat", [f"{name}.waiting", one], f"{name}.line", axis=0)
            ends = [self.constant(key, [value]) for key, value in (("from_1", 1), ("to_end", 1 << 40))]
            self._add("Slice", [line, *ends, "axis_0"], f"{name}.waiting_next")
            delay = self.constant(f"{name}.delay", layer.delay)
            parts = []
            for d in layer.delays.tolist():
                then = self._add("Gather", [line, self.constant(f"{name}.at_{d}", longest - d)], f"{name}.in_{d}")
                same = self._add("Equal", [delay, self.constant(f"{name}.delay_{d}", d)], f"{name}.is_{d}")
                zero = self.constant("zero", 0, "float32")
                kept = self._add("Where", [same, weight, zero], f"{name}.weight_{d}")
                parts.append(self._product(layer, then, kept, f"{name}.sum_{d}"))
        else:
            parts = [self._product(layer, x, weight, f"{name}.sum")]
        if isinstance(layer, Recurrent):
            heard = self._weight(layer, "weight_rec_int")
            parts.append(self._product(layer, f"{name}.last", heard, f"{name}.heard"))
        total = parts[0]
        for i, part in enumerate(parts[1:], 1):
            total = self._add("Add", [total, part], f"{name}.total_{i}")
        return total

    def _product(self, layer: Dense, x: str, weight: str, output: str) -> str:
        turned = self._add("Transpose", [weight], f"{output}.weight", perm=[1, 0])
        return self._summed(layer, self._add("MatMul", [x, turned], output))

    def _weight(self, layer: Conv | Dense, key: str) -> str:
        value, name = getattr(layer, key), f"{layer.name}.{key}"
        shared = shared_zero_bits(value)
        few, scale = value >> shared, self.constant(f"{name}.scale", 1 << shared, "float32")
        if self.dialect == "qonnx":
            self.constant(name, value, "float32")
            bits = self.constant(f"{name}.bits", quant_bits(layer, few), "float32")
            ends = [scale, self.constant("zero", 0, "float32"), bits]
            self.known.append(_value(f"{name}.quant", "float32", value.shape))
            signs = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
            return self._add("Quant", [name, *ends], f"{name}.quant", domain=_QONNX_DOMAIN, **signs)
        self.constant(name, few, storage(few))
        return self._add("DequantizeLinear", [name, scale], f"{name}.float")

    def _summed(self, layer: Conv | Dense, a: str) -> str:
        """a << weight_exp as an integer; a negative exponent rounds down."""
        if layer.weight_exp:
            factor = self.constant(f"{layer.name}.weight_factor", 2.0**layer.weight_exp, "float32")
            a = self._add("Floor", [self._add("Mul", [a, factor], f"{a}.scaled")], f"{a}.floor")
        return self._add("Cast", [a], f"{a}.int", to=TensorProto.INT64)

    def _neurons(self, layer: Conv | Dense, a: str, shape: tuple[int, ...]) -> str:
        name, limit = layer.name, loihi.STATE_LIMIT
        self.states += [(f"{name}.{key}", "int64", (self.batch, *shape)) for key in "uv"]

        def field(key: str) -> str:
            value = getattr(layer, key)
            shaped = value.reshape(-1, *[1] * (len(shape) - 1)) if value.ndim else value
            return self.constant(f"{name}.{key}", shaped)

        def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
            return self._add(op, inputs, f"{name}.{output}", **attributes)

        def kept(state: str) -> str:
            unity = self.constant("decay_unity", loihi.DECAY_UNITY)
            keep = add("Sub", [unity, field(f"decay_{state}_int")], f"keep_{state}")
            return add("Div", [add("Mul", [f"{name}.{state}", keep], f"{state}_times"), unity], f"{state}_kept")

        def held(x: str, output: str) -> str:
            narrow = add("Cast", [x], f"{output}_32", to=TensorProto.INT32)  # as a 32-bit register holds it
            return add("Cast", [narrow], output, to=TensorProto.INT64)

        unit = self.constant("state_unit", 1 << loihi.STATE_SHIFT)
        low, high, turn = (
            self.constant(key, value)
            for key, value in (("state_low", -limit), ("state_high", limit), ("state_turn", 2 * limit))
        )
        u = held(add("Add", [kept("u"), add("Mul", [a, unit], "drive")], "u_sum"), "u_held")
        down = add("Sub", [u, turn], "u_down")
        up = add("Where", [add("LessOrEqual", [u, low], "u_is_low"), add("Add", [u, turn], "u_up"), u], "u_raised")
        u = add("Where", [add("Greater", [u, high], "u_is_high"), down, up], "u_next")

        factor = self.constant(f"bias_unit_{layer.bias_exp}", 1 << layer.bias_exp)
        bias = add("Mul", [field("bias_mant"), factor], "bias")
        v = add("Add", [add("Add", [kept("v"), u], "v_driven"), bias], "v_sum")
        ends = [self.constant(key, value) for key, value in (("v_low", 1 - limit), ("v_high", limit - 1))]
        v = add("Clip", [held(v, "v_held"), *ends], "v_before_reset")
        threshold = add("Mul", [field("v_th_mant"), unit], "threshold")
        fired = add("Greater", [v, threshold], "fired")
        add("Where", [fired, self.constant("rest", 0), v], "v_next")
        return add("Cast", [fired], "spikes", to=TensorProto.FLOAT)


def storage(weight_int: np.ndarray) -> str:
    """The smallest ONNX integer type that holds a weight."""
    for dtype, (low, high) in _STORED.items():
        if low <= weight_int.min() and weight_int.max() <= high:
            return dtype
    raise RefusedError(f"weights span [{weight_int.min()}, {weight_int.max()}], ONNX export holds 16 bits")


def quant_bits(layer: Conv | Dense, weight_int: np.ndarray) -> int:
    """Bits of the Quant node: the layer's, or more where its integers need them (even ones beyond 8 bits)."""
    bits = layer.weight_bits
    while weight_int.min() < -(1 << bits - 1) or weight_int.max() >= 1 << bits - 1:
        bits += 1
    return bits


def finished(graph: onnx.GraphProto, program: SpikingProgram, dialect: str) -> onnx.ModelProto:
    """The model around a graph, with the program's structure in its metadata."""
    opsets = [helper.make_opsetid("", OPSET)]
    if dialect == "qonnx":
        opsets.append(helper.make_opsetid(_QONNX_DOMAIN, 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ashnets")
    helper.set_model_props(model, {METADATA_KEY: json.dumps(program_parts(program)[0], sort_keys=True)})
    return model


def _value(name: str, dtype: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _ONNX_TYPES[dtype], shape)
