"""Shared pieces: a model small enough for tests, and real data cut down to a few records."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from ashnets.config import AbstractConfig, ConcreteConfig, FusionConfig, ModelConfig, TextConfig
from train.config import RunConfig, TrainConfig
from train.data import DATASETS, load
from train.data.base import ArrayData

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined

MICRO = ModelConfig(
    width=16,
    embedding=8,
    concrete=ConcreteConfig(image_size=32, depth=1, heads=2, stem=(8, 8)),
    abstract=AbstractConfig(steps=3, channels=6, convs=((8, 2), (6, 1)), dense=(10,)),
    text=TextConfig(vocabulary=400, length=12, depth=1, heads=2, lexicon=300),
    fusion=FusionConfig(depth=1, heads=2),
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def micro() -> ModelConfig:
    return MICRO


def cut(name: str, split: str, image_size: int, count: int) -> ArrayData:
    """The first `count` records of a real data set."""
    data = load(name, split, image_size)
    images = [data.image(i).reshape(-1, image_size, image_size, 3) for i in range(count)]
    pair = len(images[0]) == 2
    return ArrayData(
        name=name,
        split=split,
        image_size=image_size,
        pixels=np.concatenate(images),
        rows=tuple((2 * i, 2 * i + 1) if pair else i for i in range(count)),
        image_ids=tuple(data.image_id(i) for i in range(count)),
        all_texts=tuple(data.texts(i) for i in range(count)),
        all_answers=tuple(data.answers(i) for i in range(count)) if data.answers(0) else (),
        all_ids=tuple(data.text_ids(i) for i in range(count)),
        all_kinds=tuple(data.kinds(i) for i in range(count)) if data.kinds(0) else (),
    )


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets 'few_vqa', 'few_openmoji' and 'few_pairs', of 40 pictures or pairs each, real but short."""
    cache: dict[tuple, ArrayData] = {}

    def maker(real):
        def make(split, image_size, cache_folder=None, progress=None):
            key = (real, split, image_size)
            if key not in cache:
                cache[key] = replace(cut(real, split, image_size, 40), name=f"few_{real}")
            return cache[key]

        return make

    monkeypatch.setitem(DATASETS, "few_vqa", maker("easy_vqa"))
    monkeypatch.setitem(DATASETS, "few_openmoji", maker("openmoji"))
    monkeypatch.setitem(DATASETS, "few_pairs", maker("easy_nlvr2"))


@pytest.fixture
def few_records(monkeypatch):
    """See `shorten`."""
    shorten(monkeypatch)


def micro_config(task: str = "vqa", **train) -> RunConfig:
    """A run of the micro model on the short data."""
    common = {"steps": 6, "batch": 8, "texts_per_image": 2, "warmup": 2, "save_every": 3, "log_every": 1, "crop": 0.8}
    if task in ("vqa", "nlvr2"):
        dataset = {"vqa": "few_vqa", "nlvr2": "few_pairs"}[task]
        common |= {"task": task, "dataset": dataset, "objectives": {"vqa": 1.0}, "tokenizer_data": (dataset,)}
    else:
        common |= {"task": "retrieval", "dataset": "few_openmoji", "tokenizer_data": ("few_openmoji",)}
    return RunConfig(model=MICRO, train=TrainConfig(**(common | train)))
