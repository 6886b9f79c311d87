"""A program as NIR, the exchange format of spiking simulators (Pedersen et al. 2024), and back without loss.

A layer becomes Linear or Conv2d in front of CubaLIF, in the real units of the network that it came from:

    w = weight_int 2**(weight_exp + e)    v_threshold = (v_th_mant + 2**-7) 2**e    b = bias_mant 2**(bias_exp - 6 + e)
    tau_syn = dt 4096 / decay_u_int       w_in = tau_syn / dt      tau_mem = dt 4096 / decay_v_int      r = tau_mem / dt
    v_leak = r b                          v_reset = 0              dt = 1e-4 s          e: the layer's scale_exp

so that one Euler step of dt is the neuron's step (`ashnets.neurons`). v_threshold stands half a step of the state above
the last silent one: `v > v_threshold` and `v >= v_threshold`, of which simulators take either, fire alike. Time
constants are float64: in float32 one of dt would be shorter than dt, which spikingjelly refuses. NIR is of continuous
time and says nothing of rounding: the chip's integers, which round each state toward zero, stand beside it in the
graph's metadata, and a file is read back from these. Its real values must be the ones that they make, or the file is
refused.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from hw import loihi
from hw.errors import RefusedError, UserError
from hw.hdf5 import opened
from hw.program import Conv, Dense, Flatten, Input, Recurrent, SpikingProgram
from hw.program_file import program_of, program_parts
from hw.validate import validate

DT = 1e-4
HALF_STEP = 2.0 ** -(loihi.STATE_SHIFT + 1)
_PROGRAM, _TENSOR = "ashnets_program", "ashnets_tensor:"


def write_nir(program: SpikingProgram, path: Path) -> None:
    """Write the graph; `RefusedError` names what NIR cannot hold."""
    nir.write(path, nir_graph(program))


def read_nir(path: Path) -> SpikingProgram:
    """The program in a file that `write_nir` wrote."""
    with opened(path, "a NIR file") as file:
        try:
            found = _content(file["node"])
            held = found.pop("metadata")
            tensors = {k.removeprefix(_TENSOR): v for k, v in held.items() if k.startswith(_TENSOR)}
            spec = json.loads(held[_PROGRAM])
        except (KeyError, AttributeError, TypeError, json.JSONDecodeError, RecursionError) as error:
            raise UserError(
                f"{path}: holds no integers of ours ({error}); a float network comes in by `quantize.from_nir`"
            ) from error
    program = validate(program_of(spec, tensors, path))
    if (odd := _difference(found, _plain(nir_graph(program).to_dict()))) is not None:
        raise UserError(f"{path}: '{odd}' is not what its integers make; the file was changed, export it anew")
    return program


def nir_graph(program: SpikingProgram) -> nir.NIRGraph:
    """The graph: input, then each layer's synapses `NAME_synapses` and neurons `NAME`, then output. A name that another
    node has gets `_` behind it."""
    validate(program)
    if program.input_bits:
        raise RefusedError(f"input_bits is {program.input_bits}, NIR's spikes are binary; export to qcdq")
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input(input_type={"input": np.array(program.input_shape)})}

    def add(name: str, node: nir.NIRNode) -> None:
        while name in (*nodes, "output"):
            name += "_"
        nodes[name] = node

    shape = program.input_shape
    for layer in program.layers:
        out = program.shapes[layer.name]
        if not layer.name.isascii() or not layer.name.isprintable() or "/" in layer.name or layer.name in ("", "."):
            raise RefusedError(
                f"layer '{layer.name}': NIR's names are ASCII, not '', not '.', and without '/'; rename it"
            )
        if isinstance(layer, Flatten):
            add(layer.name, nir.Flatten({"input": np.array(shape)}, start_dim=0, end_dim=-1))
        else:
            _refuse(layer)
            add(f"{layer.name}_synapses", _synapses(layer, shape))
            add(layer.name, _neurons(layer, out))
        shape = out
    nodes["output"] = nir.Output(output_type={"output": np.array(shape)})
    names = list(nodes)
    spec, tensors = program_parts(program)
    metadata: dict[str, Any] = {
        f"{_TENSOR}{name}": value if value.ndim else value[()] for name, value in tensors.items()
    }
    metadata |= {_PROGRAM: json.dumps(spec, sort_keys=True), "dt": DT}
    return nir.NIRGraph(nodes, list(pairwise(names)), metadata)


def _refuse(layer: Conv | Dense) -> None:
    reason = None
    if isinstance(layer, Input):
        reason = "is an input layer, which adds to the bias"
    elif isinstance(layer, Recurrent):
        reason = "is recurrent"
    elif isinstance(layer, Dense) and layer.delay.any():
        reason = f"has delays up to {layer.delay.max()} steps"
    elif layer.weight_exp < 0:
        reason = f"has weight_exp {layer.weight_exp}, which rounds its sums"
    elif isinstance(layer, Conv) and layer.weight_int.shape[2] != layer.weight_int.shape[3]:
        reason = f"has a kernel {layer.weight_int.shape[2:]}, of which `nir` takes the first side for both"
    elif not layer.decay_v_int.all():
        reason = "has decay_v_int 0, an infinite time constant"
    if reason:
        raise RefusedError(f"layer '{layer.name}': {reason}; NIR cannot hold it, export to qcdq or netx")


def _synapses(layer: Conv | Dense, shape: tuple[int, ...]) -> nir.NIRNode:
    weight = np.ldexp(layer.weight_int.astype(np.float32), layer.weight_exp + layer.scale_exp)
    if isinstance(layer, Dense):
        return nir.Linear(weight=weight)
    return nir.Conv2d(
        input_shape=(shape[1], shape[2]),
        weight=_ungrouped(weight, layer.groups),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=1,
        bias=np.zeros(layer.channels, np.float32),
    )


def _ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """A grouped convolution's kernel with the zeros of a whole one, since `nir` takes a kernel's inputs for all."""
    out, inputs, *kernel = weight.shape
    whole = np.zeros((groups, out // groups, groups, inputs, *kernel), weight.dtype)
    for g in range(groups):
        whole[g, :, g] = weight.reshape(groups, -1, *weight.shape[1:])[g]
    return whole.reshape(out, groups * inputs, *kernel)


def _neurons(layer: Conv | Dense, shape: tuple[int, ...]) -> nir.CubaLIF:
    def every(value: np.ndarray) -> np.ndarray:
        shaped = value.reshape(-1, *[1] * (len(shape) - 1)) if value.ndim else value
        return np.broadcast_to(shaped.astype(np.float64), shape).copy()

    syn, mem = (loihi.DECAY_UNITY / every(decay) for decay in (layer.decay_u_int, layer.decay_v_int))
    bias = np.ldexp(every(layer.bias_mant), layer.bias_exp - loihi.STATE_SHIFT + layer.scale_exp)
    values = {
        "tau_syn": DT * syn,
        "w_in": syn,
        "tau_mem": DT * mem,
        "r": mem,
        "v_leak": mem * bias,
        "v_threshold": np.ldexp(every(layer.v_th_mant) + HALF_STEP, layer.scale_exp),
        "v_reset": np.zeros(shape),
    }
    double = ("tau_syn", "tau_mem")
    return nir.CubaLIF(**{k: value if k in double else value.astype(np.float32) for k, value in values.items()})


def _content(group: Any) -> dict[str, Any]:
    return {name: _content(item) if isinstance(item, h5py.Group) else _plain(item[()]) for name, item in group.items()}


def _plain(value: Any) -> Any:
    """Nested dictionaries of arrays and texts, as a file gives them back."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    return array.astype(str) if array.dtype.kind in "OSU" else array


def _difference(found: Any, expected: Any, where: str = "node") -> str | None:
    """The name of the first entry in which the two differ."""
    if isinstance(expected, dict):
        expected = {key: value for key, value in expected.items() if key != "metadata"}
        if not isinstance(found, dict):
            return where
        for key in sorted({*expected, *found} - {"metadata"}):
            if key not in found or key not in expected:
                return f"{where}/{key}"
            if (odd := _difference(found[key], expected[key], f"{where}/{key}")) is not None:
                return odd
        return None
    same = not isinstance(found, dict) and np.array_equal(np.asarray(found), np.asarray(expected))
    return None if same else where
