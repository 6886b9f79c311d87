"""A page to look at trained runs with: pictures found by a text, texts found by a picture, questions answered, and the
spikes behind each answer."""

from train.serve.looks import Answers, Search, Spikes, open_looks

__all__ = ["Answers", "Search", "Spikes", "open_looks"]
