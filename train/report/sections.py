"""What the line achieves and how to get there again. A section without data is None."""

import json

from train.report.headline import FAILED, PASSED, is_reference, retrieval_chance, verdict
from train.report.markup import Markup, count, el, percent, table
from train.report.section import Section
from train.report.story import Story
from train.report.training import config_value


def accuracies(story: Story) -> Section | None:
    """Bars from 0 to 100 %; the highest reference is a line through all of them."""
    if not story.accuracies:
        return None
    references = [value for name, value, _ in story.accuracies if is_reference(name)]
    line = f"--reference: {max(references):.2f}%" if references else None
    rows = []
    for name, value, note in story.accuracies:
        fill = el(
            "span",
            class_="fill hatched" if is_reference(name) else "fill",
            style=f"width: {min(max(value, 0), 100):.2f}%",
        )
        described = [el("strong", name), el("small", note) if note else None]
        rows.append(
            el(
                "li",
                el("div", described, class_="name"),
                el("div", fill, class_="track"),
                el("span", percent(value), class_="value"),
            )
        )
    lead = (
        f"The same {count(story.questions)} questions for every row, unless the row says otherwise."
        if story.questions
        else "In percent."
    )
    if references:
        lead += f" The dashed line at {percent(max(references))} is the best that is reached without the right picture."
    return Section(
        "accuracy",
        "Accuracy along the line",
        lead,
        el("ul", rows, class_="bars", style=line, data_reference=bool(references)),
    )


def _cell(mismatches: int | None, compared: int | None) -> Markup:
    if mismatches is None or not (compared or mismatches):
        return el("td", "\u2013")
    parts = [
        el("b", f"\u2713 {mismatches}" if mismatches == 0 else f"\u2717 {count(mismatches)}"),
        el("small", f" of {count(compared or 0)}"),
    ]
    return el("td", parts, class_=PASSED if mismatches == 0 else FAILED)


def joints(story: Story) -> Section | None:
    """A row for each comparison, a column for each layer."""
    if not story.joints:
        return None
    layers = list(dict.fromkeys(name for joint in story.joints for name in joint.mismatches))
    rows = []
    for joint in story.joints:
        cells = [_cell(joint.mismatches.get(name), joint.compared.get(name)) for name in layers]
        total = _cell(joint.total, sum(joint.compared.values()))
        rows.append([f"{joint.left} against {joint.right}", count(joint.samples), *cells, total])
    lead = {
        PASSED: "Both sides got the same input spikes; all outputs of all neurons were compared, with no tolerance.",
        FAILED: "Spikes differ. There is no tolerance on this line, so one side of the marked joint has a bug.",
    }.get(verdict(story.joints), "A joint at which nothing was compared proves nothing.")
    whole = table(
        ["Joint", "Samples", *layers, "All layers"],
        rows,
        "Mismatching of compared spikes (time steps \u00d7 neurons \u00d7 samples)",
        "joints",
    )
    return Section("joints", "Spike for spike", lead, whole)


def rates(story: Story) -> Section | None:
    """Mean firing rate of each layer; the full width is the next ten percent above the highest."""
    if not story.rates:
        return None
    full = min(100, 10 * (int(10 * max(story.rates.values())) + 1))
    rows = []
    for name, rate in story.rates.items():
        fill = el("span", class_="fill spiking", style=f"width: {100 * 100 * rate / full:.2f}%")
        label = el("div", el("strong", name), class_="name")
        rows.append(
            el("li", label, el("div", fill, class_="track"), el("span", percent(100 * rate, 2), class_="value"))
        )
    lead = f"Mean share of neurons that spike in a time step; a full bar is {full}\u00a0%."
    return Section("rates", "Firing rate of each layer", lead, el("ul", rows, class_="bars"))


def retrieval(story: Story) -> Section | None:
    """Recalls by direction and K beside chance, then every other metric by its name."""
    if not story.retrieval:
        return None
    ks = sorted(
        {
            int(k)
            for way, _, k in (name.partition("@") for name in story.retrieval)
            if way in ("tr", "ir") and k.isdigit()
        }
    )
    ways = (("tr", "picture \u2192 captions"), ("ir", "caption \u2192 pictures"))
    rows = [
        [label, *(percent(story.retrieval[f"{way}@{k}"]) if f"{way}@{k}" in story.retrieval else "\u2013" for k in ks)]
        for way, label in ways
        if any(f"{way}@{k}" in story.retrieval for k in ks)
    ]
    if rows and story.concepts > 0:
        rows.append(["chance, at most", *(percent(retrieval_chance(k, story.concepts)) for k in ks)])
    recalls = (
        table(
            ["Query", *(f"R@{k}" for k in ks)], rows, "Share of queries whose own match is among the first K", "recalls"
        )
        if rows
        else None
    )
    shown = {f"{way}@{k}" for way, _ in ways for k in ks}
    others = [
        [name.replace("_", " "), percent(100 * v if "rate" in name else v)]
        for name, v in story.retrieval.items()
        if name not in shown
    ]
    rest = table([], others, "Further figures of the same evaluation", "facts") if others else None
    held_out = (
        f"{count(story.concepts)} concepts that no training picture shows." if story.concepts else "Held-out pictures."
    )
    return Section("retrieval", "Finding pictures and captions", held_out, recalls, rest)


def environment(story: Story) -> Section | None:
    if not story.environment:
        return None
    whole = table([], [[name, value] for name, value in story.environment.items()], "Versions and machine", "facts")
    return Section("environment", "Environment", "Where the figures on this page come from.", whole)


def reproduce(story: Story) -> Section | None:
    """The command and, for each run, what fixes it: seed, data and configuration."""
    if not story.runs:
        return None
    details = []
    for run in story.runs:
        data = ", ".join(f"{key} {value}" for key, value in run.data.items())
        config = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
        summary = el(
            "summary",
            el("strong", run.name),
            f" \u00b7 seed {seed}" if (seed := config_value(run.config, "train", "seed")) is not None else "",
        )
        details.append(
            el(
                "details",
                summary,
                el("p", f"Data: {data}", class_="data") if data else None,
                el("pre", el("code", config), tabindex="0"),
            )
        )
    lead = (
        "One command trains, quantizes, simulates, compares and writes such a page. Below: what this one was made with."
    )
    return Section("reproduce", "Do it again", lead, el("pre", el("code", "ashnets demo")), details)
