"""What was trained on what, and how it went."""

from collections.abc import Callable, Sequence
from typing import Any

from train.report.figures import Curve, curves
from train.report.markup import Markup, count, el, percent, table
from train.report.section import Section
from train.report.story import RunSummary, Story


def config_value(config: dict[str, Any], *path: str) -> Any:
    """The value under nested keys, or None."""
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _stack(config: dict[str, Any]) -> str | None:
    convs, dense = (
        config_value(config, "model", "abstract", "convs"),
        config_value(config, "model", "abstract", "dense"),
    )
    parts = [f"conv {channels}, stride {stride}" for channels, stride in convs or ()] + [
        f"dense {width}" for width in dense or ()
    ]
    return " \u2192 ".join(parts) or None


def _objectives(config: dict[str, Any]) -> str | None:
    weights = config_value(config, "train", "objectives") or {}
    return ", ".join(f"{name} \u00d7 {weight:g}" for name, weight in weights.items()) or None


def _number(value: Any) -> str | None:
    return None if value is None else count(value) if isinstance(value, int) else f"{value:g}"


_FACTS: tuple[tuple[str, Callable[[RunSummary], Any]], ...] = (
    ("Data set", lambda run: run.data.get("name")),
    ("Training images", lambda run: _number(run.data.get("images"))),
    ("Training texts", lambda run: _number(run.data.get("texts"))),
    ("Checkpoints judged by", lambda run: config_value(run.config, "train", "task")),
    ("Objectives, weighted", lambda run: _objectives(run.config)),
    ("Steps", lambda run: _number(config_value(run.config, "train", "steps"))),
    ("Images per step", lambda run: _number(config_value(run.config, "train", "batch"))),
    ("Learning rate", lambda run: _number(config_value(run.config, "train", "lr"))),
    ("Image size", lambda run: (size := config_value(run.config, "model", "concrete", "image_size")) and f"{size} px"),
    ("Spiking stack", lambda run: _stack(run.config)),
    ("Time steps T", lambda run: _number(config_value(run.config, "model", "abstract", "steps"))),
    ("Weights on the stack", lambda run: (config_value(run.config, "quantizer") or "float") if run.config else None),
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
        "Training runs",
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
    objectives = list(config_value(run.config, "train", "objectives") or {})
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
    lead = "The firing rate is the share of neurons that spike in a time step. The ring marks the best checkpoint."
    return Section("training", "How training went", lead, figures)
