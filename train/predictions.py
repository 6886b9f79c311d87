"""What a model answered, in the file that each task's official evaluation takes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hw.artifact import staged_file
from train.data import ImageTextData
from train.evaluate import Evaluation
from train.metrics.vqa import write_results


def write_predictions(task: str, path: Path, result: Evaluation, data: ImageTextData, answers: list[str]) -> None:
    """VQA: JSON [{question_id, answer}] for the VQA server. NLVR2: CSV lines `identifier,prediction`. SNLI-VE: JSON
    lines {pairID, prediction}. Retrieval: JSON lines {image_id, texts: names of the first ten}, zero-shot {image_id,
    text_ids: its own texts' names, class}. Whole or not at all."""
    if task == "retrieval":
        _write_retrieved(path, result, data)
        return
    if task == "zero_shot":
        named = [(i, result.names[k]) for i, k in enumerate(result.predictions)]
        _write_lines(path, [{"image_id": data.image_id(i), "text_ids": data.text_ids(i), "class": c} for i, c in named])
        return
    WRITERS[task](path, [(name, answers[k]) for name, k in zip(result.names, result.predictions, strict=True)])


def _write_nlvr2(path: Path, given: list[tuple[str, str]]) -> None:
    with staged_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(given)


def _write_snli_ve(path: Path, given: list[tuple[str, str]]) -> None:
    _write_lines(path, [{"pairID": name, "prediction": answer} for name, answer in given])


def _write_retrieved(path: Path, result: Evaluation, data: ImageTextData) -> None:
    names = [name for i in range(len(result.predictions)) for name in data.text_ids(i)]
    firsts = enumerate(result.predictions)
    _write_lines(path, [{"image_id": data.image_id(i), "texts": [names[k] for k in first]} for i, first in firsts])


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    with staged_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


WRITERS: dict[str, Callable[[Path, list[tuple[str, str]]], None]] = {
    "vqa": write_results,
    "nlvr2": _write_nlvr2,
    "snli_ve": _write_snli_ve,
}
