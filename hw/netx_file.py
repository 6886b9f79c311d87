"""Write a program as the HDF5 `.net` file that lava-dl's netx reads, with h5py alone.

Layout (lava-dl 0.6.0, `netx/hdf5.py`): `/layer/<i>/type`, `shape`, `weight`, `bias`, conv geometry in (H, W) order,
and the group `neuron/` with `type`, `iDecay`, `vDecay`, `vThMant`. The file holds no exponents: netx derives them
from the weights.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hw.artifact import staged_file
from hw.errors import RefusedError
from hw.loihi import NETX_BIAS_EXP
from hw.program import Conv, Dense, Flatten, Input, Recurrent, SpikingProgram
from hw.validate import validate

# int64, since netx computes in the type that a file has. HDF5 packs it again, and unpacks it unasked.
_PACKED: dict[str, Any] = {"compression": "gzip", "shuffle": True}


def netx_scale(weight: np.ndarray) -> tuple[np.ndarray, int, int]:
    """(scaled weight, number of weight bits, exponent) that netx makes of a dense weight. Follows
    `netx.utils.optimize_weight_bits`."""
    low, high = int(weight.min()), int(weight.max())
    mixed = low < 0 <= high
    one_sign = -256 / low if high < 0 else 255 / high if high else np.inf
    ratio = min(127 / high if high else np.inf, -128 / low) if mixed else one_sign
    scale_bits = int(np.floor(np.log2(ratio))) + mixed
    shared_bits = next((n for n in range(8, 0, -1) if not np.any(weight % (1 << n))), 0)
    stored = weight << scale_bits if scale_bits >= 0 else np.zeros_like(weight)
    return stored, 8 - scale_bits - (shared_bits - mixed), -scale_bits


def lava_stores(scaled: np.ndarray, bits: int) -> np.ndarray:
    """What Lava's dense models keep of a scaled weight. Follows `lava.utils.weightutils.clip_weights` and
    `truncate_weights`."""
    # Lava looks at the signs again; a largest weight of 0 counts as inhibitory, stored as magnitudes up to 255.
    sign = -1 if scaled.max() <= 0 and scaled.min() < 0 else 1
    both_signs = scaled.min() < 0 < scaled.max()
    drop = 8 - bits + both_signs
    magnitude = (sign * scaled).clip(-256 if both_signs else 0, 255)
    magnitude = (magnitude >> drop) << drop if drop >= 0 else np.zeros_like(scaled)
    return sign * magnitude


def dense_as_netx_stores_it(weight: np.ndarray) -> tuple[np.ndarray, int]:
    """(mantissa, exponent) that netx and Lava make of a dense weight, so that its input is `(mantissa s) <<
    exponent`."""
    scaled, bits, exponent = netx_scale(weight)
    return lava_stores(scaled, bits), exponent


def recurrent_as_netx_stores_it(weight: np.ndarray, heard: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(weights side by side, mantissas of them, exponent): netx scales the two as one, Lava stores each by itself."""
    both = np.hstack([weight, heard])
    scaled, bits, exponent = netx_scale(both)
    parts = scaled[:, : weight.shape[1]], scaled[:, weight.shape[1] :]
    return both, np.hstack([lava_stores(part, bits) for part in parts]), exponent


def write_net(program: SpikingProgram, path: str | os.PathLike[str]) -> Path:
    """Write `path` whole or not at all. `RefusedError` names the layer that netx would not hold exactly."""
    validate(program)
    for layer in program.synaptic:
        _check_exact(layer)
    with staged_file(Path(path)) as temporary, h5py.File(temporary, "w") as file:
        for i, layer in enumerate(program.layers):
            group = file.create_group(f"layer/{i}")
            _write_layer(group, layer, program.shapes[layer.name])
    return Path(path)


def _check_exact(layer: Conv | Dense) -> None:
    what = f"layer '{layer.name}'"
    if layer.weight_exp:
        raise RefusedError(
            f"{what}: weight_exp is {layer.weight_exp}, a .net file holds none; absorb it into the threshold"
        )
    if layer.bias_mant.any() and layer.bias_exp != NETX_BIAS_EXP:
        raise RefusedError(
            f"{what}: bias_exp is {layer.bias_exp}, netx runs every layer with {NETX_BIAS_EXP}; rescale the bias"
        )
    for key in ("decay_u_int", "decay_v_int", "v_th_mant"):
        if getattr(layer, key).ndim:
            raise RefusedError(f"{what}: {key} differs by channel, a .net file holds one per layer; share it")
    if isinstance(layer, Conv):
        return
    weight = layer.weight_int
    if isinstance(layer, Recurrent):
        if layer.delay.any():
            raise RefusedError(
                f"{what}: is recurrent and has delays, for which netx drops the exponent; use one of the two"
            )
        weight, kept, exponent = recurrent_as_netx_stores_it(layer.weight_int, layer.weight_rec_int)
    else:
        kept, exponent = dense_as_netx_stores_it(weight)
    if exponent > 0 or not np.array_equal(kept, weight << -exponent):
        low, high = weight.min(), weight.max()
        # Without a positive weight Lava holds magnitudes up to 255, and netx scales a lowest -2**n to -256.
        fix = (
            f"raise its {low} to {low + 1} or make one weight positive"
            if high <= 0 and low >= -128
            else "quantize to [-127, 127]"
        )
        raise RefusedError(f"{what}: netx would not store weights in [{low}, {high}] exactly; {fix}")


def _write_layer(group: h5py.Group, layer: Conv | Dense | Flatten, shape: tuple[int, ...]) -> None:
    kind = "dense_rec" if isinstance(layer, Recurrent) else type(layer).__name__.lower()
    group.create_dataset("type", data=np.array([kind.encode()], "S10"))
    group.create_dataset("shape", data=np.array(shape, np.int64))
    if isinstance(layer, Flatten):
        return
    image = isinstance(layer, Input)
    group.create_dataset("weight", data=np.array([layer.image_weight]) if image else layer.weight_int, **_PACKED)
    group.create_dataset("bias", data=np.array([layer.image_bias]) if image else layer.bias_mant)
    if isinstance(layer, Recurrent):
        group.create_dataset("weight_rec", data=layer.weight_rec_int, **_PACKED)
    if isinstance(layer, Dense) and layer.delay.any():
        # In full, since netx takes a vector as long as the neurons for theirs even where the inputs are as many.
        group.create_dataset("delay", data=np.broadcast_to(layer.delay, layer.weight_int.shape), **_PACKED)
    if isinstance(layer, Conv) and not image:
        for key in ("stride", "padding", "dilation"):
            group.create_dataset(key, data=np.array(getattr(layer, key), np.int64))
        group.create_dataset("groups", data=np.int64(layer.groups))
    neuron = group.create_group("neuron")
    neuron.create_dataset("type", data=np.array([b"CUBA"], "S10"))
    for key, value in (
        ("iDecay", layer.decay_u_int),
        ("vDecay", layer.decay_v_int),
        ("vThMant", layer.v_th_mant),
        ("refDelay", 1),
    ):
        neuron.create_dataset(key, data=np.int64(value))
