"""The layers of a `.net` file, one group each, as the program's layers: see `hw.netx_reader`."""

from math import prod
from typing import Any

import h5py
import numpy as np

from hw.errors import UserError
from hw.layers import Conv, Dense, Input, Recurrent, Shape
from hw.loihi import DECAY_UNITY
from hw.netx_file import dense_as_netx_stores_it, recurrent_as_netx_stores_it


class Entry:
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

    def neuron(self, channels: int, neurons: int, *, bias: bool = True) -> dict[str, Any]:
        """The keyword arguments that all layers with neurons share. netx runs every layer with bias_exp 6."""
        if not isinstance(self.group.get("neuron"), h5py.Group):
            raise self.refuse("has no neuron, for which netx would put one that never spikes; export it with one")
        kind = self.text("neuron/type")
        if kind not in ("CUBA", "LOIHI"):
            raise self.refuse(f"neuron type '{kind}' does not run here; only CUBA (or LOIHI, its older name) does")
        values: dict[str, Any] = {
            ours: self._per_channel(f"neuron/{theirs}", channels)
            for ours, theirs in (("decay_u_int", "iDecay"), ("decay_v_int", "vDecay"), ("v_th_mant", "vThMant"))
        }
        if bias and "bias" in self.group:
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


def as_grid(shape: Shape) -> Shape:
    """The shape of an image (N,), (H, W) or (C, H, W) as (C, H, W)."""
    return {1: (*shape, 1, 1), 2: (1, *shape)}.get(len(shape), shape)


def read_input(entry: Entry) -> Input:
    channels = as_grid(entry.shape())[0]
    values = entry.neuron(channels, prod(entry.shape()), bias=False)
    if np.any(values.pop("decay_u_int") != DECAY_UNITY):
        raise entry.refuse(
            f"neuron/iDecay is not {DECAY_UNITY}: slayer filters the image with it and netx does not; train with "
            "current_decay=1"
        )
    affine = {f"image_{key}": entry.scalar(key) for key in ("weight", "bias") if key in entry.group}
    return Input.of(channels, name=entry.name, **values, **affine)


def read_dense(entry: Entry, *, recurrent: bool) -> Dense:
    out = prod(entry.shape())
    weight = matrix(entry, "weight", out)
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
    heard = matrix(entry, "weight_rec", out)
    _usable(entry, np.hstack([weight, heard]))
    both, exponent = _exact(entry, *recurrent_as_netx_stores_it(weight, heard))
    columns = weight.shape[1]
    return Recurrent(**values, weight_int=both[:, :columns], weight_rec_int=both[:, columns:], weight_exp=exponent)


def matrix(entry: Entry, key: str, out: int) -> np.ndarray:
    weight = entry.integers(key)
    if weight.ndim == 1 and out and weight.size % out == 0:
        weight = weight.reshape(out, -1)
    if weight.ndim != 2 or len(weight) != out:
        raise entry.refuse(f"{key} has shape {weight.shape}, its {out} neurons need ({out}, inputs)")
    return weight


def _usable(entry: Entry, weight: np.ndarray) -> np.ndarray:
    if not weight.any():
        raise entry.refuse("all weights are zero, which netx cannot scale; train longer or drop the layer")
    low, high = int(weight.min()), int(weight.max())
    if low < -256 or high > 255 or (low < 0 and high > 254):
        raise entry.refuse(
            f"weights span [{low}, {high}], Loihi holds [-256, 254], or [0, 255] of one sign; rescale them"
        )
    return weight


def _exact(entry: Entry, weight: np.ndarray, mantissa: np.ndarray, exponent: int) -> tuple[np.ndarray, int]:
    """The file's weights with exponent 0 where Lava holds them exactly, else what it holds of them."""
    if not mantissa.any():
        low, high = int(weight.min()), int(weight.max())
        raise entry.refuse(f"Lava would store all weights in [{low}, {high}] as zero; quantize them to [-127, 127]")
    if exponent <= 0 and np.array_equal(mantissa, weight << -exponent):
        return weight, 0
    return mantissa, exponent


def _delay(entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
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


def read_conv(entry: Entry) -> Conv:
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
