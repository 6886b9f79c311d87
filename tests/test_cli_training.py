"""The commands that train and judge: what a user chose is what is done, or one line says why not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ashnets.cli import main
from tests.conftest import micro_config
from tests.test_cli import refused
from tests.train.official import MAKERS
from train.config import to_dict
from train.data import DATASETS
from train.run import open_run
from train.stages import new_run, qat_config, quantized_run, train_run

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path, few_records):
    """A float run that answers questions."""
    return train_run(new_run(tmp_path / "source", micro_config(steps=1, save_every=1)), CPU)


@pytest.fixture
def retrieval(tmp_path, few_records):
    return train_run(new_run(tmp_path / "retrieval", micro_config("retrieval", steps=1, save_every=1)), CPU)


def recipe(folder: Path, config) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps(to_dict(config)))
    return path


SMALL = ["--train.dataset", "few_openmoji", "--train.tokenizer-data", "few_openmoji", "--train.batch", "8"]


def test_objectives_are_chosen_with_their_weights(tmp_path, few_records, capsys):
    wanted = ["--train.objectives", "itc", "1", "mlm", "0.5"]
    assert main(["train", str(tmp_path / "run"), *SMALL, "--train.steps", "0", *wanted]) == 0
    assert open_run(tmp_path / "run").config.train.objectives == {"itc": 1.0, "mlm": 0.5}
    with pytest.raises(SystemExit, match="2"):
        main(["train", str(tmp_path / "b"), *SMALL, "--train.objectives", "itc", "1", "mlm"])
    assert "are no names with a weight each" in capsys.readouterr().err
    line = refused(capsys, "train", tmp_path / "b", *SMALL, "--train.objectives", "poetry", "1")
    assert "objective 'poetry' is not known" in line
    assert "no objective" in refused(capsys, "train", tmp_path / "b", *SMALL, "--train.objectives")
    assert not (tmp_path / "b").exists()


def test_a_configuration_is_not_half_taken(tmp_path, few_records, capsys):
    path = recipe(tmp_path, micro_config("retrieval"))
    for chosen in (["--train.steps", "7"], ["--preset", "tiny"]):
        line = refused(capsys, "train", tmp_path / "a", "--config", path, *chosen)
        assert f"--config takes the settings in {path}, and {chosen[0].partition('.')[0]} would change them" in line
        line = refused(capsys, "train", tmp_path / "a", "--resume", *chosen)
        assert "--resume takes the run's own settings" in line


def test_finetuning_keeps_the_data_that_was_named_beside_a_task(source, tmp_path):
    chosen = ["--task", "nlvr2", "--train.dataset", "few_pairs", "--train.batch", "8", "--train.steps", "0"]
    assert main(["finetune", str(source.folder), str(tmp_path / "tuned"), *chosen]) == 0
    made = open_run(tmp_path / "tuned")
    assert (made.config.train.task, made.config.train.dataset) == ("nlvr2", "few_pairs")


def test_data_of_new_combinations_are_tuned_slowly_unless_a_rate_was_chosen(source, tmp_path, monkeypatch):
    monkeypatch.setattr("train.config.COMPOSED", ("few_pairs",))
    chosen = ["--task", "nlvr2", "--train.dataset", "few_pairs", "--train.batch", "8", "--train.steps", "0"]
    for said, expected in ([], 0.1), (["--train.lr-concrete", "1"], 1.0):
        folder = tmp_path / str(expected)
        assert main(["finetune", str(source.folder), str(folder), *chosen, *said]) == 0
        assert open_run(folder).config.train.lr_concrete == expected


def test_finetuning_starts_from_one_run_and_its_texts(source, tmp_path, capsys):
    line = refused(capsys, "finetune", source.folder, tmp_path / "b", "--train.init-text", "hub:somebody/bert")
    assert "SOURCE takes the first weights, and --train.init-text would change them" in line
    line = refused(capsys, "finetune", source.folder, tmp_path / "b", "--train.tokenizer-data", "openmoji")
    assert "SOURCE takes the tokenizer, and --train.tokenizer-data would change" in line
    model = source.config.model
    for name, value in (("vocabulary", 270), ("length", 8), ("length", 99), ("lexicon", 9)):
        changed = replace(source.config, model=replace(model, text=replace(model.text, **{name: value})))
        line = refused(capsys, "finetune", source.folder, tmp_path / "b", "--config", recipe(tmp_path, changed))
        assert f"model.text.{name} is {value}, and the tokenizer that the run starts with has" in line
    assert not (tmp_path / "b").exists()


def test_a_quantized_run_is_not_fine_tuned(source, tmp_path, capsys):
    made = train_run(quantized_run(source, tmp_path / "int8", qat_config(source, 1)), CPU, init=source)
    line = refused(capsys, "finetune", made.folder, tmp_path / "tuned")
    assert "is quantized, and all but its stack is frozen" in line
    assert not (tmp_path / "tuned").exists()


def test_numbers_out_of_range_are_refused_at_the_start(source, tmp_path, capsys):
    line = refused(capsys, "finetune", source.folder, tmp_path / "b", "--spikes-alone", 2)
    assert "spikes_alone is 2; give 0 to 1" in line
    assert "train.lr is -1; give 0 or more" in refused(capsys, "train", tmp_path / "b", "--train.lr", -1)
    line = refused(capsys, "train", tmp_path / "b", "--train.losses.queue", 0)
    assert "train.losses.queue is 0; give 1 or more" in line
    assert "train.ema is 1" in refused(capsys, "train", tmp_path / "b", "--train.ema", 1)
    assert "train.steps is -5" in refused(capsys, "quantize", source.folder, "--out", tmp_path / "b", "--steps", -5)
    line = refused(capsys, "quantize", source.folder, "--out", tmp_path / "b", "--distill", "nan")
    assert "distill is nan; give 0 or more" in line
    assert "--lava-samples is 0" in refused(capsys, "demo", "--out", tmp_path / "b", "--lava-samples", 0)
    assert "is the float run" in refused(capsys, "quantize", source.folder, "--resume")
    assert not (tmp_path / "b").exists()


def test_what_is_refused_before_the_first_step_leaves_no_folder(tmp_path, few_records, capsys):
    path = recipe(tmp_path, micro_config("retrieval", init_image=str(tmp_path / "nowhere")))
    for wrong in (["--workers", "-1"], []):
        refused(capsys, "train", tmp_path / "run", "--config", path, *wrong)
        assert not (tmp_path / "run").exists()


def test_a_run_that_was_interrupted_before_its_first_step_is_kept(tmp_path, few_records, capsys):
    run = new_run(tmp_path / "run", micro_config("retrieval"))
    refused(capsys, "train", run.folder, "--resume", "--workers", "-1")
    assert run.folder.exists()


def test_ranking_again_is_for_retrieval_and_needs_its_head(source, retrieval, capsys):
    assert "retrieval alone ranks again" in refused(capsys, "evaluate", source.folder, "--again", 8)
    for run in (source, retrieval):
        chosen = ["--task", "retrieval", "--data", "few_openmoji", "--again", 8]
        assert "no matching head" in refused(capsys, "evaluate", run.folder, *chosen)
        assert "again is -3; give 0 or more" in refused(capsys, "evaluate", run.folder, *chosen[:-1], -3)


def test_a_model_is_not_asked_for_what_it_never_learned(source, retrieval, capsys):
    assert "has not learned to answer" in refused(capsys, "evaluate", retrieval.folder, "--task", "vqa")
    for task, data in (("nlvr2", "few_pairs"), ("zero_shot", "few_pairs"), ("retrieval", "few_pairs")):
        line = refused(capsys, "evaluate", source.folder, "--task", task, "--data", data)
        assert "has 2 pictures to a text, and this model looks at 1" in line


def test_what_only_a_quantized_run_has_is_refused_in_a_file_for_a_float_one(tmp_path, source, few_records, capsys):
    for name, value in (("quantizer", "int8"), ("ptq", "gptq"), ("distill", 1.0), ("chip", "reference")):
        path = recipe(tmp_path, replace(micro_config(), **{name: value}))
        for command in (("train",), ("finetune", source.folder)):
            line = refused(capsys, *command, tmp_path / "run", "--config", path)
            assert f"{path}: {name} is {value}, which is for 'ashnets quantize'" in line


def test_answers_are_taken_from_splits_that_there_are(tmp_path, few_records, capsys):
    (tmp_path / "nlvr2").mkdir()
    MAKERS["nlvr2"](tmp_path / "nlvr2")
    for data in ("easy_vqa", f"nlvr2:{tmp_path / 'nlvr2'}"):
        path = recipe(tmp_path, micro_config("vqa", dataset=data, batch=2, answers_from=("trian",)))
        line = refused(capsys, "train", tmp_path / "run", "--config", path)
        assert f"{data}: there is no split 'trian'" in line


def test_a_val_split_without_answers_cannot_judge(tmp_path, few_records, monkeypatch, capsys):
    def silent(split, *rest):
        made = few(split, *rest)
        return replace(made, all_answers=()) if split == "val" else made

    few = DATASETS["few_vqa"]
    monkeypatch.setitem(DATASETS, "few_vqa", silent)
    line = refused(capsys, "train", tmp_path / "run", "--config", recipe(tmp_path, micro_config()))
    assert "the val split holds no answers" in line


def test_the_model_hides_words_by_the_tokenizer_that_it_has(tmp_path, few_records):
    """A model of BERT's numbers with a tokenizer of its own."""
    config = micro_config("retrieval")
    text = replace(config.model.text, special=(0, 101, 102, 103))
    run = new_run(tmp_path / "run", replace(config, model=replace(config.model, text=text)))
    assert run.config.model.text.special == (0, 1, 2, 3) == run.codec.special


def test_a_task_that_is_judged_by_answers_has_to_learn_them(few_records, tmp_path, capsys):
    line = refused(
        capsys, "train", tmp_path / "a", "--train.task", "vqa", "--train.dataset", "few_vqa", "--train.batch", "8"
    )
    assert "task 'vqa' is judged by answers, and no objective of itc, scl, stua teaches any" in line
    assert not (tmp_path / "a").exists()
