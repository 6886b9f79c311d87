"""From data in an official format to the file that its official evaluation takes."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from ashnets.cli import main
from hw.errors import UserError
from tests.conftest import MICRO
from tests.train.official import MAKERS, encoded
from tests.train.test_loop import same
from train.config import RunConfig, TrainConfig
from train.loader import Batches
from train.run import open_run
from train.stages import load_split, new_run, train_run

CPU = torch.device("cpu")
TASKS = {"karpathy": "retrieval", "vqa": "vqa", "nlvr2": "nlvr2", "snli_ve": "snli_ve"}


def trained(kind, folder, root, **given):
    task = TASKS[kind]
    objectives = {"retrieval": {"itc": 1.0, "scl": 0.2}, "vqa": {"vqa_soft": 1.0}}.get(task, {"vqa": 1.0})
    options = {"task": task, "dataset": str(root), "tokenizer_data": (str(root),), "objectives": objectives} | given
    config = TrainConfig(**({"steps": 2, "batch": 2, "warmup": 1, "save_every": 1} | options))
    return train_run(new_run(folder, RunConfig(model=MICRO, train=config)), CPU)


@pytest.mark.parametrize("kind", TASKS)
def test_a_model_is_trained_on_official_files_and_its_answers_are_written(kind, tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "predictions"
    root.mkdir()
    MAKERS[kind](root)
    run = trained(kind, tmp_path / "run", root)
    assert main(["evaluate", str(run.folder), "--predictions", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    text = out.read_text()
    if kind == "karpathy":
        rows = [json.loads(line) for line in text.splitlines()]
        assert [row["image_id"] for row in rows] == ["503"]
        assert sorted(rows[0]["texts"]) == ["30", "31", "32", "33", "34"]
        assert printed["tr@1"] == 100
    if kind == "vqa":
        rows = json.loads(text)
        assert [row["question_id"] for row in rows] == [6000, 6001, 7000, 7001]
        assert {row["answer"] for row in rows} <= {"2", "yes"}
        assert "accuracy" not in printed  # nobody was asked about the test split
    if kind == "nlvr2":
        rows = list(csv.reader(text.splitlines()))
        assert [row[0] for row in rows] == ["test1-5-0-0", "test1-5-0-1", "test1-5-1-0", "test1-5-2-0"]
        assert {row[1] for row in rows} <= {"True", "False"}
        assert {"accuracy", "consistency"} <= printed.keys()
    if kind == "snli_ve":
        rows = [json.loads(line) for line in text.splitlines()]
        assert [row["pairID"] for row in rows] == [f"test{k}#{n}" for k in range(3) for n in range(3)]
        assert all(row["prediction"] in ("entailment", "neutral", "contradiction") for row in rows)


def test_a_question_with_a_rare_answer_teaches_nothing_and_is_no_error(tmp_path):
    MAKERS["vqa"](tmp_path)
    path = tmp_path / "v2_mscoco_train2014_annotations.json"
    rows = json.loads(path.read_text())
    rows["annotations"][1]["multiple_choice_answer"] = "rare"
    path.write_text(json.dumps(rows))
    run = trained("vqa", tmp_path / "often", tmp_path, answers_least=2, objectives={"vqa": 1.0, "vqa_soft": 1.0})
    assert run.answers == ["2", "yes"]
    made = Batches(run, load_split(run, "train"))
    made.config, made.ends = replace(made.config, batch=1, texts_per_image=2), made.ends[:1]
    given = made[0]
    order = given.answers.argsort(descending=True)
    assert given.answers[order].tolist() == [0, -1]
    assert given.scores[order].tolist() == [[1, 0], [0, 1]]  # of ten annotators seven say yes
    both = trained("vqa", tmp_path / "both", tmp_path, answers_from=("train", "val"), answers_least=4)
    assert both.answers == ["2", "yes"]
    assert trained("vqa", tmp_path / "all", tmp_path).answers == ["2", "rare", "yes"]
    with pytest.raises(UserError, match="holds no answers that are given 9 times, and task 'vqa' learns from answers"):
        trained("vqa", tmp_path / "none", tmp_path, answers_least=9)


def test_a_run_goes_on_once_a_broken_picture_is_mended_and_not_with_other_records(tmp_path):
    MAKERS["karpathy"](tmp_path)
    run = trained("karpathy", tmp_path / "run", tmp_path, batch=3)
    path = tmp_path / "val2014" / "1.jpg"
    path.write_bytes(b"\xff\xd8\xff" + bytes(50))
    with pytest.raises(UserError, match=rf"dataset_coco.json: image 2: .*{path.name}"):
        trained("karpathy", tmp_path / "broken", tmp_path, batch=3)
    broken = open_run(tmp_path / "broken")
    path.write_bytes(encoded(1))
    assert same(train_run(broken, CPU).folder, run.folder)
    plain = (tmp_path / "dataset_coco.json").read_text()
    for split in ("train", "val"):
        rows = json.loads(plain)
        next(row for row in rows["images"] if row["split"] == split)["sentences"][0]["raw"] = "another"
        (tmp_path / "dataset_coco.json").write_text(json.dumps(rows))
        with pytest.raises(UserError, match=f"split {split}, is not the one that the run started with; put its recor"):
            train_run(broken, CPU)


def test_captions_have_no_answers_to_learn(tmp_path):
    MAKERS["karpathy"](tmp_path)
    with pytest.raises(UserError, match="learns from answers; choose another task or other data"):
        trained("karpathy", tmp_path / "run", tmp_path, task="vqa", objectives={"vqa": 1.0})


def test_only_what_the_model_can_answer_is_in_the_loss():
    from dataclasses import replace

    from ashnets.model import AshNet
    from ashnets.objectives import OBJECTIVES
    from tests.ashnets.batches import inputs

    model, batch = AshNet(MICRO, 5).eval(), inputs(MICRO)
    vision, w = model.vision(batch.images), model.text(batch.tokens)
    loss = OBJECTIVES["vqa"](MICRO, TrainConfig().losses)
    some = batch.answers.clone()
    some[[1, 4]] = -1
    kept = [k for k in range(len(some)) if some[k] >= 0]
    logits = model.answer(w, batch.tokens.padding, vision.v[batch.text_image])
    expected = torch.nn.functional.cross_entropy(logits[kept], some[kept])
    torch.testing.assert_close(loss(model, replace(batch, answers=some), vision, w)[0], expected)
    assert loss(model, replace(batch, answers=torch.full_like(some, -1)), vision, w)[0] == 0


def test_pictures_are_named_by_the_nearest_class(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "named"
    root.mkdir()
    MAKERS["classes"](root)
    run = trained("karpathy", tmp_path / "run", root)
    given = ("--task", "zero_shot", "--split", "val", "--predictions", str(out), "--json")
    assert main(["evaluate", str(run.folder), *given, "--templates", "{}", "ein {}"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["text_ids"] for row in rows] == [[f"{c}/{n}.png"] for c in ("käfig", "red_ball") for n in range(2)]
    assert {"käfig", "ball"} <= run.codec.lexicon.keys()
    right = [row["class"] == row["image_id"].replace("_", " ") for row in rows]
    assert printed["accuracy"] == 100 * sum(right) / 4
    assert (printed["classes"], printed["top5"]) == (2, 100)
    assert main(["evaluate", str(run.folder), *given, "--templates", "a photo"]) == 2
    assert "template 'a photo' needs {} once" in capsys.readouterr().err


def test_equal_scores_name_nothing_right(tmp_path):
    from ashnets.model import AshNet
    from train.data import load
    from train.zero_shot import evaluate_zero_shot

    MAKERS["classes"](tmp_path)
    run = trained("karpathy", tmp_path / "run", tmp_path)
    model = AshNet(MICRO, 0)
    with torch.no_grad():
        for p in model.image_head.parameters():
            p.zero_()
    found = evaluate_zero_shot(model, load(str(tmp_path), "test", 32), run.codec)
    assert found.metrics["accuracy"] == 0


def test_nothing_is_written_where_the_data_cannot_be_trained_on(tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    MAKERS["shards"](root)
    assert main(["train", str(tmp_path / "run"), "--data", str(root)]) == 2
    assert "has 6 training images, fewer than the batch of 128; use --train.batch 6 or less" in capsys.readouterr().err
    for path in root.glob("*validation*"):
        path.unlink()
    assert main(["train", str(tmp_path / "run"), "--data", str(root), "--train.batch", "2"]) == 2
    assert "has no split 'val' in the format shards" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
