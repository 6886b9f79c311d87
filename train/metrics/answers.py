"""What each task makes of the answers that a model gives: metrics in percent, of which `accuracy` is the headline.

A metric gets the texts' ids, what every annotator said, and the given answers, in the same order. An answer is right
where it is the one that most annotators gave; of several as many, the first.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from train.metrics.vqa import evaluate

Votes = Sequence[Sequence[str]]
Metric = Callable[[Sequence[str], Votes, Sequence[str]], dict[str, float]]


def exact(ids: Sequence[str], votes: Votes, given: Sequence[str]) -> dict[str, float]:
    """The share of answers that are right."""
    right = [most_common(said) for said in votes]
    return {"accuracy": 100 * sum(a == b for a, b in zip(right, given, strict=True)) / len(right)}


def by_votes(ids: Sequence[str], votes: Votes, given: Sequence[str]) -> dict[str, float]:
    """VQA: the official accuracy where questions have several annotators, else the share that is right."""
    if max(map(len, votes)) < 2:
        return exact(ids, votes, given)
    return evaluate(dict(zip(ids, given, strict=True)), dict(zip(ids, votes, strict=True)))


def with_consistency(ids: Sequence[str], votes: Votes, given: Sequence[str]) -> dict[str, float]:
    """NLVR2: accuracy, and the share of sentences that are judged right over every one of their pairs (Suhr et al.
    2019). An id is SPLIT-SET-PAIR-SENTENCE."""
    whole: dict[tuple[str, str, str], bool] = defaultdict(lambda: True)
    for name, said, found in zip(ids, votes, given, strict=True):
        split, group, _, sentence = name.split("-")
        whole[split, group, sentence] &= most_common(said) == found
    return {**exact(ids, votes, given), "consistency": 100 * sum(whole.values()) / len(whole)}


def by_class(ids: Sequence[str], votes: Votes, given: Sequence[str]) -> dict[str, float]:
    """SNLI-VE: accuracy, and that of each class."""
    found, right = exact(ids, votes, given), [most_common(said) for said in votes]
    for label in sorted(set(right)):
        of = [k for k, wanted in enumerate(right) if wanted == label]
        found[f"accuracy_{label}"] = 100 * sum(given[k] == label for k in of) / len(of)
    return found


def most_common(said: Sequence[str]) -> str:
    """What most annotators said; of several as many, the first."""
    return Counter(said).most_common(1)[0][0]


METRICS: dict[str, Metric] = {"vqa": by_votes, "nlvr2": with_consistency, "snli_ve": by_class}
