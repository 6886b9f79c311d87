"""Read a `.net` file, lava-dl's HDF5 exchange format, with h5py alone, as the program that netx and Lava would run.

netx checks next to nothing: it truncates real weights, drops what it does not know, and stores some weights as zero.
Here each of these is refused by layer, value, limit and fix. Older dialects load: neuron type LOIHI, convolution
kernels with a trailing time axis of 1, one-dimensional dense weights, scalar biases and geometry.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hw.errors import UserError
from hw.layers import Conv, Dense, Flatten, Layer, Recurrent, Shape
from hw.netx_file import dense_as_netx_stores_it, recurrent_as_netx_stores_it
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


def read_net(path: str | os.PathLike[str], *, steps: int, input_shape: Shape | None = None) -> SpikingProgram:
    """The program in a `.net` file.

    steps: T of a sample, which the file does not hold. input_shape: (C, H, W) or (N,), where neither an input layer nor
    a first dense layer tells it. `UserError` names the layer that cannot be held exactly.
    """
    path = Path(path)
    with _opened(path) as file:
        return validate(_program(file, steps, input_shape))


def first_input(path: Path) -> tuple[int, int | None]:
    """(rank of one step's input, number of inputs if it is a dense layer's) of a `.net` file."""
    with _opened(path) as file:
        for i in range(_MAX_LAYERS):
            group = file.get(f"layer/{i}")
            if not isinstance(group, h5py.Group):
                break
            entry = _Entry(group, i)
            kind = entry.text("type")
            if kind == "conv":
                return 3, None
            if kind in ("dense", "dense_rec"):
                return 1, _matrix(entry, "weight", prod(entry.shape())).shape[1]
        raise UserError("has no layer with weights; export it with lava-dl")


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The open file; whatever h5py thinks of it becomes one line."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError as error:
        raise error if str(error).startswith(str(path)) else UserError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of a .net file") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a .net file that can be read ({reason}); export it again") from error


def examine_net(path: Path) -> list[str]:
    """One line for everything in a `.net` file that keeps it from running as it is meant."""
    with _opened(path) as file:
        contents = _contents(file)
        fit = [
            f"layer {i} '{layer.name}': {problem}"
            for i, layer in contents.layers.items()
            if not isinstance(layer, Flatten)
            for problem in layer_problems(layer)
        ]
        return contents.problems + fit


@dataclass
class _Contents:
    """What a file holds: layers and declared output shapes by index, the input's shape if it tells, and what is wrong."""

    layers: dict[int, Layer] = field(default_factory=dict)
    shapes: dict[int, Shape] = field(default_factory=dict)
    input_shape: Shape | None = None
    problems: list[str] = field(default_factory=list)


def _contents(file: h5py.File) -> _Contents:
    groups = file.get("layer")
    if not isinstance(groups, h5py.Group) or not 0 < len(groups) <= _MAX_LAYERS:
        raise UserError(f"holds no group 'layer' of 1 to {_MAX_LAYERS} layers; export it with lava-dl")
    found = _Contents()
    for i in range(len(groups)):
        try:
            _read_layer(found, groups.get(str(i)), i)
        except UserError as error:
            found.problems.append(str(error))
    return found


def _read_layer(found: _Contents, group: object, i: int) -> None:
    if not isinstance(group, h5py.Group):
        raise UserError(f"layer {i}: is missing between others; export the file again")
    entry = _Entry(group, i)
    kind = entry.text("type")
    if kind == "input":
        if "neuron" in group:
            raise UserError(f"layer {i} 'input': has neurons; run it on the host and start behind it")
        found.input_shape = entry.shape() if "shape" in group else None
    elif kind == "flatten":
        found.layers[i] = Flatten(name=entry.name)
    elif kind in ("dense", "dense_rec"):
        found.layers[i] = _dense(entry, recurrent=kind == "dense_rec")
        found.shapes[i] = (prod(entry.shape()),)
    elif kind == "conv":
        found.layers[i], found.shapes[i] = _conv(entry), entry.shape()
    else:
        fix = _REFUSED.get(kind, "known are input, conv, dense, dense_rec and flatten")
        raise UserError(f"layer {i}: type '{kind}' does not run here; {fix}")


def _program(file: h5py.File, steps: int, input_shape: Shape | None) -> SpikingProgram:
    found = _contents(file)
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise UserError(found.problems[0] + more)
    layers, first = list(found.layers.values()), next(iter(found.layers.values()), None)
    shape = input_shape or found.input_shape
    if shape is None and isinstance(first, Dense):
        shape = (first.weight_int.shape[1],)
    if shape is None:
        raise UserError("the file does not tell its input's shape; give it, or spikes of that shape")
    if isinstance(first, Dense) and len(shape) > 1:
        layers.insert(0, Flatten(name="flatten_input"))
    program = SpikingProgram(input_shape=shape, steps=steps, layers=tuple(layers))
    for i, declared in found.shapes.items():
        if (gives := program.shapes[found.layers[i].name]) != declared:
            raise UserError(
                f"layer {i} '{found.layers[i].name}': gives {gives} for input {shape}, the file says {declared}; give the "
                "input's shape that it was made for"
            )
    return program


class _Entry:
    """A layer's group: its values as integers, or a `UserError` that names layer and key."""

    def __init__(self, group: h5py.Group, index: int) -> None:
        self.group, self.index = group, index
        self.name = f"{self.text('type')}{index}"

    def refuse(self, what: str) -> UserError:
        return UserError(f"layer {self.index} '{self.name}': {what}")

    def _dataset(self, key: str) -> h5py.Dataset:
        item = self.group.get(key)
        if not isinstance(item, h5py.Dataset):
            raise UserError(f"layer {self.index}: has no '{key}'; export it again")
        if item.size is None or item.size > 1 << 28:
            raise UserError(f"layer {self.index}: '{key}' holds {item.size} values, at most {1 << 28} are read")
        return item

    def text(self, key: str) -> str:
        value = np.asarray(self._dataset(key)[()]).reshape(-1)
        if len(value) != 1 or not isinstance(value[0], (bytes, str)):
            raise UserError(f"layer {self.index}: '{key}' is not one text; export it again")
        return value[0].decode("ascii", "replace") if isinstance(value[0], bytes) else value[0]

    def integers(self, key: str) -> np.ndarray:
        """int64 of any shape. Real datasets are common; real values are not."""
        value: Any = np.asarray(self._dataset(key)[()])
        if value.dtype.kind not in "iufb":
            raise self.refuse(f"{key} holds {value.dtype}, not numbers; export it again")
        if value.dtype.kind == "f":
            odd = value[~np.isfinite(value) | (value != np.round(value))]
            if odd.size:
                raise self.refuse(
                    f"{key} holds {odd.flat[0]}, not an integer, which netx would truncate; quantize first"
                )
        if value.size == 0 or np.abs(value.astype(np.float64)).max() >= 1 << 31:
            raise self.refuse(f"{key} holds nothing, or values beyond 32 bits; export it again")
        return value.astype(np.int64)

    def shape(self) -> Shape:
        return tuple(int(n) for n in self.integers("shape").reshape(-1))

    def pair(self, key: str) -> tuple[int, int]:
        value = self.integers(key).reshape(-1)
        if len(value) not in (1, 2):
            raise self.refuse(f"{key} holds {len(value)} values, expected 1 or 2 (H, W)")
        return int(value[0]), int(value[-1])

    def scalar(self, key: str) -> int:
        value = self.integers(key).reshape(-1)
        if len(value) != 1:
            raise self.refuse(f"{key} holds {len(value)} values, expected 1")
        return int(value[0])

    def neuron(self, channels: int, neurons: int) -> dict[str, np.ndarray]:
        """The keyword arguments that all layers with neurons share. netx runs every layer with bias_exp 6."""
        if not isinstance(self.group.get("neuron"), h5py.Group):
            raise self.refuse("has no neuron, for which netx would put one that never spikes; export it with one")
        kind = self.text("neuron/type")
        if kind not in ("CUBA", "LOIHI"):
            raise self.refuse(f"neuron type '{kind}' does not run here; only CUBA (or LOIHI, its older name) does")
        values = {
            ours: self._per_channel(f"neuron/{theirs}", channels)
            for ours, theirs in (("decay_u_int", "iDecay"), ("decay_v_int", "vDecay"), ("v_th_mant", "vThMant"))
        }
        if "bias" in self.group:
            values["bias_mant"] = self._bias(channels, neurons)
        return values

    def _per_channel(self, key: str, channels: int) -> np.ndarray:
        value = self.integers(key)
        if value.size not in (1, channels):
            raise self.refuse(f"{key} holds {value.size} values, expected 1 or {channels}")
        return value.reshape(()) if value.size == 1 else value.reshape(-1)

    def _bias(self, channels: int, neurons: int) -> np.ndarray:
        bias = self.integers("bias").reshape(-1)
        if len(bias) == neurons != channels:
            by_channel = bias.reshape(channels, -1)
            if (by_channel != by_channel[:, :1]).any():
                raise self.refuse("bias differs within a channel; share it")
            bias = by_channel[:, 0]
        if len(bias) not in (1, channels):
            raise self.refuse(f"bias holds {len(bias)} values, expected 1 or {channels}")
        return np.broadcast_to(bias, (channels,))


def _dense(entry: _Entry, *, recurrent: bool) -> Dense:
    out = prod(entry.shape())
    weight = _matrix(entry, "weight", out)
    values: dict[str, Any] = {"name": entry.name, **entry.neuron(out, out)}
    if not recurrent:
        values["weight_int"], values["weight_exp"] = _exact(
            entry, weight, *dense_as_netx_stores_it(_usable(entry, weight))
        )
        if "delay" in entry.group:
            values["delay"] = _delay(entry, weight.shape)
        return Dense(**values)
    if "delay" in entry.group:
        raise entry.refuse("recurrent layers with delays do not run here: netx drops their weights' exponent")
    heard = _matrix(entry, "weight_rec", out)
    _usable(entry, np.hstack([weight, heard]))
    both, exponent = _exact(entry, *recurrent_as_netx_stores_it(weight, heard))
    columns = weight.shape[1]
    return Recurrent(**values, weight_int=both[:, :columns], weight_rec_int=both[:, columns:], weight_exp=exponent)


def _matrix(entry: _Entry, key: str, out: int) -> np.ndarray:
    weight = entry.integers(key)
    if weight.ndim == 1 and out and weight.size % out == 0:
        weight = weight.reshape(out, -1)
    if weight.ndim != 2 or len(weight) != out:
        raise entry.refuse(f"{key} has shape {weight.shape}, its {out} neurons need ({out}, inputs)")
    return weight


def _usable(entry: _Entry, weight: np.ndarray) -> np.ndarray:
    if not weight.any():
        raise entry.refuse("all weights are zero, which netx cannot scale; train longer or drop the layer")
    low, high = int(weight.min()), int(weight.max())
    if low < -256 or high > 255 or (low < 0 and high > 254):
        raise entry.refuse(
            f"weights span [{low}, {high}], Loihi holds [-256, 254], or [0, 255] of one sign; rescale them"
        )
    return weight


def _exact(entry: _Entry, weight: np.ndarray, mantissa: np.ndarray, exponent: int) -> tuple[np.ndarray, int]:
    """The file's weights with exponent 0 where Lava holds them exactly, else what it holds of them."""
    if not mantissa.any():
        low, high = int(weight.min()), int(weight.max())
        raise entry.refuse(f"Lava would store all weights in [{low}, {high}] as zero; quantize them to [-127, 127]")
    if exponent <= 0 and np.array_equal(mantissa, weight << -exponent):
        return weight, 0
    return mantissa, exponent


def _delay(entry: _Entry, shape: tuple[int, ...]) -> np.ndarray:
    """netx takes a vector as long as the neurons for theirs, whatever the inputs are."""
    delay = entry.integers("delay")
    if delay.min() < 0 or delay.max() > 62:
        raise entry.refuse(f"delay is {delay.max() if delay.max() > 62 else delay.min()}, netx holds 0..62; clamp it")
    if delay.size == 1:
        return delay.reshape(())
    if delay.ndim == 1 and len(delay) == shape[0]:
        return np.repeat(delay[:, None], shape[1], axis=1)
    if delay.shape not in ((shape[1],), shape):
        raise entry.refuse(f"delay has shape {delay.shape}, expected ({shape[0]},), ({shape[1]},) or {shape}")
    return delay


def _conv(entry: _Entry) -> Conv:
    weight = entry.integers("weight")
    if weight.ndim == 5 and weight.shape[4] == 1:
        weight = weight[..., 0]
    if weight.ndim != 4:
        raise entry.refuse(f"weight has shape {weight.shape}, expected (out, in / groups, kH, kW)")
    if "delay" in entry.group and entry.integers("delay").any():
        raise entry.refuse("has delays, which netx drops without a word; train it without")
    channels = weight.shape[0]
    return Conv(
        name=entry.name,
        weight_int=weight,
        stride=entry.pair("stride"),
        padding=entry.pair("padding"),
        dilation=entry.pair("dilation"),
        groups=entry.scalar("groups"),
        **entry.neuron(channels, prod(entry.shape())),
    )
