"""Refuse what the chip cannot hold: every problem names layer, value, limit, fix and where the limit comes from."""

from collections.abc import Iterator

import numpy as np

from hw import loihi
from hw.errors import UserError
from hw.program import Conv, Dense, Flatten, Recurrent, SpikingProgram


def problems(program: SpikingProgram) -> list[str]:
    """One line for each value that does not fit; an empty list means that the program fits."""
    found = []
    if not 0 <= program.input_bits <= loihi.MESSAGE_BITS_MAX:
        found.append(f"input_bits is {program.input_bits}, Loihi 2 holds 0..{loihi.MESSAGE_BITS_MAX} (graded spikes)")
    largest = max(1, (1 << max(0, min(program.input_bits, loihi.MESSAGE_BITS_MAX))) - 1)  # of one input
    for i, layer in enumerate(program.layers):
        if not isinstance(layer, Flatten):
            found += [f"layer {i} '{layer.name}': {problem}" for problem in layer_problems(layer, largest)]
            largest = 1
    return found


def validate(program: SpikingProgram) -> SpikingProgram:
    """The program itself if it fits the chip, else `UserError` with the first problem and their number."""
    found = problems(program)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(found[0] + more)
    return program


def layer_problems(layer: Conv | Dense, largest: int = 1) -> Iterator[str]:
    """What the chip cannot hold of one layer. largest: magnitude of one input spike."""
    weight = layer.weight_int
    rows = np.abs(weight).reshape(layer.channels, -1).sum(1) * largest
    if isinstance(layer, Recurrent):
        weight = np.concatenate([weight.ravel(), layer.weight_rec_int.ravel()])
        rows = rows + np.abs(layer.weight_rec_int).sum(1)
    low, high = int(weight.min()), int(weight.max())
    mixed_odd = (
        low < 0 < high and np.any(weight % 2) and (low < loihi.SIGNED_WEIGHT_MIN or high > loihi.SIGNED_WEIGHT_MAX)
    )
    if low < loihi.WEIGHT_MIN or high > loihi.WEIGHT_MAX or mixed_odd:
        yield (
            f"weights span [{low}, {high}], Loihi holds 8 bits ([-128, 127], or even values in [-256, 254]); "
            "quantize with bits=8 (lava-nc weightutils)"
        )
    held = 1 << layer.weight_bits - 1 if 1 <= layer.weight_bits <= loihi.WEIGHT_BITS_MAX else 0
    shared = shared_zero_bits(weight)
    if not held:
        yield f"weight_bits is {layer.weight_bits}, Loihi holds 1..{loihi.WEIGHT_BITS_MAX} (lava-nc num_weight_bits)"
    elif layer.weight_bits < loihi.WEIGHT_BITS_MAX and not -held <= low >> shared <= high >> shared < held:
        yield (
            f"weights span [{low}, {high}] in steps of {1 << shared}, weight_bits={layer.weight_bits} holds "
            f"[{-held}, {held - 1}] steps; raise weight_bits or quantize anew (lava-dl netx)"
        )
    if not -loihi.SCALE_EXP_LIMIT <= layer.scale_exp <= loihi.SCALE_EXP_LIMIT:
        yield f"scale_exp is {layer.scale_exp}, float32 holds +-{loihi.SCALE_EXP_LIMIT}; rescale the network (ours)"
    if not weight.any():
        yield "all weights are zero, which netx cannot scale; train longer or drop the layer (lava-dl netx)"
    if layer.weight_exp and isinstance(layer, Conv):
        yield f"weight_exp is {layer.weight_exp}, Lava's conv has none; absorb it into the threshold (lava-nc)"
    if not -8 <= layer.weight_exp <= 7:
        yield f"weight_exp is {layer.weight_exp}, Loihi holds -8..7; rescale the layer (Loihi 1, nengo-loihi)"
    fan_in = int(rows.max())
    if fan_in << min(max(layer.weight_exp, 0), 7) >= loihi.STATE_LIMIT:  # a larger one is refused above
        yield (
            f"the largest sum of |weight * input| of one neuron is {fan_in}, its input must stay below 2**23; "
            "use fewer inputs or weight bits (24-bit states, lava-nc)"
        )
    if isinstance(layer, Dense) and layer.delay.size:
        allowed = ((), layer.weight_int.shape[1:], layer.weight_int.shape)
        if layer.delay.shape not in allowed:
            yield f"delay has shape {layer.delay.shape}, expected {' or '.join(map(str, allowed))}"
        elif layer.delay.min() < 0 or layer.delay.max() > loihi.DELAY_MAX:
            worst = int(layer.delay.max() if layer.delay.max() > loihi.DELAY_MAX else layer.delay.min())
            yield f"delay is {worst}, netx holds 0..{loihi.DELAY_MAX}; clamp it (lava-dl netx)"
    for key, limits, source in (
        ("decay_u_int", (1, loihi.DECAY_UNITY), "brian2-loihi; 0 is netx's -1"),
        ("decay_v_int", (0, loihi.DECAY_UNITY), "brian2-loihi"),
        ("v_th_mant", (0, loihi.V_TH_MANT_MAX), "17 bits, lava-nc LIF"),
        ("bias_mant", (loihi.BIAS_MANT_MIN, loihi.BIAS_MANT_MAX), "13 bits, lava-nc LIF"),
    ):
        yield from _range_problem(layer, key, *limits, source)
    if not 0 <= layer.bias_exp <= loihi.BIAS_EXP_MAX:
        yield f"bias_exp is {layer.bias_exp}, Loihi holds 0..7 (3 bits, lava-nc LIF)"


def shared_zero_bits(weight: np.ndarray) -> int:
    """Number of low bits that are 0 in every weight, 7 at the most: the chip need not store them."""
    return next(bits for bits in range(loihi.WEIGHT_BITS_MAX - 1, -1, -1) if not np.any(weight % (1 << bits)))


def _range_problem(layer: Conv | Dense, key: str, low: int, high: int, source: str):
    value = getattr(layer, key)
    per_channel = (layer.channels,)
    allowed = {per_channel} if key == "bias_mant" else {(), per_channel}
    if value.shape not in allowed:
        yield f"{key} has shape {value.shape}, expected {' or '.join(map(str, sorted(allowed)))}"
    elif value.min() < low or value.max() > high:
        worst = int(value.max() if value.max() > high else value.min())
        yield f"{key} is {worst}, Loihi holds {low}..{high}; rescale or clamp it when quantizing ({source})"
