"""The page of `ashnets bench simulate`: how much faster than Lava, how near to the machine's limit, how cost grows."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from hw.bench import SIMULATORS
from hw.bench_growth import Growth
from train.report.figures import Curve, curves
from train.report.markup import Markup, el, percent, table
from train.report.page import document, save
from train.report.section import Section

Row = Mapping[str, float | str | int]


def write_bench_page(rows: Sequence[Row], grown: Sequence[Growth], path: Path) -> None:
    """rows: of `hw.bench.measure`. The page is written whole or not at all."""
    save(document("Simulators, side by side", _header(), [_speed(rows), _growth(grown)]), path)


def _header() -> Markup:
    what = (
        f"Timed in one run on {os.cpu_count()} cores ({platform.machine()}). Every output was compared with "
        "Lava\u2019s, spike for spike, before it was timed. Ratios hold for this machine."
    )
    return el("header", el("h1", "Simulators, side by side"), el("p", what, class_="what"), id="top")


def _speed(rows: Sequence[Row]) -> Section:
    head = ["Network", "Batch", "Steps", "Lava, \u00b5s a step", *SIMULATORS, "events, of the limit"]
    cells = []
    for row in rows:
        ours = [
            f"{row[f'{name}_times_lava']:,.0f}\u00d7 ({row[f'{name}_us']:,.3g}\u00a0\u00b5s)" for name in SIMULATORS
        ]
        share = percent(100 * float(row["events_share_of_limit"]), 0)
        cells.append([row["case"], row["batch"], row["steps"], f"{row['lava_us']:,.0f}", *ours, share])
    lead = (
        "Time for one step of one sample. Lava\u2019s is its bare step loop, without starting a network or moving "
        "data. The limit is the bandwidth of the first-level caches, measured in the same run, for the bytes that "
        "events must move: 10 for a synaptic operation, 21 for a neuron\u2019s update."
    )
    return Section(
        "speed", "How fast", lead, table(head, cells, "How many times faster than Lava, and time", "numbers")
    )


def _growth(grown: Sequence[Growth]) -> Section:
    panels = []
    for found in grown:
        sweep = found.sweep
        lines = [Curve(name=name, steps=sweep.values, values=values) for name, values in found.us.items()]
        panels.append(curves(f"{sweep.name} ({sweep.what})", lines, "\u00b5s", sweep.name, log=True))
    lead = "Time for one step of one sample while one quantity grows, both on logarithmic scales."
    return Section("growth", "How the cost grows", lead, el("div", panels, class_="panels"))
