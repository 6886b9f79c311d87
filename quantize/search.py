"""Which layers bear few bits: a sensitivity scan that ranks them, and a search for the cheapest mixed assignment.

Both ask `score(quantizer)`, higher is better, of a whole assignment (`conv1=int4,dense1=int8`), so that what counts is
measured, an accuracy for instance, and not guessed from the weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hw.errors import UserError
from quantize.quantizers import FORMATS, WeightQuantizer

LADDER = ("int8", "int6", "int4", "int3", "int2")
Score = Callable[[str], float]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One assignment: quantizer for `quantize`, bytes of its weights, its score, and what it lost against int8."""

    quantizer: str
    bytes: int
    score: float
    drop: float


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """One layer in one format, all others in int8. saved: bytes against int8."""

    layer: str
    format: str
    drop: float
    saved: int


def scan(weights: Mapping[str, int], score: Score, formats: tuple[str, ...] = LADDER[1:]) -> list[Sensitivity]:
    """Every layer in every format by itself; the layer that loses most in its worst format comes first.

    weights: number of each layer's weights, by name.
    """
    base = dict.fromkeys(weights, "int8")
    whole = score(spec(base))
    found = [
        Sensitivity(
            layer=layer,
            format=format,
            drop=whole - score(spec(base | {layer: format})),
            saved=size_of(weights, base) - size_of(weights, base | {layer: format}),
        )
        for layer in weights
        for format in formats
    ]
    worst = {layer: max(s.drop for s in found if s.layer == layer) for layer in weights}
    return sorted(found, key=lambda s: (-worst[s.layer], s.layer, FORMATS[s.format].bits * -1))


def search(
    weights: Mapping[str, int], score: Score, *, memory: float | None = None, drop: float | None = None
) -> tuple[Trial, list[Trial]]:
    """The cheapest assignment under a budget, and the path to it, from int8 down.

    memory: bytes may be this share of int8's. drop: the score may fall by so much. Exactly one of the two. At each
    step, of all layers one rung lower on `LADDER`, the one is taken that loses the least score for a bit; `UserError`
    where even the lowest rungs need more memory.
    """
    if (memory is None) == (drop is None):
        raise UserError("a search needs one budget: --memory SHARE (of int8's bytes) or --drop POINTS (of the score)")
    if drop is not None and not drop >= 0:
        raise UserError(f"--drop is {drop:g}; give 0 or more points of the score")
    now = dict.fromkeys(weights, LADDER[0])
    full, whole = size_of(weights, now), score(spec(now))
    lowest = size_of(weights, dict.fromkeys(weights, LADDER[-1]))
    if memory is not None and not lowest <= memory * full:
        raise UserError(
            f"--memory is {memory:g}, {LADDER[-1]} in every layer still takes {lowest / full:.3g} of int8's"
        )

    def trial(assignment: dict[str, str]) -> Trial:
        found = score(spec(assignment))
        return Trial(quantizer=spec(assignment), bytes=size_of(weights, assignment), score=found, drop=whole - found)

    path = [Trial(quantizer=spec(now), bytes=full, score=whole, drop=0.0)]
    while memory is None or path[-1].bytes > memory * full:
        lower = [now | {layer: LADDER[LADDER.index(rung) + 1]} for layer, rung in now.items() if rung != LADDER[-1]]
        trials = [(trial(assignment), assignment) for assignment in lower]
        bits = bits_of(weights, now)
        if drop is not None:
            trials = [(t, assignment) for t, assignment in trials if t.drop <= drop]
        if not trials:
            break
        before = path[-1]
        best, now = min(trials, key=lambda pair: (pair[0].drop - before.drop) / (bits - bits_of(weights, pair[1])))
        path.append(best)
    return path[-1], path


def spec(assignment: Mapping[str, str]) -> str:
    """An assignment as `quantizers_of` takes it."""
    return ",".join(f"{layer}={format}" for layer, format in assignment.items())


def bits_of(weights: Mapping[str, int], assignment: Mapping[str, str]) -> int:
    """Bits of the weights: of few weights, two formats may take as many bytes."""
    return sum(weights[layer] * WeightQuantizer.named(q).holds.bits for layer, q in assignment.items())


def size_of(weights: Mapping[str, int], assignment: Mapping[str, str]) -> int:
    """Bytes of the packed weights, each layer's rounded up."""
    return sum(-(-weights[layer] * WeightQuantizer.named(q).holds.bits // 8) for layer, q in assignment.items())
