"""The line that data follows, drawn twice: across for a wide screen, downwards for a narrow one.

The style sheet shows one of them.
"""

from dataclasses import dataclass

from train.report.markup import Markup, el

DESCRIPTION = (
    "An image goes through the concrete encoder to features F. Early features also go through a spike encoder, "
    "the spiking stack on the chip and a readout to E. Both are fused as V' = F + r E. Text goes through the text "
    "encoder to W. The cross-modal encoder reads V' and W and gives the answers."
)


@dataclass(frozen=True)
class Node:
    """A box by its centre. kind: 'host', 'chip', 'data' (no box) or 'sum'."""

    x: float
    y: float
    title: str
    note: str = ""
    kind: str = "host"
    width: float = 136
    height: float = 56

    def side(self, where: str) -> tuple[float, float]:
        dx, dy = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}[where]
        return self.x + dx * self.width / 2, self.y + dy * self.height / 2

    def draw(self) -> list[Markup]:
        left, top = self.x - self.width / 2, self.y - self.height / 2
        box = el(
            "rect",
            x=left,
            y=top,
            width=self.width,
            height=self.height,
            rx=10 if self.kind != "data" else 28,
            class_=f"d-{self.kind}",
        )
        lines = [(self.title, "d-title")] + [(self.note, "d-note")] * bool(self.note)
        offset = self.y + (5 if len(lines) == 1 else -4)
        words = [
            el("text", text, x=self.x, y=offset + 18 * i, class_=f"{css}{' d-on-chip' * (self.kind == 'chip')}")
            for i, (text, css) in enumerate(lines)
        ]
        return [*(_pins(self) if self.kind == "chip" else []), box, *words]


def _pins(node: Node) -> list[Markup]:
    """The legs of the package, so that the one part that is hardware looks like it."""
    pins = []
    for i in range(9):
        x = node.x - node.width / 2 + (i + 0.5) * node.width / 9
        pins += [
            el("rect", x=x - 2.5, y=y, width=5, height=8, class_="d-pin")
            for y in (node.y - node.height / 2 - 8, node.y + node.height / 2)
        ]
    return pins


def _arrow(points: list[tuple[float, float]], css: str = "d-line") -> Markup:
    """A polyline that ends in a head; corners are rounded by the stroke's join."""
    (x0, y0), (x, y) = points[-2], points[-1]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    head = f"M{x} {y}L{x - 7 * dx - 4 * dy} {y - 7 * dy - 4 * dx}L{x - 7 * dx + 4 * dy} {y - 7 * dy + 4 * dx}Z"
    shaft = [*points[:-1], (x - 6 * dx, y - 6 * dy)]
    path = "M" + "L".join(f"{a} {b}" for a, b in shaft)
    return el("g", el("path", d=path, class_=css), el("path", d=head, class_=f"{css}-head"))


def _spikes(x0: float, x1: float, y: float, times: tuple[float, ...]) -> list[Markup]:
    """A small spike train over an arrow from x0 to x1."""
    return [
        el("line", x1=x0 + t * (x1 - x0), x2=x0 + t * (x1 - x0), y1=y - 15, y2=y - 5, class_="d-spike") for t in times
    ]


def _letter(x: float, y: float, text: str) -> Markup:
    return el("text", text, x=x, y=y, class_="d-letter")


def _svg(name: str, width: int, height: int, *parts: object) -> Markup:
    title = el("title", DESCRIPTION)
    return el("svg", title, *parts, viewBox=f"0 0 {width} {height}", role="img", class_=f"diagram {name}")


def _wide() -> Markup:
    top, mid, low = 60, 186, 300
    image = Node(56, top, "image", kind="data", width=88, height=44)
    concrete = Node(216, top, "Concrete encoder", "host, ANN", width=164)
    encoder = Node(216, mid, "Spike encoder", "host", width=164)
    chip = Node(446, mid, "SPIKING STACK", "integers, on the chip", kind="chip", width=184, height=76)
    readout = Node(658, mid, "Spike readout", "host", width=140)
    fusion = Node(658, top, "V\u2032 = F + r\u00b7E", kind="sum", width=140, height=44)
    cross = Node(836, top, "Cross-modal", "encoder, host", width=130)
    answers = Node(1012, top, "answers", kind="data", width=96, height=44)
    text = Node(56, low, "text", kind="data", width=88, height=44)
    words = Node(216, low, "Text encoder", "host", width=164)
    nodes = (image, concrete, encoder, chip, readout, fusion, cross, answers, text, words)
    spiking = [(encoder, chip, (0.2, 0.38, 0.68)), (chip, readout, (0.15, 0.6))]
    arrows = [
        _arrow([image.side("right"), concrete.side("left")]),
        _arrow([concrete.side("right"), fusion.side("left")]),
        _arrow([concrete.side("bottom"), encoder.side("top")]),
        *[_arrow([a.side("right"), b.side("left")], "d-hot") for a, b, _ in spiking],
        *[_spikes(a.side("right")[0], b.side("left")[0], mid, times) for a, b, times in spiking],
        _arrow([readout.side("top"), fusion.side("bottom")]),
        _arrow([fusion.side("right"), cross.side("left")]),
        _arrow([cross.side("right"), answers.side("left")]),
        _arrow([text.side("right"), words.side("left")]),
        _arrow([words.side("right"), (cross.x, low), cross.side("bottom")]),
    ]
    letters = [
        _letter(446, top - 10, "F"),
        _letter(232, 128, "F\u2080"),
        _letter(674, 122, "E"),
        _letter(446, low - 10, "W"),
    ]
    return _svg("wide", 1070, 336, arrows, letters, [node.draw() for node in nodes])


def _tall() -> Markup:
    left, right = 84, 272
    image = Node(left, 30, "image", kind="data", width=100, height=44)
    concrete = Node(left, 122, "Concrete encoder", "host, ANN", width=156)
    encoder = Node(right, 122, "Spike encoder", "host", width=128)
    chip = Node(right, 236, "SPIKING STACK", "integers, on the chip", kind="chip", width=164, height=76)
    readout = Node(right, 350, "Spike readout", "host", width=128)
    fusion = Node(left, 350, "V\u2032 = F + r\u00b7E", kind="sum", width=128, height=44)
    cross = Node(left, 450, "Cross-modal", "encoder, host", width=156)
    words = Node(right, 450, "Text encoder", "host", width=128)
    answers = Node(left, 546, "answers", kind="data", width=100, height=44)
    text = Node(right, 546, "text", kind="data", width=100, height=44)
    nodes = (image, concrete, encoder, chip, readout, fusion, cross, words, answers, text)
    arrows = [
        _arrow([image.side("bottom"), concrete.side("top")]),
        _arrow([concrete.side("right"), encoder.side("left")]),
        _arrow([concrete.side("bottom"), fusion.side("top")]),
        _arrow([encoder.side("bottom"), (right, chip.side("top")[1] - 8)], "d-hot"),
        _arrow([(right, chip.side("bottom")[1] + 8), readout.side("top")], "d-hot"),
        _arrow([readout.side("left"), fusion.side("right")]),
        _arrow([fusion.side("bottom"), cross.side("top")]),
        _arrow([words.side("left"), cross.side("right")]),
        _arrow([text.side("top"), words.side("bottom")]),
        _arrow([cross.side("bottom"), answers.side("top")]),
    ]
    letters = [_letter(184, 112, "F\u2080"), _letter(68, 240, "F"), _letter(178, 340, "E"), _letter(184, 440, "W")]
    return _svg("tall", 360, 576, arrows, letters, [node.draw() for node in nodes])


def draw_line() -> Markup:
    """Both drawings in one figure."""
    legend = el(
        "p",
        el("span", class_="key host"),
        "host, torch",
        el("span", class_="key chip"),
        "chip, integers only",
        class_="legend",
    )
    return el("figure", _wide(), _tall(), el("figcaption", legend), class_="line")
