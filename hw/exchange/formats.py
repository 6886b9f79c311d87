"""The formats that a program is exported to: how each is written, read back, and run.

Adding one is a pair of functions and a line in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hw.layers import Conv, Dense, Flatten, Input, Layer, Recurrent, Shape
from hw.program import SpikingProgram


@dataclass(frozen=True, kw_only=True)
class Format:
    """file: its name in an export's folder. runtime: the backend that runs what the file says."""

    file: str
    runtime: str
    write: Callable[[SpikingProgram, Path], object]
    read: Callable[[Path, "Sample"], SpikingProgram]


class Sample(NamedTuple):
    """What a program takes, which a `.net` file does not tell."""

    input_shape: Shape
    steps: int
    input_bits: int

    @classmethod
    def of(cls, program: SpikingProgram) -> "Sample":
        return cls(program.input_shape, program.steps, program.input_bits)


def _write_netx(program: SpikingProgram, path: Path) -> None:
    from hw.netx_file import write_net

    write_net(program, path)


def _read_netx(path: Path, sample: Sample) -> SpikingProgram:
    from hw.netx_reader import read_net

    program = read_net(path, steps=sample.steps, input_shape=sample.input_shape)
    return replace(program, input_bits=sample.input_bits)


def _write_nir(program: SpikingProgram, path: Path) -> None:
    from hw.exchange.nir_file import write_nir

    write_nir(program, path)


def _read_nir(path: Path, sample: Sample) -> SpikingProgram:
    from hw.exchange.nir_file import read_nir

    return read_nir(path)


def _onnx(form: Any, file: str, runtime: str) -> Format:
    def write(program: SpikingProgram, path: Path) -> None:
        import onnx

        from hw.exchange.onnx_reader import model_of

        onnx.save(model_of(program, form), path)

    def read(path: Path, sample: Sample) -> SpikingProgram:
        from hw.exchange.onnx_reader import read_onnx

        return read_onnx(path, form)

    return Format(file=file, runtime=runtime, write=write, read=read)


FORMATS: dict[str, Format] = {
    "netx": Format(
        file="network.net",
        runtime="reference",
        write=_write_netx,
        read=_read_netx,
    ),
    "qcdq": _onnx("qcdq", "step.onnx", "onnx-step"),
    "qcdq-scan": _onnx("qcdq-scan", "sample.onnx", "onnx-scan"),
    "qonnx": _onnx("qonnx", "step.qonnx.onnx", "qonnx"),
    "nir": Format(
        file="network.nir",
        runtime="reference",
        write=_write_nir,
        read=_read_nir,
    ),
}


def difference(a: SpikingProgram, b: SpikingProgram) -> str | None:
    """What first tells two programs apart, or None where every neuron gets the same integers. A weight counts with its
    exponent, since a `.net` file holds it in another."""
    if (a.input_shape, a.input_bits) != (b.input_shape, b.input_bits):
        return f"input {a.input_shape} of {a.input_bits} bits and {b.input_shape} of {b.input_bits}"
    if len(a.layers) != len(b.layers):
        return f"{len(a.layers)} and {len(b.layers)} layers"
    for one, other in zip(a.layers, b.layers, strict=True):
        if type(one) is not type(other):
            return f"layer '{one.name}': {type(one).__name__} and {type(other).__name__}"
        mine, theirs = _meaning(one), _meaning(other)
        for key in mine:
            if not np.array_equal(mine[key], theirs[key]):
                return f"layer '{one.name}': {key}"
    return None


def _meaning(layer: Layer) -> dict[str, Any]:
    """What a layer does, independent of how it is written down."""
    if isinstance(layer, Flatten):
        return {}
    found: dict[str, Any] = {
        "weight_int": np.ldexp(layer.weight_int.astype(np.float64), layer.weight_exp),
        "bias_mant": layer.bias_mant << layer.bias_exp,
    }
    for key in ("decay_u_int", "decay_v_int", "v_th_mant"):
        found[key] = np.broadcast_to(getattr(layer, key), (layer.channels,))
    if isinstance(layer, Recurrent):
        found["weight_rec_int"] = np.ldexp(layer.weight_rec_int.astype(np.float64), layer.weight_exp)
    if isinstance(layer, Dense):
        found["delay"] = np.broadcast_to(layer.delay, layer.weight_int.shape)
    if isinstance(layer, Conv):
        found |= {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
    if isinstance(layer, Input):
        found |= {"image_weight": layer.image_weight, "image_bias": layer.image_bias}
    return found
