"""Single samples to look at: spikes, captions found, questions answered."""

from typing import Any

import numpy as np

from train.report.figures import raster
from train.report.markup import Markup, count, el, percent, picture
from train.report.section import Section
from train.report.story import AnswerExample, RetrievalExample, SpikeExample, Story


def strips(layers: dict[str, np.ndarray]) -> Markup:
    """A raster of each layer's spikes [T, neurons], and how many neurons spike how often."""
    panels = []
    for name, spikes in layers.items():
        steps, neurons = spikes.shape
        spiking, rate = (
            int(spikes.any(0).sum()),
            percent(100 * float(np.mean(spikes != 0))) if spikes.size else "\u2013",
        )
        within = f"{count(spiking)} of {count(neurons)} neurons spike within {steps} time steps"
        described = f"Layer {name}: {within}, firing rate {rate}"
        ticks = el(
            "div",
            [el("span", t) for t in range(1, steps + 1)] if steps <= 8 else [el("span", 1), el("span", steps)],
            class_="ticks",
        )
        label = el(
            "p",
            el("strong", name),
            el("small", f"{count(spiking)} of {count(neurons)} spike"),
            el("small", f"rate {rate}"),
            class_="layer",
        )
        panels.append(el("div", raster(spikes, described), ticks, label, class_="strip"))
    return el("div", panels, class_="strips")


def _spike_example(example: SpikeExample) -> Markup:
    seen = el("div", picture(example.image, f"Sample: {example.caption}"), el("p", example.caption), class_="seen")
    return el("article", seen, strips(example.layers), class_="spikes")


def spikes(story: Story) -> Section | None:
    """Image beside a raster of every layer."""
    if not story.spikes:
        return None
    lead = (
        "Time steps go from left to right. Down the page are the neurons that spike at all, early ones first and equal "
        "patterns together; silent ones are left out. Below: how many neurons spike, and the layer\u2019s firing rate "
        "for this sample."
    )
    return Section("spikes", "What the spikes look like", lead, [_spike_example(example) for example in story.spikes])


def _found(item: Any, right: bool, rank: int) -> Markup:
    mark = el("span", "\u2713 own match", class_="mark good") if right else None
    shown = (
        el("span", item, class_="caption")
        if isinstance(item, str)
        else picture(item, f"Picture at rank {rank}{', the own match' * right}")
    )
    return el("li", el("span", rank, class_="rank"), shown, mark, class_="right" if right else None)


def _retrieval_example(example: RetrievalExample) -> Markup:
    rank = next((i for i, (_, right) in enumerate(example.found, 1) if right), None)
    missed = f"\u2717 own match not among the first {len(example.found)}"
    outcome = f"\u2713 own match at rank {rank}" if rank else missed
    query = example.query
    query = el("p", query, class_="caption") if isinstance(query, str) else picture(query, "Query picture")
    head = el("div", query, el("p", outcome, class_=f"mark {'good' if rank else 'bad'}"), class_="query")
    pictures = any(not isinstance(item, str) for item, _ in example.found)
    items = [_found(item, right, i) for i, (item, right) in enumerate(example.found, 1)]
    return el(
        "article",
        head,
        el("ol", items, class_="found pictures" if pictures else "found"),
        class_="example wide" if pictures else "example",
    )


def retrievals(story: Story) -> Section | None:
    if not story.retrievals:
        return None
    lead = "A held-out query and what the model puts nearest to it, nearest first."
    return Section(
        "found",
        "Retrieval examples",
        lead,
        el("div", [_retrieval_example(example) for example in story.retrievals], class_="grid"),
    )


def _answer_example(example: AnswerExample) -> Markup:
    given = example.top[0][0] if example.top else None
    correct = given == example.right
    badge = el("p", "\u2713 right" if correct else "\u2717 wrong", class_=f"mark {'good' if correct else 'bad'}")
    said = None if correct else el("p", "Right answer: ", el("strong", example.right), class_="said")
    rows = []
    for answer, probability in example.top:
        fill = el("span", class_="fill", style=f"width: {100 * min(max(probability, 0), 1):.1f}%")
        name = el("span", answer, " \u2713" if answer == example.right else None, class_="answer")
        rows.append(
            el("li", name, el("div", fill, class_="track"), el("span", percent(100 * probability), class_="value"))
        )
    head = el(
        "div",
        picture(example.image, f"Picture for the question: {example.question}"),
        el("div", el("h3", example.question), badge, said),
        class_="asked",
    )
    return el("article", head, el("ol", rows, class_="top"), class_=f"example {'right' if correct else 'wrong'}")


def answers(story: Story) -> Section | None:
    if not story.answers:
        return None
    lead = "Answers of the integer program with their probabilities. Chosen to be looked at, not to be counted."
    return Section(
        "answers",
        "Questions about pictures",
        lead,
        el("div", [_answer_example(example) for example in story.answers], class_="grid"),
    )
