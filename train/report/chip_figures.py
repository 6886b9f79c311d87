"""Drawings of `train.report.chip_page`: the map of cores, and membranes under their thresholds."""

from typing import Any

import numpy as np

from hw.chips import RESOURCES
from hw.energy import CORES_PER_TILE, TILES_ACROSS, TILES_DOWN, tile
from hw.layers import Conv, Dense
from hw.loihi import STATE_LIMIT, STATE_SHIFT
from hw.simulate.reference import trunc_decay
from train.report.chip_story import ChipStory
from train.report.figures import SERIES, Curve, curves
from train.report.markup import Markup, el, plural

SHOWN_STEPS = 40  # of rasters and membranes
SHOWN_LAYERS = 12
_COLOURS = tuple(SERIES.values())


def colour(story: ChipStory, layer: str) -> str:
    return _COLOURS[list(story.resources.layers).index(layer) % len(_COLOURS)]


def _core(story: ChipStory, core: int, held: list[str], x: int, y: int) -> list[Markup]:
    """One cell of the map: a stripe for every layer on the core, as opaque as the core is full."""
    use = story.resources.utilisation[core]
    fullest = int(use.argmax())
    filled = ", ".join(f"{RESOURCES[i]} {100 * value:.0f} %" for i, value in enumerate(use))
    stripe = 9 / len(held)
    drawn = [
        el(
            "rect",
            x=f"{x + 0.5 + i * stripe:.2f}",
            y=y + 0.5,
            width=f"{stripe:.2f}",
            height=9,
            fill=f"var({colour(story, layer)})",
            opacity=f"{0.15 + 0.5 * use[fullest]:.2f}",
        )
        for i, layer in enumerate(held)
    ]
    numbers = [list(story.resources.layers).index(layer) + 1 for layer in held]
    named = "+".join(map(str, numbers)) if len(numbers) < 4 else f"{len(numbers)} layers"
    words = [
        el("text", named, x=x + 5, y=y + 4.6, class_="c-layer"),
        el("text", f"{100 * use[fullest]:.0f} %", x=x + 5, y=y + 8, class_="c-use"),
    ]
    return [el("g", el("title", f"Core {core}: {', '.join(held)}; {filled}"), drawn, words)]


def core_map(story: ChipStory, chip: int, held: dict[int, list[str]]) -> Markup:
    """One chip: tiles of 2 x 2 cores. A cell is 10 wide."""
    cells: list[Any] = []
    for column in range(TILES_ACROSS):
        for row in range(TILES_DOWN):
            cells.append(el("rect", x=column * 21, y=row * 21, width=20, height=20, rx=1.5, class_="c-tile"))
    first = chip * story.resources.chip.cores
    for core in range(first, min(first + story.resources.chip.cores, story.resources.cores)):
        x, y = (int(value) for value in tile(core - first))
        inner = core % CORES_PER_TILE
        cells.append(_core(story, core, held[core], x * 21 + inner % 2 * 10, y * 21 + inner // 2 * 10))
    used = min(story.resources.cores - first, story.resources.chip.cores)
    label = el("title", f"Chip {chip + 1}: {used} of {story.resources.chip.cores} cores used")
    view = f"-0.5 -0.5 {TILES_ACROSS * 21} {TILES_DOWN * 21}"
    return el("svg", label, cells, viewBox=view, role="img", class_="cores")


def before_reset(layer: Conv | Dense, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """v [T, channels, ...] as the threshold meets it, from u and v at the end of each step of one sample:

        trunc(v[t-1] (4096 - decay_v_int) / 4096) + u[t] + (bias_mant << bias_exp),  saturated

    It is v where the neuron does not spike.
    """

    def channelwise(value: np.ndarray) -> np.ndarray:
        return value.reshape(-1, *[1] * (v.ndim - 2))

    last = np.concatenate([np.zeros_like(v[:1]), v[:-1]])
    held = trunc_decay(last, channelwise(layer.decay_v_int)) + u + (channelwise(layer.bias_mant) << layer.bias_exp)
    return held.clip(1 - STATE_LIMIT, STATE_LIMIT - 1)


def membranes(story: ChipStory, layer: Conv | Dense) -> Markup:
    """v / 64 in the first steps of the first sample: the neuron with the most spikes in all its steps, one in the
    middle, and the silent one that came nearest; only the first where thresholds differ by neuron."""
    u, v, s = (values[layer.name][:, 0] for values in (story.result.u, story.result.v, story.result.layers))
    steps = min(len(v), SHOWN_STEPS)
    threshold = np.repeat(np.broadcast_to(layer.v_th_mant, layer.channels), v[0].size // layer.channels)
    membrane = before_reset(layer, u, v)[:steps].reshape(steps, -1) / (1 << STATE_SHIFT)
    fired = s.reshape(len(s), -1).sum(0, dtype=np.int64)
    chosen = [int(fired.argmax())]
    if (threshold == threshold[0]).all():
        chosen.append(int(np.argsort(-fired, kind="stable")[np.count_nonzero(fired) // 2]))
        if not fired.all():
            chosen.append(int(np.where(fired == 0, membrane.max(0), -np.inf).argmax()))
    x = range(1, steps + 1)
    lines = [
        Curve(name=f"neuron {i}, {plural(int(fired[i]), 'spike')}", steps=x, values=membrane[:, i].tolist())
        for i in dict.fromkeys(chosen)
    ]
    lines.append(Curve(name="threshold", steps=x, values=[float(threshold[chosen[0]])] * steps))
    return curves(layer.name, lines, axis="time step")
