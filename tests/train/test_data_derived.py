"""What is derived from easy-VQA's annotations is true of the pixels, balanced, and keeps combinations from training."""

import json
import re
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from PIL import Image

from train.data.derived import COLOURS, HELD_OUT, SHAPES, Look, known_pictures, looks, pictures
from train.data.easy_nlvr2 import SENTENCES, examples, sentences, write_easy_nlvr2
from train.data.easy_snli_ve import SEEN, UNSEEN, hypotheses, write_easy_snli_ve
from train.data.easy_snli_ve import examples as hypotheses_of

RGB = {
    "black": (0, 0, 0), "gray": (128, 128, 128), "teal": (0, 128, 128), "green": (0, 128, 0),
    "yellow": (255, 255, 0), "red": (255, 0, 0), "blue": (0, 0, 255), "brown": (139, 69, 19),
}  # fmt: skip


def colour_of(path) -> str:
    """The colour nearest to the pixel that is furthest from the picture's background."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    background = np.median(pixels, axis=0)
    shape = np.median(pixels[np.abs(pixels - background).sum(1) > 60], axis=0)
    return min(RGB, key=lambda name: np.abs(shape - RGB[name]).sum())


def test_the_colour_that_annotations_tell_is_the_colour_of_the_pixels():
    known = known_pictures("test")
    assert len(known) > 800
    assert all(colour_of(p.path) == p.look.colour for p in known)


def test_questions_settle_a_look_by_answers_negations_and_what_they_take_for_granted():
    asked = [
        ("what color is the circle?", "red", 0),
        ("is there not a circle in the image?", "yes", 1),
        ("is a triangle present?", "no", 1),
        ("is no teal shape present?", "no", 1),
        ("is there a circle?", "no", 2),
        ("what color is the shape?", "blue", 2),
    ]
    assert looks(asked) == {0: Look("circle", "red"), 1: Look("rectangle", "teal")}


def test_training_shows_every_shape_and_colour_but_not_the_held_out_combinations():
    train, val = pictures("train"), pictures("val")
    assert not {p.look for p in train + val} & HELD_OUT
    assert len({p.look for p in train}) == len(SHAPES) * len(COLOURS) - len(HELD_OUT)
    assert {(p.part, p.number) for p in train}.isdisjoint((p.part, p.number) for p in val)
    assert {p.look.shape for p in train} == set(SHAPES)
    assert {p.look.colour for p in train} == set(COLOURS)
    assert {p.look for p in pictures("test")} > HELD_OUT


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_sentence_is_true_of_two_of_its_four_pairs(split):
    known = {sentence.text: sentence for kind in sentences() for sentence in kind}
    made = examples(split, 60, seed=3)
    assert len({text for text, _ in made}) > 30
    for text, pairs in made:
        assert [known[text].true_of(a.look, b.look) for (a, b), _ in pairs] == [label for _, label in pairs]
        assert sum(label for _, label in pairs) == 2
        new = [a.look in HELD_OUT or b.look in HELD_OUT for (a, b), _ in pairs]
        assert all(new) if split == "test" else not any(new)


def test_no_hypothesis_alone_tells_that_it_is_neutral():
    rng = np.random.default_rng(0)
    look = Look("circle", "red")
    unseen = {template.format(**look._asdict()) for template in UNSEEN}
    seen = {template.format(**look._asdict()) for template in SEEN}
    labels, others = defaultdict(Counter), [Look(*both) for both in product(SHAPES, COLOURS)]
    for _ in range(300):
        for text, label in hypotheses(look, others, rng):
            labels[label]["of this look" if text in seen | unseen else "of another"] += 1
            if text in seen:
                assert label == "entailment"
            if text in unseen:
                assert label == "neutral"
    assert labels["entailment"].keys() == labels["neutral"].keys() == {"of this look"}
    assert labels["contradiction"].keys() == {"of another"}
    assert len({sum(counts.values()) for counts in labels.values()}) == 1


def test_no_hypothesis_of_training_names_a_held_out_combination():
    """There it would always be contradicted: a model would learn the words and look at nothing."""
    named = [re.compile(rf"{look.colour}.* {look.shape}|{look.shape}.* {look.colour}") for look in HELD_OUT]
    for split in ("train", "val"):
        said = [text for _, made in hypotheses_of(split, 0) for text, _ in made]
        assert not [text for text in said if any(pattern.search(text) for pattern in named)]
    said = [text for _, made in hypotheses_of("test", 0) for text, label in made if label != "contradiction"]
    assert sum(any(pattern.search(text) for pattern in named) for text in said) > 400


def test_the_files_are_those_of_the_official_sets(tmp_path, monkeypatch):
    for split in SENTENCES:
        monkeypatch.setitem(SENTENCES, split, 12)
    write_easy_nlvr2(tmp_path / "nlvr2")
    lines = [json.loads(line) for line in (tmp_path / "nlvr2" / "train.json").read_text().splitlines()]
    assert [line["identifier"] for line in lines[:5]] == [f"train-0-{k}-0" for k in range(4)] + ["train-1-0-0"]
    assert {line["label"] for line in lines} == {"True", "False"}
    assert all((tmp_path / "nlvr2" / "images" / "train" / f"train-11-3-img{side}.png").exists() for side in (0, 1))
    write_easy_snli_ve(tmp_path / "snli")
    lines = [json.loads(line) for line in (tmp_path / "snli" / "snli_ve_test.jsonl").read_text().splitlines()]
    assert Counter(line["gold_label"] for line in lines).keys() == {"entailment", "neutral", "contradiction"}
    assert (tmp_path / "snli" / "flickr30k_images" / f"{lines[0]['Flickr30K_ID']}.jpg").exists()


def test_the_same_seed_writes_the_same_files():
    assert examples("val", 20, seed=1) == examples("val", 20, seed=1) != examples("val", 20, seed=2)
