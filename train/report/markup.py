"""HTML and SVG built from calls, escaped by construction: only `Markup` is trusted."""

import base64
import html
import io
from typing import Any

import numpy as np
from PIL import Image

VOID = {"img", "meta"}  # not those of SVG, which HTML closes by their end tag


class Markup(str):
    """Text that is markup already."""


def render(child: Any) -> str:
    """Markup as it is, lists part by part, everything else as escaped text."""
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, (list, tuple)):
        return "".join(map(render, child))
    return html.escape(str(child))


def el(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. `class_` stands for class, `_` in an attribute's name for `-`.

    An attribute that is None or False is left out, one that is True stands bare.

    >>> el("p", "2 < 3", class_="note")
    '<p class="note">2 &lt; 3</p>'
    """
    parts = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            parts.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    opened = f"<{' '.join(parts)}>"
    return Markup(opened if name in VOID and not children else f"{opened}{render(children)}</{name}>")


def picture(pixels: np.ndarray, alt: str, class_: str = "") -> Markup:
    """uint8 [H, W, 3] as an <img> that holds its own PNG. Small pictures are enlarged with their pixels in sight."""
    height, width = pixels.shape[:2]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    classes = f"{class_} pixels" if max(height, width) <= 96 else class_
    return el("img", src=source, alt=alt, width=width, height=height, class_=classes.strip() or None)


def table(head: list[Any], rows: list[list[Any]], caption: str, class_: str | None = None) -> Markup:
    """A table whose first column heads its rows, in a box that scrolls sideways where the screen is narrow."""
    body = [
        el("tr", el("th", first, scope="row"), [c if _is_cell(c) else el("td", c) for c in rest])
        for first, *rest in rows
    ]
    header = el("thead", el("tr", [el("th", name, scope="col") for name in head])) if head else None
    whole = el("table", el("caption", caption), header, el("tbody", body), class_=class_)
    return el("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _is_cell(value: Any) -> bool:
    return isinstance(value, Markup) and value.startswith("<td")


def percent(value: float, digits: int = 1) -> str:
    """A percentage as text; the space does not break."""
    return f"{value:.{digits}f}\u00a0%"


def count(value: float) -> str:
    """A whole number with thousands separators."""
    return f"{round(value):,}"


def plural(number: int, word: str) -> str:
    return f"{count(number)} {word}{'' if number == 1 else 's'}"
