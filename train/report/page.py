"""The page around the sections: one file that asks nothing of the network."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from hw.artifact import staged_file
from train.report import examples, sections, training
from train.report.headline import headline
from train.report.markup import Markup, el
from train.report.section import Section
from train.report.story import Story

SECTIONS = (
    training.trained,
    training.training,
    sections.accuracies,
    sections.joints,
    examples.spikes,
    sections.rates,
    sections.retrieval,
    examples.retrievals,
    examples.answers,
    sections.environment,
    sections.reproduce,
)


def page(story: Story) -> str:
    """The whole document."""
    return document(story.title, headline(story), [part for make in SECTIONS if (part := make(story)) is not None])


def style_sheet(package: str) -> str:
    """How rasters look, and a package's own style around them."""
    sheets = (("train.report", "raster.css"), (package, "style.css"))
    return "\n".join(resources.files(p).joinpath(name).read_text(encoding="utf-8") for p, name in sheets)


def document(title: str, header: Markup, parts: Sequence[Section]) -> str:
    """A page of sections under a header, with links to them."""
    style = style_sheet("train.report")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(style)),
    )
    links = el("ul", [el("li", el("a", part.title, href=f"#{part.name}")) for part in parts])
    contents = el("nav", links, aria_label="Sections") if parts else None
    body = el("body", header, contents, el("main", [part.draw() for part in parts]))
    return "<!doctype html>\n" + el("html", head, body, lang="en") + "\n"


def save(text: str, path: Path) -> None:
    """Write a page, whole or not at all."""
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
