"""What a model answered, in the file that each task's official evaluation takes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hw.artifact import staged_file
from hw.errors import UserError
from train.data import ImageTextData
from train.evaluate import Evaluation
from train.metrics.vqa import write_results

FIRST = 10  # texts of an image that a retrieval's file names


def write_predictions(task: str, path: Path, result: Evaluation, data: ImageTextData, answers: list[str]) -> None:
    """VQA: JSON [{question_id, answer}] for the VQA server. NLVR2: CSV lines `identifier,prediction`. SNLI-VE: JSON
    lines {pairID, prediction}. Retrieval: JSON lines {image_id, texts: names of the first ten, scores}. Whole or not at
    all."""
    if task == "retrieval":
        _write_retrieved(path, result, data)
        return
    WRITERS[task](path, [(name, answers[k]) for name, k in zip(result.names, result.predictions, strict=True)])


def _write_nlvr2(path: Path, given: list[tuple[str, str]]) -> None:
    with staged_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(given)


def _write_snli_ve(path: Path, given: list[tuple[str, str]]) -> None:
    with staged_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for name, answer in given:
            file.write(json.dumps({"pairID": name, "prediction": answer}) + "\n")


def _write_retrieved(path: Path, result: Evaluation, data: ImageTextData) -> None:
    images, texts = result.scores.shape
    names = [name for i in range(images) for name in data.text_ids(i)]
    if len(names) != texts:
        raise UserError(f"{path}: {texts} texts were ranked, but the data has {len(names)}; evaluate it anew")
    with staged_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for i, scores in enumerate(result.scores):
            best = np.argsort(-scores, kind="stable")[:FIRST]
            row = {
                "image_id": data.image_id(i),
                "texts": [names[k] for k in best],
                "scores": [round(float(scores[k]), 6) for k in best],
            }
            file.write(json.dumps(row) + "\n")


WRITERS: dict[str, Callable[[Path, list[tuple[str, str]]], None]] = {
    "vqa": write_results,
    "nlvr2": _write_nlvr2,
    "snli_ve": _write_snli_ve,
}
