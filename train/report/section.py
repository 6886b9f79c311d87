"""A part of the page that has a heading and a place in the table of contents."""

from typing import Any

from train.report.markup import Markup, el


class Section:
    """name: the anchor. lead: the sentence that says what is to be seen. parts: what is under it."""

    def __init__(self, name: str, title: str, lead: str, *parts: Any) -> None:
        self.name, self.title, self.lead, self.parts = name, title, lead, parts

    def draw(self) -> Markup:
        return el("section", el("h2", self.title), el("p", self.lead, class_="lead"), *self.parts, id=self.name)
