"""Everything that a report tells, gathered beforehand: plain data, no model, so that a page can be drawn again
without running anything."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantize.verify import Joint


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run: what it was trained on and how it went. log: lines of log.jsonl ({'step', 'split', ...}). history: one
    entry per checkpoint."""

    name: str
    config: dict[str, Any]
    data: dict[str, str | int]
    log: list[dict[str, Any]]
    history: list[dict[str, Any]]
    best_step: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SpikeExample:
    """The spikes of one real sample. image uint8 [H, W, 3]; layers: name -> uint8 [T, neurons], the input code
    first."""

    image: np.ndarray
    caption: str
    layers: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerExample:
    """A question about a picture. top: the likeliest answers with their probabilities, best first, as the program
    gives them."""

    image: np.ndarray
    question: str
    right: str
    top: list[tuple[str, float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrievalExample:
    """A held-out picture and the captions nearest to it, best first, each with whether it is the picture's own; or,
    with `query` a caption, the pictures nearest to it."""

    query: np.ndarray | str
    found: list[tuple[np.ndarray | str, bool]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Story:
    """accuracies: rows of (name, percent, note) in the order to show, for `questions` questions. retrieval: metrics
    by name. rates: mean firing rate by layer name, the input code first. joints: every comparison of spikes that was
    made."""

    title: str
    environment: dict[str, str]
    runs: list[RunSummary]
    accuracies: list[tuple[str, float, str]]
    questions: int
    retrieval: dict[str, float]
    concepts: int
    joints: list[Joint]
    rates: dict[str, float]
    spikes: list[SpikeExample] = field(default_factory=list)
    answers: list[AnswerExample] = field(default_factory=list)
    retrievals: list[RetrievalExample] = field(default_factory=list)
