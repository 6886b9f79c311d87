"""The first screen: what this is, whether the line is exact, and the figures that sum it up."""

from collections.abc import Sequence

from quantize.verify import Joint
from train.report.diagram import draw_line
from train.report.markup import Markup, count, el, percent, plural
from train.report.story import Story

WHAT = (
    "A vision-language model with an artificial and a spiking encoder. The spiking one is trained, turned into "
    "integers, and run the way a Loihi chip would run it."
)
# Rows of `Story.accuracies` that are not a model on the line but what a model has to beat.
REFERENCE_WORDS = ("question", "shuffled", "baseline", "chance", "majority")
PASSED, FAILED, UNKNOWN = "good", "bad", "unknown"


def is_reference(name: str) -> bool:
    return any(word in name.lower() for word in REFERENCE_WORDS)


def verdict(joints: Sequence[Joint]) -> str:
    """`PASSED` only where something was compared everywhere and nothing differs."""
    if any(joint.total for joint in joints):
        return FAILED
    return PASSED if joints and all(sum(joint.compared.values()) for joint in joints) else UNKNOWN


def total_compared(joints: Sequence[Joint]) -> int:
    return sum(sum(joint.compared.values()) for joint in joints)


def _mismatch_card(joints: Sequence[Joint]) -> Markup:
    state, compared = verdict(joints), count(total_compared(joints))
    mismatches = sum(joint.total for joint in joints)
    explained = {
        PASSED: f"\u2713 All {compared} compared spikes are equal, at {plural(len(joints), 'joint')}.",
        FAILED: f"\u2717 Failed: {count(mismatches)} of {compared} compared spikes differ.",
        UNKNOWN: "Not verified: at least one joint compared no spikes.",
    }[state]
    number = el("span", count(mismatches) if state != UNKNOWN else "\u2013", class_="number")
    return el(
        "div",
        number,
        el("span", "mismatching spikes", class_="label"),
        el("p", explained),
        class_=f"card verdict {state}",
    )


def _card(number: str, label: str, note: str = "") -> Markup:
    return el(
        "div",
        el("span", number, class_="number"),
        el("span", label, class_="label"),
        el("p", note) if note else None,
        class_="card",
    )


def retrieval_chance(k: int, concepts: int) -> float:
    """Percent: the most that a random order finds among its first k, on average over the queries (a union bound)."""
    return min(100.0, 100 * k / concepts)


def _retrieval_card(story: Story) -> Markup | None:
    for key, label in (("tr@10", "R@10, picture \u2192 its caption"), ("ir@10", "R@10, caption \u2192 its picture")):
        if key in story.retrieval and story.concepts > 0:
            chance = percent(retrieval_chance(10, story.concepts))
            return _card(
                percent(story.retrieval[key]),
                label,
                f"{count(story.concepts)} held-out concepts; chance is at most {chance}",
            )
    return None


def headline(story: Story) -> Markup:
    """Title, sentence, figures and the drawing of the line."""
    models = [row for row in story.accuracies if not is_reference(row[0])][:4]
    references = [row for row in story.accuracies if is_reference(row[0])]
    cards = [_mismatch_card(story.joints) if story.joints else None]
    cards += [_card(percent(value), f"accuracy, {name}", note) for name, value, note in models]
    cards.append(_retrieval_card(story))
    measured = None
    if models and story.questions:
        beaten = "".join(f"; {name}: {percent(value)}" for name, value, _ in references)
        measured = el("p", f"Accuracy on {count(story.questions)} questions{beaten}.", class_="measured")
    figures = el("div", cards, class_="cards")
    return el("header", el("h1", story.title), el("p", WHAT, class_="what"), figures, measured, draw_line(), id="top")
