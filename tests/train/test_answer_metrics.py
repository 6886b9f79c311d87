"""Metrics of answers: the official ones digit by digit, by golden values that the official script gave."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hw.errors import UserError
from tests.conftest import micro_config
from train.data import load
from train.evaluate import evaluate_answers
from train.metrics.answers import by_class, by_votes, exact, with_consistency
from train.metrics.vqa import accuracy, evaluate, normalise_answer, soft_scores, write_results
from train.run import load_model
from train.stages import load_split, new_run, train_run

CPU = torch.device("cpu")
GOLDEN = json.loads((Path(__file__).parent / "vqa_golden.json").read_text(encoding="utf-8"))


def test_golden_answers_have_the_official_accuracy():
    assert len(GOLDEN["questions"]) == 120
    for case in GOLDEN["questions"]:
        assert round(100 * accuracy(case["answer"], case["votes"]), 2) == case["accuracy"], case


def test_golden_texts_have_the_official_form():
    assert len(GOLDEN["texts"]) == 200
    for text, official in GOLDEN["texts"].items():
        assert normalise_answer(text) == official


@pytest.mark.parametrize(
    ("text", "official"),
    [
        ("The two  cats.", "2 cats"),
        ("none", "0"),
        ("1,000 (about)", "1000 about"),
        ("left/right", "left right"),
        ("left / right", "left right"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("He's here!", "he's here"),
        ("an", ""),
        ("." * 40, "." * 8),
        ("Ein  Ö", "ein ö"),
    ],
)
def test_the_quirks_of_the_official_form(text, official):
    assert normalise_answer(text) == official


def test_agreeing_annotators_are_taken_by_the_letter():
    assert accuracy("The cat", ["The cat"] * 10) == 1
    assert accuracy("cat", ["The cat"] * 10) == 0
    assert accuracy("cat", ["The cat"] * 9 + ["dog"]) == 1
    assert accuracy(" cat\n", ["cat"] * 10) == 1


@pytest.mark.parametrize(("votes", "expected"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0), (0, 0.0)])
def test_a_vote_is_worth_three_tenths(votes, expected):
    said = ["red"] * votes + [f"other{k}" for k in range(10 - votes)]
    assert accuracy("red", said) == pytest.approx(expected)
    assert soft_scores(said).get("red", 0.0) == pytest.approx(expected)


def test_accuracy_is_told_by_answer_type_and_no_question_is_left_out():
    votes = {1: ["yes"] * 10, 2: ["no"] * 10, 3: ["2"] * 10}
    found = evaluate({1: "yes", 2: "yes", 3: "2"}, votes, {1: "yes/no", 2: "yes/no", 3: "number"})
    assert found == {"accuracy": 66.67, "accuracy_yes/no": 50.0, "accuracy_number": 100.0}
    with pytest.raises(UserError, match="question 2: has no answer, nor have 1 others"):
        evaluate({1: "yes"}, votes)


def test_results_are_what_the_server_takes(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [("262148000", "down"), ("a7", "two"), ("007", "up")])
    assert json.loads(path.read_text()) == [
        {"answer": "down", "question_id": 262148000},
        {"answer": "two", "question_id": "a7"},
        {"answer": "up", "question_id": "007"},
    ]
    with pytest.raises(UserError, match="question 5 has 2 answers"):
        write_results(tmp_path / "twice.json", [("5", "a"), ("5", "b")])
    assert not (tmp_path / "twice.json").exists()


def test_a_sentence_is_consistent_only_if_it_is_right_over_every_pair():
    ids = ["dev-4-0-0", "dev-4-1-0", "dev-4-2-0", "dev-4-0-1", "dev-7-0-0"]
    right = [("True",), ("False",), ("True",), ("True",), ("True",)]
    found = with_consistency(ids, right, ["True"] * 5, [""] * 5)
    assert found == {"accuracy": 80.0, "consistency": pytest.approx(200 / 3)}
    assert with_consistency(ids, right, [said[0] for said in right], [""] * 5)["consistency"] == 100
    joined = with_consistency([*ids, *ids], [*right, *right], ["True"] * 5 + [said[0] for said in right], [""] * 10)
    assert joined == {"accuracy": 90.0, "consistency": pytest.approx(500 / 6)}  # two sets whose ids meet
    assert with_consistency([*ids[:4], "p0.png+p1.png#0"], right, ["True"] * 5, [""] * 5) == {"accuracy": 80.0}


def test_each_class_has_its_own_accuracy():
    right = [("entailment",), ("neutral",), ("neutral",), ("contradiction",)]
    found = by_class(list("abcd"), right, ["entailment", "neutral", "contradiction", "neutral"], [""] * 4)
    assert found == {
        "accuracy": 50.0, "accuracy_contradiction": 0.0, "accuracy_entailment": 100.0, "accuracy_neutral": 50.0
    }  # fmt: skip


def test_lone_annotators_are_judged_by_answer_type_too():
    votes = [("yes",), ("no",), ("red",), ("red",)]
    found = by_votes(list("abcd"), votes, ["yes", "yes", "red", "blue"], ["yes/no", "yes/no", "color", ""])
    assert found == {"accuracy": 50.0, "accuracy_yes/no": 50.0, "accuracy_color": 100.0}
    assert by_votes(["a"], [("yes",)], ["no"], [""]) == exact([("yes",)], ["no"]) == {"accuracy": 0.0}
    loose = by_votes(list("abc"), [("Two",), ("The dog",), ("cat",)], ["2", "dog", "The Dog"], ["", "other", ""])
    assert loose == {"accuracy": pytest.approx(200 / 3), "accuracy_other": 100.0}


def test_several_annotators_are_evaluated_as_the_official_script_does(tmp_path, few_records):
    run = train_run(new_run(tmp_path / "run", micro_config(steps=1)), CPU)
    data, model = load_split(run, "test"), load_model(run, "float", CPU)
    answers = [data.answers(i) for i in range(len(data))]
    split = tuple(tuple((a, a, "gray", "teal") for a in of) for of in answers)
    asked = evaluate_answers("vqa", model, replace(data, all_votes=split), run.codec, run.answers)
    given = [run.answers[k] for k in asked.predictions]
    said = [votes for of in split for votes in of]
    wanted = sum(accuracy(g, v) for g, v in zip(given, said, strict=True)) / len(given)
    assert asked.metrics["accuracy"] == round(100 * wanted, 2)
    kinds = [kind for i in range(len(data)) for kind in data.kinds(i)]
    for kind in ("yes/no", "shape", "color"):
        of = [accuracy(g, v) for g, v, its in zip(given, said, kinds, strict=True) if its == kind]
        assert asked.metrics[f"accuracy_{kind}"] == round(100 * sum(of) / len(of), 2)
    assert load("few_vqa", "test", 32).fingerprint != replace(data, all_votes=split).fingerprint


def test_questions_whose_ids_meet_are_all_counted():
    """As those of data sets that were joined may."""
    votes = [["yes"] * 4, ["no"] * 4, ["yes"] * 4]
    found = by_votes(["1", "1", "2"], votes, ["yes", "yes", "yes"], ["yes/no"] * 3)
    assert found["accuracy"] == found["accuracy_yes/no"] == pytest.approx(66.67, abs=0.01)
