"""What each task makes of the answers that a model gives: metrics in percent, of which `accuracy` is the headline.

A metric gets the texts' ids, the right answers and the given ones, in the same order.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

Metric = Callable[[Sequence[str], Sequence[str], Sequence[str]], dict[str, float]]


def exact(ids: Sequence[str], right: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """The share of answers that are right."""
    return {"accuracy": 100 * sum(a == b for a, b in zip(right, given, strict=True)) / len(right)}


def with_consistency(ids: Sequence[str], right: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """NLVR2: accuracy, and the share of sentences that are judged right over every one of their pairs (Suhr et al.
    2019). An id is SPLIT-SET-PAIR-SENTENCE."""
    whole: dict[tuple[str, str, str], bool] = defaultdict(lambda: True)
    for name, wanted, found in zip(ids, right, given, strict=True):
        split, group, _, sentence = name.split("-")
        whole[split, group, sentence] &= wanted == found
    return {**exact(ids, right, given), "consistency": 100 * sum(whole.values()) / len(whole)}


def by_class(ids: Sequence[str], right: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """SNLI-VE: accuracy, and that of each class."""
    found = exact(ids, right, given)
    for label in sorted(set(right)):
        of = [k for k, wanted in enumerate(right) if wanted == label]
        found[f"accuracy_{label}"] = 100 * sum(given[k] == label for k in of) / len(of)
    return found


METRICS: dict[str, Metric] = {"vqa": exact, "nlvr2": with_consistency, "snli_ve": by_class}
