"""Tables for a terminal."""

from collections.abc import Sequence

from quantize.errors import LayerErrors


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def error_table(errors: list[LayerErrors]) -> str:
    """What `quantize.errors` found, a line for each layer."""
    rows = [["layer", "weights", "KB", "SQNR dB", "zero %", "clipped %", "decays", "v_th %", "bias %"]]
    for e in errors:
        zeros, clipped, v_th, bias = (f"{100 * share:.2f}" for share in (e.zeros, e.clipped, e.v_th, e.bias))
        memory, decays = f"{e.memory_bits / 8192:,.1f}", f"{max(e.decay_u, e.decay_v):.1e}"
        rows.append([e.name, e.quantizer, memory, f"{e.sqnr:.1f}", zeros, clipped, decays, v_th, bias])
    return "\n".join(aligned(rows))
