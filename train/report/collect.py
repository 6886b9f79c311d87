"""Gather a demo's story from its runs: logs, figures, and examples computed anew with the program's own answers."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ashnets.model import AshNet, parameters
from hw.simulate import open_backend
from quantize.verify import Joint
from train.checkpoint import newest_checkpoint
from train.data import ImageTextData
from train.doctor import environment
from train.evaluate import evaluate_answers, evaluate_retrieval
from train.joints import input_spikes
from train.logs import read_log
from train.report.story import AnswerExample, RetrievalExample, RunSummary, SpikeExample, Story
from train.run import Run, load_model, run_program
from train.stages import load_split, ranking_of

QUESTION_ONLY = 67.0  # easy-VQA's test set answered from the question alone, best answer of each question
EXAMPLE_IMAGES = 64
CPU = torch.device("cpu")


def collect_story(runs: dict[str, Run], summary: dict[str, Any]) -> Story:
    """runs: 'pretrain', 'finetune', 'quantized'. summary: what `train.demo` wrote as results/summary.json."""
    quantized = runs["quantized"]
    data = load_split(quantized, "test")
    model = load_model(quantized, "reference", CPU)
    spikes, rates = _spikes(quantized, model, data)
    heldout = load_split(runs["pretrain"], "test")
    return Story(
        title="ashnets demo",
        environment={**environment(), "seed": str(summary["seed"]), "trainable parameters": f"{parameters(model):,}"},
        runs=[_summary(name, run) for name, run in runs.items()],
        accuracies=[
            ("float", summary["vqa_accuracy_float"], "spiking stack in floating point"),
            ("QAT", summary["vqa_accuracy_qat"], "quantized stack in torch, integer arithmetic"),
            ("program", summary["vqa_accuracy_program"], "integer program, reference simulator, through the bridge"),
            ("shuffled images", summary["vqa_accuracy_shuffled_images"], "each question with another image's picture"),
            ("question only", QUESTION_ONLY, "the best answer to each question without looking"),
        ],
        questions=summary["vqa_questions"],
        retrieval=summary["retrieval_heldout"],
        concepts=len(heldout),
        joints=[Joint(**joint) for joint in summary["joints"]],
        rates=rates,
        spikes=spikes,
        answers=_answers(quantized, model, data),
        retrievals=_retrievals(runs["pretrain"], heldout),
    )


def _summary(name: str, run: Run) -> RunSummary:
    newest = newest_checkpoint(run.folder)
    if newest is None:
        raise ValueError(f"{run.folder} has no checkpoint")
    return RunSummary(
        name=name,
        config=asdict(run.config),
        data=run.data,
        log=read_log(run.folder),
        history=newest.history,
        best_step=newest.best_step,
    )


def _spikes(run: Run, model: AshNet, data: ImageTextData) -> tuple[list[SpikeExample], dict[str, float]]:
    """Three samples' rasters, and the mean rates over the first images of the test split."""
    s_in = next(input_spikes(model, data, EXAMPLE_IMAGES)).numpy().astype(np.uint8)
    layers = {"input": s_in, **open_backend("reference", run_program(run)).run(s_in, layers=True).layers}
    flat = {name: values.reshape(*values.shape[:2], -1) for name, values in layers.items()}
    examples = [
        SpikeExample(
            image=data.image(i), caption=data.texts(i)[0], layers={name: values[:, i] for name, values in flat.items()}
        )
        for i in range(3)
    ]
    return examples, {name: float(values.mean()) for name, values in layers.items()}


def _answers(run: Run, model: AshNet, data: ImageTextData) -> list[AnswerExample]:
    """Up to eight questions answered right and four answered wrong, each about another picture."""
    found = evaluate_answers("vqa", model, data, run.codec, run.answers, samples=EXAMPLE_IMAGES, keep_scores=True)
    probabilities = torch.from_numpy(found.scores).softmax(1).numpy()
    right: list[AnswerExample] = []
    wrong: list[AnswerExample] = []
    images = range(min(EXAMPLE_IMAGES, len(data)))
    pairs = [(i, q, a) for i in images for q, a in zip(data.texts(i), data.answers(i), strict=True)]
    used: set[int] = set()
    for row, (i, question, answer) in zip(probabilities, pairs, strict=True):
        best = np.argsort(-row)[:3]
        target, limit = (right, 8) if run.answers[best[0]] == answer else (wrong, 4)
        yes_no = answer in ("yes", "no")
        if i in used or len(target) == limit or (yes_no and sum(e.right in ("yes", "no") for e in target) * 2 >= limit):
            continue
        used.add(i)
        top = [(run.answers[k], float(row[k])) for k in best]
        target.append(AnswerExample(image=data.image(i), question=question, right=answer, top=top))
    return right + wrong


def _retrievals(run: Run, data: ImageTextData) -> list[RetrievalExample]:
    """Three pictures with their nearest captions, three captions with their nearest pictures, spread over the split."""
    found = evaluate_retrieval(load_model(run, "float", CPU), data, run.codec, ranking=ranking_of(run)).similarities
    assert found is not None  # retrieval has them
    scores = found.matrix()
    captions = [(text, i) for i in range(len(data)) for text in data.texts(i)]
    examples: list[RetrievalExample] = []
    for i in np.linspace(7, len(data) - 8, 3, dtype=int):
        nearest = np.argsort(-scores[i])[:5]
        shown = [(captions[k][0], bool(captions[k][1] == i)) for k in nearest]
        examples.append(RetrievalExample(query=data.image(i), found=shown))
    for k in np.linspace(20, len(captions) - 21, 3, dtype=int):
        nearest = np.argsort(-scores[:, k])[:5]
        text, owner = captions[k]
        examples.append(RetrievalExample(query=text, found=[(data.image(i), bool(i == owner)) for i in nearest]))
    return examples
