"""Tables for a terminal."""

from collections.abc import Sequence

from quantize.errors import LayerErrors
from quantize.search import Sensitivity, Trial
from quantize.verify import FLOAT, Joint


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


def joint_table(joints: list[Joint]) -> str:
    """What `quantize.verify` found: a line for each runtime, its mismatching spikes in all and by layer."""
    layers = list(joints[0].mismatches)
    rows = [["runtime", "samples", "integers", "output", "mismatching", *layers]]
    told = {True: "equal", False: "DIFFER", None: "-"}
    for joint in joints:
        if joint.refused:
            rows.append([joint.left, "0", *["-"] * (3 + len(layers))])
            continue
        by_layer = [str(count) for count in joint.mismatches.values()]
        output = {True: "equal", False: "differs", None: "-"}[joint.output_equal]
        rows.append([joint.left, f"{joint.samples:,}", told[joint.integers], output, f"{joint.total:,}", *by_layer])
    notes = [f"{joint.left} cannot hold it: {joint.refused}" for joint in joints if joint.refused]
    compared = sum(joints[0].compared.values())
    if compared:
        seen = "the first row is there to be seen, every other" if joints[0].left == FLOAT else "every row"
        notes.append(f"of {compared:,} spikes each; {seen} must be 0")
    return "\n".join([*aligned(rows), *notes])


def sensitivity_table(found: list[Sensitivity]) -> str:
    """A line for each layer, the most sensitive first: points lost in each format."""
    formats = list(dict.fromkeys(each.format for each in found))
    rows = [["points lost", *formats]]
    for layer in dict.fromkeys(each.layer for each in found):
        drops = {each.format: f"{each.drop:.2f}" for each in found if each.layer == layer}
        rows.append([layer, *(drops[format] for format in formats)])
    return "\n".join(aligned(rows))


def trial_table(path: list[Trial]) -> str:
    """The path of a search, from int8 down."""
    rows = [["quantizer", "bytes", "of int8", "score", "lost"]]
    for t in path:
        share = f"{t.bytes / path[0].bytes:.2f}"
        rows.append([t.quantizer, f"{t.bytes:,}", share, f"{t.score:.2f}", f"{t.drop:.2f}"])
    return "\n".join(aligned(rows))
