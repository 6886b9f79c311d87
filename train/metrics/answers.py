"""What each task makes of the answers that a model gives: metrics in percent, of which `accuracy` is the headline.

A metric gets the texts' ids, what every annotator said, the given answers, and of what kind each is to be, '' where
nothing tells, in the same order. An answer is right where it is the one that most annotators gave; of several as many,
the first.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

from train.metrics.vqa import evaluate, normalise_answer

Votes = Sequence[Sequence[str]]
Metric = Callable[[Sequence[str], Votes, Sequence[str], Sequence[str]], dict[str, float]]


def exact(votes: Votes, given: Sequence[str]) -> dict[str, float]:
    """The share of answers that are right."""
    right = [most_common(said) for said in votes]
    return {"accuracy": 100 * sum(a == b for a, b in zip(right, given, strict=True)) / len(right)}


def by_votes(ids: Sequence[str], votes: Votes, given: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """VQA, and each type of answer by itself: the official accuracy where questions have several annotators, else the
    share that is right, compared in the official normal form."""
    if max(map(len, votes)) > 1:
        # By place: ids of data sets that were joined may meet.
        told: dict[Hashable, str] = {k: kind for k, kind in enumerate(kinds) if kind}
        return evaluate(dict(enumerate(given)), dict(enumerate(votes)), told)
    votes = [[normalise_answer(vote) for vote in said] for said in votes]
    given = [normalise_answer(answer) for answer in given]
    return exact(votes, given) | _by_group(votes, given, kinds)


def with_consistency(ids: Sequence[str], votes: Votes, given: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """NLVR2: accuracy, and the share of sentences that are judged right over every one of their pairs (Suhr et al.
    2019), where every id is SPLIT-SET-PAIR-SENTENCE. An id that comes again is of another data set, joined to the
    first."""
    if any(name.count("-") != 3 for name in ids):
        return exact(votes, given)
    whole: dict[tuple[int, str, str, str], bool] = defaultdict(lambda: True)
    times = Counter[str]()
    for name, said, found in zip(ids, votes, given, strict=True):
        split, group, _, sentence = name.split("-")
        whole[times[name], split, group, sentence] &= most_common(said) == found
        times[name] += 1
    return {**exact(votes, given), "consistency": 100 * sum(whole.values()) / len(whole)}


def by_class(ids: Sequence[str], votes: Votes, given: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """SNLI-VE: accuracy, and that of each class."""
    return exact(votes, given) | _by_group(votes, given, [most_common(said) for said in votes])


def _by_group(votes: Votes, given: Sequence[str], groups: Sequence[str]) -> dict[str, float]:
    """'accuracy_GROUP' for each that has a name."""
    found = {}
    for group in sorted(set(groups) - {""}):
        of = [k for k, its in enumerate(groups) if its == group]
        found[f"accuracy_{group}"] = exact([votes[k] for k in of], [given[k] for k in of])["accuracy"]
    return found


def most_common(said: Sequence[str]) -> str:
    """What most annotators said; of several as many, the first."""
    return Counter(said).most_common(1)[0][0]


METRICS: dict[str, Metric] = {"vqa": by_votes, "nlvr2": with_consistency, "snli_ve": by_class}
