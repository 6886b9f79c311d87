"""VQA v2, NLVR2 and SNLI-VE as their authors lay them out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.data.formats.base import (
    Found,
    Pictures,
    RecordError,
    Text,
    beginning,
    json_line,
    json_rows,
    lines,
    name_of,
    only,
    string,
    value,
)
from train.metrics.vqa import normalise_answer

LABELS = ("entailment", "neutral", "contradiction")


def vqa_files(root: Path, split: str) -> list[Path]:
    """[v2_]OpenEnded_mscoco_SUBSET_questions.json and, but for the test, [v2_]mscoco_SUBSET_annotations.json."""
    subsets = ("test2015", "test-dev2015") if split == "test" else (f"{split}2014",)
    for subset in subsets:
        questions = only(_below(root, f"*OpenEnded_mscoco_{subset}_questions.json"), "version")
        if questions:
            return [*questions, *only(_below(root, f"*mscoco_{subset}_annotations.json"), "version")]
    return []


def read_vqa(root: Path, split: str) -> Found:
    """Questions, joined with ten annotators' answers where there are any (Goyal et al. 2017). To learn from is the most
    common answer in its normal form; what a lone annotator said is kept in that form too."""
    found, pictures = Found(), Pictures(root)
    questions, *annotations = vqa_files(root, split)
    subset = questions.stem.removesuffix("_questions").rpartition("_")[2].replace("test-dev", "test")
    answered: dict[str, Any] = {}
    for path in annotations:

        def keep(row: Any, where: str) -> None:
            name = name_of(row, "question_id")
            if name in answered:
                raise RecordError(f"question '{name}' was answered before; keep one annotation", "duplicate")
            said = tuple(string(one, "answer") for one in value(row, "answers", list))
            if not said:
                raise RecordError("'answers' is empty; every question needs an annotator")
            kind = string(row, "answer_type") if "answer_type" in row else ""
            said = said if len(said) > 1 else tuple(map(normalise_answer, said))
            answered[name] = (name_of(row, "image_id"), string(row, "multiple_choice_answer"), said, kind)

        found.each(path, json_rows(path, "annotations"), keep, "annotation")

    def take(row: Any, where: str) -> None:
        name, image = name_of(row, "question_id"), name_of(row, "image_id")
        answer, said, kind = "", (), ""
        if annotations:
            if name not in answered:
                raise RecordError(f"question '{name}' has no annotation in {annotations[0].name}", "missing")
            its, common, said, kind = answered.pop(name)
            if its != image:
                raise RecordError(f"question '{name}' is about image {image}, its annotation about {its}")
            answer = normalise_answer(common)
        picture = pictures.find(f"COCO_{subset}_{int(image):012d}.jpg" if image.isdecimal() else image)
        text = Text(text=string(row, "question"), name=name, answer=answer, votes=said, kind=kind)
        found.add(image, (picture,), text, where)

    found.each(questions, json_rows(questions, "questions"), take, "question")
    if answered:
        found.each(annotations[0], answered, _without_question, "annotation of question")
    return found


def _without_question(name: str, where: str) -> None:
    raise RecordError(f"'{name}' is not among the questions, or its question cannot be used", "missing")


def nlvr2_files(root: Path, split: str) -> list[Path]:
    """train.json, dev.json, test1.json; the pictures anywhere below."""
    name = {"train": "train", "val": "dev", "test": "test1"}[split]
    return [path for path in _below(root, f"{name}.json") if b'"identifier"' in beginning(path)]


def read_nlvr2(root: Path, split: str) -> Found:
    """A sentence about a pair on each line, SPLIT-SET-PAIR-SENTENCE, which is "True" or "False" of it (Suhr et al.
    2019)."""
    found, pictures = Found(), Pictures(root)

    def take(line: str, where: str) -> None:
        row = json_line(line)
        identifier, label = string(row, "identifier"), str(value(row, "label", (str, bool)))
        if label not in ("True", "False"):
            raise RecordError(f"label is '{label}', expected True or False")
        pair, _, sentence = identifier.rpartition("-")
        if identifier.count("-") != 3 or not sentence:
            raise RecordError(f"identifier is '{identifier}', expected SPLIT-SET-PAIR-SENTENCE")
        both = tuple(pictures.find(f"{pair}-img{side}.png") for side in (0, 1))
        text = Text(text=string(row, "sentence"), name=identifier, answer=label, votes=(label,))
        found.add(pair, both, text, where)

    for path in nlvr2_files(root, split):
        found.each(path, (line for line in lines(path) if line), take, "line")
    return found


def snli_ve_files(root: Path, split: str) -> list[Path]:
    """snli_ve_train.jsonl, snli_ve_dev.jsonl, snli_ve_test.jsonl."""
    return list(_below(root, f"snli_ve_{'dev' if split == 'val' else split}.jsonl"))


def read_snli_ve(root: Path, split: str) -> Found:
    """A hypothesis about a picture of Flickr30K on each line (Xie et al. 2019). The published files call the picture
    Flickr30K_ID or Flikr30kID."""
    found, pictures = Found(), Pictures(root)

    def take(line: str, where: str) -> None:
        row = json_line(line)
        key = "Flikr30kID" if isinstance(row, dict) and "Flikr30kID" in row else "Flickr30K_ID"
        image = name_of(row, key).removesuffix(".jpg")
        label = string(row, "gold_label")
        if label not in LABELS:
            raise RecordError(f"gold_label is '{label}', expected one of {', '.join(LABELS)}")
        text = Text(text=string(row, "sentence2"), name=name_of(row, "pairID"), answer=label, votes=(label,))
        found.add(image, (pictures.find(f"{image}.jpg"),), text, where)

    for path in snli_ve_files(root, split):
        found.each(path, (line for line in lines(path) if line), take, "line")
    return found


def _below(root: Path, pattern: str) -> Iterable[Path]:
    """Files in the folder itself, or one or two folders below it."""
    return sorted({path for depth in ("", "*/", "*/*/") for path in root.glob(depth + pattern)})
