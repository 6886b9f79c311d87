"""The official accuracy of VQA v2, digit by digit (Antol et al. 2015; GT-Vision-Lab/VQA, vqaEval.py at a013f00), and
what training makes of ten annotators' answers.

    accuracy(a) = mean over annotators i of min(1, |{j != i: answer_j = a}| / 3)

Where the annotators disagree, all answers are first brought to one form, with the script's quirks: a comma between two
digits anywhere makes every mark vanish instead of becoming a space; a full stop stays in front of a digit and, of more
than 32, none but the first 32 go; 'none' is '0'.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from hw.artifact import write_json
from hw.errors import UserError

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_STOPS_TAKEN = 32
_WORDS = "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"
_NUMBERS = {"none": "0", **{word: str(value) for value, word in enumerate(_WORDS)}}
_ARTICLES = {"a", "an", "the"}
_CONTRACTED = (
    "'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've "
    "mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's "
    "won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
)


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# As the script has it: of several apostrophes one may be missing, and "somebody'd" loses its own.
_CONTRACTIONS = {short: word for word in _CONTRACTED.split() for short in _without_one_apostrophe(word)}
_CONTRACTIONS["somebody'd"] = "somebodyd"


def normalise_answer(text: str) -> str:
    """The form in which answers are compared where annotators disagree."""
    return _digits_and_articles(_punctuation(_trimmed(text)))


def accuracy(answer: str, votes: Sequence[str]) -> float:
    """Accuracy of one answer, 0 to 1, against what every annotator said."""
    given, said = _trimmed(answer), [_trimmed(vote) for vote in votes]
    if len(set(said)) > 1:
        given, said = normalise_answer(given), [normalise_answer(vote) for vote in said]
    matches = Counter(said)[given]
    each = [min(1.0, (matches - (vote == given)) / 3) for vote in said]
    return sum(each) / len(each)


def evaluate(
    given: Mapping[Hashable, str],
    votes: Mapping[Hashable, Sequence[str]],
    kinds: Mapping[Hashable, str] | None = None,
) -> dict[str, float]:
    """Percent with two digits, as the script rounds: 'accuracy' and, by answer type, 'accuracy_KIND'. Every question of
    `votes` must have an answer."""
    missing = [name for name in votes if name not in given]
    if missing:
        raise UserError(
            f"question {missing[0]}: has no answer, nor have {len(missing) - 1} others; answer every question"
        )
    found = {name: accuracy(given[name], said) for name, said in votes.items()}
    groups = {"accuracy": list(found)}
    for name, kind in (kinds or {}).items():
        groups.setdefault(f"accuracy_{kind}", []).append(name)
    return {key: round(100 * sum(found[name] for name in names) / len(names), 2) for key, names in groups.items()}


def soft_scores(votes: Sequence[str]) -> dict[str, float]:
    """What training aims at: each answer's score by how many annotators gave it, 0.3, 0.6, 0.9 and from four on 1
    (Teney et al. 2018). The answer of a lone annotator scores 1, as it is."""
    if len(votes) == 1:
        return {votes[0]: 1.0}
    counts = Counter(normalise_answer(vote) for vote in votes)
    return {answer: min(1.0, 0.3 * count) if count < 4 else 1.0 for answer, count in counts.items()}


def write_results(path: Path, answers: Iterable[tuple[str, str]]) -> None:
    """The file that the official server takes, [{question_id, answer}], whole or not at all; ids that are integers as
    such."""
    rows = [{"question_id": int(name) if _is_integer(name) else name, "answer": answer} for name, answer in answers]
    counts = Counter(row["question_id"] for row in rows)
    if rows and (most := counts.most_common(1)[0])[1] > 1:
        raise UserError(f"{path}: question {most[0]} has {most[1]} answers; give one to each")
    write_json(path, rows)


def _is_integer(name: str) -> bool:
    """Whether an id is an integer in its own digits: 007 is not."""
    return name.isascii() and name.isdecimal() and name == str(int(name))


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or number else " ")
    return _FULL_STOP.sub("", out, count=_STOPS_TAKEN)


def _digits_and_articles(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
