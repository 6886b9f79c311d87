"""The body of the report, from what was trained to how to do it again. A section without data is None."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from train.report.figures import Curve, curves
from train.report.headline import FAILED, PASSED, is_reference, retrieval_chance, verdict
from train.report.markup import Markup, count, el, percent, table
from train.report.section import Section
from train.report.story import RunSummary, Story


def _get(config: dict[str, Any], *path: str) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _stack(config: dict[str, Any]) -> str | None:
    convs, dense = _get(config, "model", "abstract", "convs"), _get(config, "model", "abstract", "dense")
    parts = [f"conv {channels}, stride {stride}" for channels, stride in convs or ()] + [
        f"dense {width}" for width in dense or ()
    ]
    return " \u2192 ".join(parts) or None


def _objectives(config: dict[str, Any]) -> str | None:
    weights = _get(config, "train", "objectives") or {}
    return ", ".join(f"{name} \u00d7 {weight:g}" for name, weight in weights.items()) or None


def _number(value: Any) -> str | None:
    return None if value is None else count(value) if isinstance(value, int) else f"{value:g}"


_FACTS: tuple[tuple[str, Callable[[RunSummary], Any]], ...] = (
    ("Data set", lambda run: run.data.get("name")),
    ("Training images", lambda run: _number(run.data.get("images"))),
    ("Training texts", lambda run: _number(run.data.get("texts"))),
    ("Checkpoints judged by", lambda run: _get(run.config, "train", "task")),
    ("Objectives, weighted", lambda run: _objectives(run.config)),
    ("Steps", lambda run: _number(_get(run.config, "train", "steps"))),
    ("Images per step", lambda run: _number(_get(run.config, "train", "batch"))),
    ("Learning rate", lambda run: _number(_get(run.config, "train", "lr"))),
    ("Image size", lambda run: (size := _get(run.config, "model", "concrete", "image_size")) and f"{size} px"),
    ("Spiking stack", lambda run: _stack(run.config)),
    ("Time steps T", lambda run: _number(_get(run.config, "model", "abstract", "steps"))),
    ("Weights on the stack", lambda run: (_get(run.config, "quantizer") or "float") if run.config else None),
    ("Best checkpoint", lambda run: f"step {count(run.best_step)}"),
)


def trained(story: Story) -> Section | None:
    """What was trained on what: a column for each run."""
    if not story.runs:
        return None
    rows = [
        [name, *("\u2013" if value is None else str(value) for value in values)]
        for name, get in _FACTS
        if _any(values := [get(r) for r in story.runs])
    ]
    whole = table(
        ["", *(run.name for run in story.runs)],
        rows,
        "The runs, each starting from the one before it or from nothing",
        "facts",
    )
    return Section(
        "trained",
        "What was trained on what",
        "Every run is one column; its full configuration is at the end of the page.",
        whole,
    )


def _any(values: Sequence[Any]) -> bool:
    return any(value is not None for value in values)


def _logged(run: RunSummary, keys: Sequence[str], scale: float = 1, names: dict[str, str] | None = None) -> list[Curve]:
    """A curve for each key that the training lines of the log hold."""
    lines = []
    for key in keys:
        points = [
            (entry["step"], scale * entry[key]) for entry in run.log if entry.get("split") == "train" and key in entry
        ]
        if points:
            steps, values = zip(*points, strict=True)
            lines.append(Curve(name=(names or {}).get(key, key), steps=steps, values=values))
    return lines


def _panels(run: RunSummary) -> list[Markup]:
    objectives = list(_get(run.config, "train", "objectives") or {})
    losses = _logged(run, ["loss", *objectives] if len(objectives) > 1 else objectives or ["loss"])
    rates = _logged(run, ("rate_in", "rate"), 100, {"rate_in": "into the stack", "rate": "out of the stack"})
    panels = [curves("Training loss", losses)] if losses else []
    scored = [entry for entry in run.history if "score" in entry]
    if scored:
        name = next(
            (text for key, text in (("accuracy", "accuracy"), ("mean_recall", "mean recall")) if key in scored[0]),
            "score",
        )
        steps, values = [entry["step"] for entry in scored], [entry["score"] for entry in scored]
        best = steps.index(run.best_step) if run.best_step in steps else None
        label = name if best is None else f"{name}, best {percent(values[best])} at step {count(run.best_step)}"
        panels.append(curves("On validation data", [Curve(name=label, steps=steps, values=values, marked=best)], "%"))
    return panels + ([curves("Firing rate", rates, "%")] if rates else [])


def training(story: Story) -> Section | None:
    """Losses, validation score and firing rate of each run."""
    drawn = [(run, panels) for run in story.runs if (panels := _panels(run))]
    if not drawn:
        return None
    figures = [
        el("figure", el("figcaption", el("h3", run.name)), el("div", panels, class_="panels"), class_="run")
        for run, panels in drawn
    ]
    lead = "The firing rate is the share of neurons that spike in a time step. The ring marks the checkpoint that was kept."
    return Section("training", "How training went", lead, figures)


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
        lead += f" The dashed line at {percent(max(references))} is the best that was reached without looking at the right picture."
    return Section(
        "accuracy",
        "Accuracy along the line",
        lead,
        el("ul", rows, class_="bars", style=line, data_reference=bool(references)),
    )


def _cell(mismatches: int | None, compared: int | None) -> Markup:
    if mismatches is None or not compared:
        return el("td", "\u2013")
    parts = [
        el("b", f"\u2713 {mismatches}" if mismatches == 0 else f"\u2717 {count(mismatches)}"),
        el("small", f" of {count(compared)}"),
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
        rows.append([f"{joint.left} = {joint.right} ?", count(joint.samples), *cells, total])
    lead = {
        PASSED: "Each way to run the spiking stack got the same input spikes, and every output of every neuron was compared. No tolerance.",
        FAILED: "Spikes differ. There is no tolerance on this line, so this is a bug in one of the two sides of the marked joint.",
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
    lead = f"Mean share of neurons that spike in a time step; a full bar is {full}\u00a0%. Fewer spikes are less work for the chip."
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
            f" \u00b7 seed {seed}" if (seed := _get(run.config, "train", "seed")) is not None else "",
        )
        details.append(
            el(
                "details",
                summary,
                el("p", f"Data: {data}", class_="data") if data else None,
                el("pre", el("code", config), tabindex="0"),
            )
        )
    lead = "One command trains, quantizes, simulates, compares and writes this page. The configurations below are those of this page."
    return Section("reproduce", "Do it again", lead, el("pre", el("code", "ashnets demo")), details)
