"""The page of `train.report.chip`: does it fit, what does it need, what does it cost, what does it do."""

from math import ceil, floor, log10
from typing import Any

import numpy as np

from hw.chips import RESOURCES
from hw.energy import NO_LOIHI2
from train.report.chip_figures import SHOWN_LAYERS, SHOWN_STEPS, colour, core_map, membranes
from train.report.chip_story import ChipStory, cores_of, si, span
from train.report.figures import raster
from train.report.markup import Markup, count, el, percent, plural, table
from train.report.page import document
from train.report.section import Section
from train.report.sections import rates
from train.report.story import Story

_SHOWN_CHIPS = 8


def chip_page(story: ChipStory) -> str:
    """The whole document."""
    parts = [_fit(story), _resources(story), _energy(story), *_activity(story), _spikes(story), _membranes(story)]
    return document(f"{story.name} on {story.resources.chip.title}", _header(story), [*parts, _method(story)])


def _header(story: ChipStory) -> Markup:
    placed, counts = story.resources, story.counts
    chip = placed.chip
    well = not placed.misfits
    broken = plural(len({misfit.layer for misfit in placed.misfits}), "layer")
    said = "\u2713 Every core stays within every limit." if well else f"\u2717 Does not fit: {broken} beyond a limit."
    verdict = el(
        "div",
        el("span", count(placed.cores), class_="number"),
        el("span", f"cores, on {plural(placed.chips, chip.title + ' chip')} of {chip.cores}", class_="label"),
        el("p", said),
        class_=f"card verdict {'good' if well else 'bad'}",
    )
    neurons = sum(layer.cores.size for layer in placed.layers.values())
    synapses = sum(layer.synapses for layer in placed.layers.values())
    known = [(e.low, e.high) for e in story.estimates if e.name.startswith("Loihi 1") and e.low is not None]
    lowest, highest = min((low or 0 for low, _ in known), default=0), max((high or 0 for _, high in known), default=0)
    synops, macs = (counts.total("synops") or 0) / counts.samples, counts.total("macs") or 0
    cards = [
        verdict,
        _card(_big(neurons), "neurons", f"{_big(synapses)} synapses"),
        _card(_big(synops), "synaptic operations a sample", f"{_big(macs)} multiplications in a dense network, once"),
        _card(
            span(lowest, highest).replace(" to ", "\u2013"),
            "a sample, estimated",
            f"Loihi 1, {plural(len(known), 'published model')}",
        ),
    ]
    what = (
        "What this network would cost on the chip: cores filled by a real packing, operations counted from "
        f"{plural(counts.samples, 'simulated sample')} of {plural(counts.steps, 'step')}, energy estimated from "
        "published figures. No chip was measured."
    )
    title = el("h1", f"{story.name} on {chip.title}")
    return el("header", title, el("p", what, class_="what"), el("div", cards, class_="cards"), id="top")


def _big(number: float) -> str:
    """A whole number that fits a card: 116,336,920 is 116 M."""
    return count(number) if number < 1e6 else f"{float(f'{number / 1e6:.3g}'):,g}\u00a0M"


def _card(number: str, label: str, note: str) -> Markup:
    parts = (el("span", number, class_="number"), el("span", label, class_="label"), el("p", note))
    return el("div", *parts, class_="card")


def _fit(story: ChipStory) -> Section:
    placed = story.resources
    held: dict[int, list[str]] = {}
    for core, block in placed.placed:
        if block.layer not in held.setdefault(core, []):
            held[core].append(block.layer)
    maps = [core_map(story, chip, held) for chip in range(min(placed.chips, _SHOWN_CHIPS))]
    keys = []
    for number, (name, layer) in enumerate(placed.layers.items(), 1):
        swatch = el("span", number, class_="c-key", style=f"border-color: var({colour(story, name)})")
        cores = f"{plural(len(cores_of(placed, name)), 'core')}, {plural(layer.blocks, 'block')}"
        cores = cores if layer.cores.min() >= 0 else "not placed"
        keys.append(el("li", swatch, el("strong", name), el("small", cores)))
    lead = (
        "Every square is a core, four to a tile. The number names the layer, the percentage the fullest of its four "
        "resources, and so does the opacity; point at a core for all four."
    )
    if placed.chips > _SHOWN_CHIPS:
        lead += f" The first {_SHOWN_CHIPS} of {placed.chips} chips."
    rows = [
        [m.layer, m.what, count(m.value), count(m.limit), m.source, m.fix[0].upper() + m.fix[1:]]
        for m in placed.misfits
    ]
    head = ["Layer", "What", "Needs", "A core holds", "Source of the limit", "What to do"]
    broken = table(head, rows, "What does not fit") if rows else el("p", "Nothing is left over.", class_="measured")
    drawn = el("div", maps, class_="chips") if maps else None
    return Section("cores", "Does it fit?", lead, drawn, el("ul", keys, class_="keys c-keys"), broken)


def _resources(story: ChipStory) -> Section:
    placed = story.resources
    rows = [
        [
            name,
            "\u00d7".join(map(str, layer.cores.shape)),
            *map(count, (layer.needs[0], layer.synapses, layer.needs[1], layer.needs[2])),
            f"{layer.needs[3] / 8192:,.1f}\u00a0KB",
            layer.blocks,
        ]
        for name, layer in placed.layers.items()
    ]
    head = ["Layer", "Shape", "Neurons", "Synapses", "Input axons", "Output axons", "Synapse memory", "Blocks"]
    layers = table(head, rows, "What each layer needs, over all its blocks", "numbers")
    use = placed.utilisation if placed.cores else np.zeros((1, len(RESOURCES)))
    limits = [
        [limit.what, count(limit.value), percent(100 * mean), percent(100 * most), limit.source]
        for limit, mean, most in zip(placed.chip.limits, use.mean(0), use.max(0), strict=True)
    ]
    limits.append(["cores of a chip", count(placed.chip.cores), "", "", placed.chip.cores_source])
    head = ["Limit of a core", "Value", "Used, mean core", "Used, fullest core", "Source"]
    lead = (
        "Synapses are nonzero connections, a convolution\u2019s counted over all positions with padding excluded. A "
        "layer that is cut into blocks hears its inputs once in each, so that its axons and memory grow."
    )
    return Section("resources", "Resources", lead, layers, table(head, limits, f"Limits of {placed.chip.title}"))


# Energy


def _energy(story: ChipStory) -> Section:
    known = [e for e in story.estimates if e.low and e.high]
    bottom = floor(log10(min((e.low or 1 for e in known), default=1e-9)))
    top = max(ceil(log10(max((e.high or 0 for e in known), default=1e-6))), bottom + 1)

    def along(joules: float) -> float:
        return 100 * (log10(joules) - bottom) / (top - bottom)

    bars, rows = [], []
    for e in story.estimates:
        value = span(e.low, e.high) if e.low is not None and e.high is not None else "\u2013"
        rows.append([e.name, value, e.source, e.note])
        if e in known:
            start, stop = along(e.low or 1), along(e.high or 1)
            kind = "fill spiking" if "dense" not in e.name else "fill"
            # A single value is a tick as wide as the eye needs.
            style = f"margin-left: {min(start, 99):.2f}%; width: {max(stop - start, 1):.2f}%"
            track = el("div", el("span", class_=kind, style=style), class_="track")
            label = el("div", el("strong", e.name), class_="name")
            bars.append(el("li", label, track, el("span", value, class_="value")))
    lead = (
        f"Joules for one sample of {plural(story.counts.steps, 'step')}, on a logarithmic scale from "
        f"{si(10.0**bottom)} to {si(10.0**top)}. {NO_LOIHI2} "
        "They hold memory, neurons and, in SANA-FE\u2019s, messages; the 45 nm figures are arithmetic alone: compare "
        "figures of one kind."
    )
    whole = table(
        ["Model", "A sample", "Source", "What it leaves out"], rows, "Estimates, not measurements", "energies"
    )
    drawn = el("ul", bars, class_="bars wide") if bars else None
    return Section("energy", "Energy", lead, drawn, whole, _measured(story))


def _measured(story: ChipStory) -> Markup:
    m, samples = story.measured, story.counts.samples
    if m.joules is None:
        return el(
            "p", f"This machine\u2019s own energy while it simulated: not measured. {m.reason}.", class_="measured"
        )
    found = "; ".join(f"{name} {si(joules / samples)} a sample" for name, joules in m.joules.items())
    return el(
        "p",
        f"This machine while it simulated (event-driven simulator, {m.seconds:.3g} s, idle power included): {found}.",
        class_="measured",
    )


# Activity


def _activity(story: ChipStory) -> list[Section]:
    counts = story.counts
    rate = {"input": counts.input_rate, **{name: layer.rate for name, layer in counts.layers.items()}}
    empty: dict[str, Any] = {key: [] for key in ("runs", "accuracies", "joints")}
    bars = rates(Story(title="", environment={}, questions=0, retrieval={}, concepts=0, rates=rate, **empty))

    def cell(value: int | None) -> str:
        return "\u2013" if value is None else count(value / counts.samples)

    rows = [["input", cell(counts.input_spikes), "", "", cell(counts.input_messages), "", ""]]
    for name, layer in counts.layers.items():
        values = (layer.spikes, layer.synops, layer.updates, layer.messages, layer.hops, layer.macs * counts.samples)
        rows.append([name, *map(cell, values)])
    head = ["Layer", "Spikes", "Synaptic operations", "Neuron updates", "Messages", "Hops", "Dense network, once"]
    counted = table(head, rows, "Mean of a sample. Synaptic operations are those that the layer receives", "numbers")
    lead = (
        "A synaptic operation is one spike at one nonzero weight. A message is one spike to one core that hears it, "
        "a hop the way from a tile to the next. The last column counts multiplications."
    )
    return [*([bars] if bars else []), Section("operations", "Operations", lead, counted)]


def _ticks(steps: int) -> Markup:
    return el("div", [el("span", t) for t in (range(1, steps + 1) if steps <= 8 else (1, steps))], class_="ticks")


def _spikes(story: ChipStory) -> Section:
    strips = []
    for name, values in [("input", story.spikes), *story.result.layers.items()][: SHOWN_LAYERS + 1]:
        flat = (values[:SHOWN_STEPS, 0] != 0).reshape(min(len(values), SHOWN_STEPS), -1)
        spiking = f"{count(flat.any(0).sum())} of {count(flat.shape[1])} spike"
        described = f"Layer {name}, first sample: {spiking}, firing rate {100 * flat.mean():.2f} %"
        rate = el("small", f"rate {percent(100 * flat.mean())}")
        label = el("p", el("strong", name), el("small", spiking), rate, class_="layer")
        strips.append(el("div", raster(flat, described), _ticks(len(flat)), label, class_="strip"))
    lead = (
        "The first sample. Time steps go from left to right, down the page are the neurons that spike at all, early "
        "ones first." + f" The first {SHOWN_STEPS} steps." * (len(story.spikes) > SHOWN_STEPS)
    )
    return Section("spikes", "Spikes", lead, el("div", strips, class_="strips panel"))


def _membranes(story: ChipStory) -> Section:
    panels = [membranes(story, layer) for layer in story.program.synaptic[:SHOWN_LAYERS]]
    lead = (
        f"The first {SHOWN_STEPS} steps at most of the first sample: v / 64 of up to three neurons of each layer, as "
        "the threshold meets it, and their spikes in all its steps. A point above the "
        "threshold is a spike, and the next step starts from 0."
    )
    return Section("membranes", "Membranes", lead, el("div", panels, class_="panels"))


_METHOD = (
    "Axons and synapse memory follow nengo-loihi\u2019s model of a Loihi core, the only public one (block.py, "
    "conv.py). A dense layer has an axon for every neuron that a block hears. A convolution\u2019s channels share one "
    "for every pixel, and pixels under the same taps share their weights.",
    "Every 64 weights of a row take 64 b + 10 bits, in words of 64; b is 8, 6 more in a layer with delays, and the "
    "bits of an index where a row is not kept in full.",
    "Layers are cut into the fewest equal blocks that each fit a core, and packed first-fit decreasing.",
    "Cores are laid out in the order of the layers, four to a tile, 8 \u00d7 4 tiles to a chip. A real compiler may "
    "place them better.",
    "The host, input and output, links between chips, and idle power are in no estimate.",
)
_LOIHI2 = "Loihi 2\u2019s axon limits and memory formats are not public: Loihi 1\u2019s stand in."


def _method(story: ChipStory) -> Section:
    told = [*_METHOD, *([_LOIHI2] if story.resources.chip.name != "loihi1" else [])]
    return Section(
        "method", "How this was counted", "All assumptions.", el("ul", [el("li", t) for t in told], class_="told")
    )
