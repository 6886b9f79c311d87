"""Drawings from numbers: curves by matplotlib, spike rasters by hand, both as SVG whose colours are the style sheet's.

matplotlib cannot write `var(--ink)`, so it draws in stand-in colours that no figure uses otherwise, and they are
replaced in its output. One file then serves light, dark and print.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.report.markup import Markup, el

SOFT, GRID = "#010203", "#010204"
SERIES = {"#010205": "--host", "#010206": "--spike", "#010207": "--third", "#010208": "--fourth"}
STYLES = ("solid", "dashed", "dotted", "dashdot")  # so that lines differ without colour too
_VARIABLES = {SOFT: "--soft", GRID: "--line", **SERIES}
_MOST_POINTS = 300
_BINS = 160


@dataclass(frozen=True, kw_only=True)
class Curve:
    """steps and values of one line. marked: index of the point to mark, or None."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    marked: int | None = None


def thinned(values: Sequence[float]) -> np.ndarray:
    """Means of neighbours where there are more values than a small figure can show."""
    array = np.asarray(values, float)
    return (
        array if len(array) <= _MOST_POINTS else np.array([part.mean() for part in np.array_split(array, _MOST_POINTS)])
    )


def curves(
    title: str, lines: Sequence[Curve], unit: str = "", axis: str = "training step", log: bool = False
) -> Markup:
    """One panel: a heading, a key that names each line, the lines over what `axis` counts. log: both axes."""
    figure = Figure(figsize=(4.5, 2.75), layout="constrained")
    FigureCanvasSVG(figure)
    keys = []
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": repr((title, lines)),  # the same file every time, and no id twice on a page
        "axes.unicode_minus": False,
        "font.size": 13,
    }
    with matplotlib.rc_context(settings):
        axes = figure.add_subplot()
        for line, colour, style in zip(lines, SERIES, STYLES, strict=False):
            steps, values = thinned(line.steps), thinned(line.values)
            axes.plot(
                steps,
                values,
                color=colour,
                linestyle=style,
                linewidth=1.9,
                marker="o" if len(steps) < 8 else None,
                markersize=4,
            )
            if line.marked is not None:
                axes.plot(
                    line.steps[line.marked],
                    line.values[line.marked],
                    "o",
                    color=colour,
                    markersize=9,
                    fillstyle="none",
                    mew=2,
                )
            keys.append(el("li", _swatch(SERIES[colour], style), line.name))
        axes.set_xlabel(axis, color=SOFT)
        axes.margins(x=0.03, y=0.1)
        if log:
            axes.set(xscale="log", yscale="log")
            axes.minorticks_off()
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}\u00a0{unit}".strip())
        axes.grid(axis="y", color=GRID, linewidth=1)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.tick_params(color=GRID, labelcolor=SOFT, length=0, pad=5)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    described = "; ".join(
        f"{line.name} from {line.values[0]:.3g} to {line.values[-1]:.3g} {unit}".strip() for line in lines
    )
    drawing = _inline(text.getvalue(), f"{title} over {axis}s: {described}")
    return el("div", el("h4", title), el("ul", keys, class_="keys"), drawing, class_="panel")


def _swatch(variable: str, style: str) -> Markup:
    dashes = {"solid": None, "dashed": "6 4", "dotted": "2 3", "dashdot": "7 3 2 3"}[style]
    stroke = el("path", d="M1 5H25", stroke=f"var({variable})", stroke_width=3, stroke_dasharray=dashes)
    return el("svg", stroke, viewBox="0 0 26 10", width=26, height=10, aria_hidden="true")


def _inline(svg: str, description: str) -> Markup:
    """matplotlib's file as an element of the page: no prologue, only ids in use, the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    referred = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"<svg([^>]*) width=\"[^\"]*\"", r"<svg\1", svg, count=1)
    svg = re.sub(r"<svg([^>]*) height=\"[^\"]*\"", r"<svg\1", svg, count=1)
    label = el("title", description)
    return Markup(re.sub(r"<svg([^>]*)>", lambda found: f'<svg{found[1]} role="img">{label}', svg, count=1))


def sorted_by_first_spike(spikes: np.ndarray) -> np.ndarray:
    """bool [T, neurons] -> bool [spiking neurons, T]: no silent neuron, early ones first, equal patterns together."""
    active = spikes.T[spikes.any(0)]
    return active[np.lexsort((~active).T[::-1])]


def raster(spikes: np.ndarray, description: str) -> Markup:
    """uint8 [T, neurons] as an SVG, steps across and spiking neurons down.

    Rows of many neurons are merged into `_BINS` bins, whose opacity is the share of their neurons that fire.
    """
    rows = sorted_by_first_spike(spikes.astype(bool))
    steps = spikes.shape[0]
    column, height = 100 / steps, 160
    back = [
        el("rect", x=f"{t * column:.2f}", y=0, width=f"{column * 0.88:.2f}", height=height, class_="r-back")
        for t in range(steps)
    ]
    bins = min(_BINS, len(rows))
    binned = np.array([part.mean(0) for part in np.array_split(rows, bins)]) if bins else np.zeros((0, steps))
    marks = []
    for t in range(steps):
        edges = [0, *(np.flatnonzero(np.diff(binned[:, t])) + 1).tolist(), bins]
        for start, stop in pairwise(edges):
            if stop > start and binned[start, t] > 0:
                y, tall = height * start / bins, height * (stop - start) / bins
                opacity = f"{binned[start, t]:.2f}" if binned[start, t] < 1 else None
                marks.append(
                    el(
                        "rect",
                        x=f"{t * column:.2f}",
                        y=f"{y:.2f}",
                        width=f"{column * 0.88:.2f}",
                        height=f"{tall:.2f}",
                        opacity=opacity,
                    )
                )
    title = el("title", description)
    attributes = {"viewBox": f"0 0 100 {height}", "preserveAspectRatio": "none", "role": "img", "class_": "raster"}
    return el("svg", title, back, el("g", marks, class_="r-spike"), **attributes)
