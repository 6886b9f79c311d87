"""Evaluate a model on a split: retrieval recalls or right answers, with what its spikes did along the way.

Where several ranks evaluate, each looks at its part of the batches, and all have the result: the same, to the last bit,
as one has by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ashnets.model import AshNet, Vision, normalise
from ashnets.text import TextCodec
from hw.errors import UserError
from train.data import ImageTextData, image_array, pictures_each
from train.metrics.answers import METRICS
from train.metrics.retrieval import Match, Similarities, hubness, rank, rank_again
from train.ranks import joined_rows, own_part
from train.views import VIEWS, views

PAIRS = 256  # pairs of an image and a text that are matched at a time
BATCH = 64  # images at a time; the same for every backend, so that host arithmetic is the same too
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """metrics: name -> percent or rate. Of questions: predictions [M], the index of the answer given to each, scores
    [M, A] if they are kept, and names, what the data set calls each. Of retrieval: predictions [I, 10], the first
    captions of each image, and similarities."""

    metrics: dict[str, float]
    predictions: np.ndarray
    scores: np.ndarray = field(repr=False, default_factory=lambda: np.zeros((0, 0)))
    names: list[str] = field(repr=False, default_factory=list)
    similarities: Similarities | None = field(repr=False, default=None)

    @property
    def score(self) -> float:
        """The number by which checkpoints are compared: higher is better."""
        return self.metrics["accuracy" if "accuracy" in self.metrics else "mean_recall"]


def check_pictures(model: AshNet, data: ImageTextData) -> None:
    """`UserError` where the data shows another number of pictures with a text than the model looks at."""
    shown, seen = pictures_each(data), model.config.fusion.images
    if shown != seen:
        raise UserError(
            f"{data.name}: has {shown} pictures to a text, and this model looks at {seen}; fine-tune it on such data"
        )


def image_batches(data: ImageTextData, samples: int | None = None) -> Iterator[range]:
    """Index ranges over the first `samples` images."""
    total = len(data) if samples is None else min(samples, len(data))
    if total < 1:
        raise UserError(f"--samples is {samples}; evaluate at least 1 image")
    for start in range(0, total, BATCH):
        yield range(start, min(start + BATCH, total))


def images_of(data: ImageTextData, indices: Sequence[int], device: torch.device) -> Tensor:
    """Normalised images [B, 3, H, W]."""
    return normalise(pixels_of(data, indices).to(device))


def pixels_of(data: ImageTextData, indices: Sequence[int]) -> Tensor:
    """uint8 [B, 3, H, W]."""
    return torch.from_numpy(image_array(data, indices))


def visions(model: AshNet, batches: Iterable[Tensor]) -> Iterator[Vision]:
    """What the model sees in each batch of images, one batch ahead: while the chip runs one, torch computes the
    next."""
    waiting: Callable[[], Vision] | None = None
    for images in batches:
        begun = model.begin_vision(images)
        if waiting:
            yield waiting()
        waiting = begun
    if waiting:
        yield waiting()


class _Rates:
    """Mean firing rates over the images seen, by all ranks, weighted by their number."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def add(self, vision: Vision) -> None:
        rates = [1.0, vision.s_in.mean().item(), vision.s_out.mean().item()]
        self.batches.append(vision.f.shape[0] * np.array([rates]))

    def metrics(self) -> dict[str, float]:
        images, *sums = joined_rows(self.batches).sum(0).tolist()
        rate_in, rate_out = (total / images for total in sums)
        return {"firing_rate_in": rate_in, "firing_rate": rate_out}


@torch.no_grad()
def evaluate_answers(
    task: str,
    model: AshNet,
    data: ImageTextData,
    codec: TextCodec,
    answers: list[str],
    *,
    samples: int | None = None,
    shuffle_images: bool = False,
    keep_scores: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """The task's metrics (`train.metrics.answers`) over every text of the first `samples` images.

    shuffle_images gives each question the picture of another image (the next one): what is left is what questions
    alone tell. keep_scores: with the scores of all answers, 4 bytes each.
    """
    check_pictures(model, data)
    if model.answer_head is None:
        raise UserError(f"this model has not learned to answer, which '{task}' asks for; fine-tune it first")
    device = next(model.parameters()).device
    predictions, scores, rates = [], [], _Rates()
    every = list(image_batches(data, samples))
    batches = own_part(every)
    pictures = (images_of(data, [(i + shuffle_images) % len(data) for i in indices], device) for indices in batches)
    for indices, vision in zip(batches, visions(model, pictures), strict=True):
        rates.add(vision)
        texts = [text for i in indices for text in data.texts(i)]
        text_image = torch.tensor([k for k, i in enumerate(indices) for _ in data.texts(i)], device=device)
        tokens = codec.encode(texts).to(device)
        logits = model.answer(model.text(tokens), tokens.padding, vision.v, text_image).float().cpu().numpy()
        if keep_scores:
            scores.append(logits)
        predictions.append(logits.argmax(1))
        if progress:
            progress(indices.stop, every[-1].stop)
    given = joined_rows(predictions)
    seen = range(every[-1].stop)
    ids = [name for i in seen for name in data.text_ids(i)]
    votes = [said for i in seen for said in data.votes(i)]
    kinds = [kind for i in seen for kind in data.kinds(i) or [""] * len(data.texts(i))]
    judged = [k for k, said in enumerate(votes) if said]  # a test split has questions without answers
    metrics: dict[str, float] = {"questions": float(len(given)), **rates.metrics()}
    if judged:
        chosen = [answers[given[k]] for k in judged]
        asked = [ids[k] for k in judged], [votes[k] for k in judged], chosen, [kinds[k] for k in judged]
        metrics = METRICS[task](*asked) | metrics
    kept = joined_rows(scores) if keep_scores else np.zeros((0, 0))
    return Evaluation(metrics=metrics, predictions=given, scores=kept, names=ids)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How retrieval ranks. data: training data, by whose `neighbours` nearest items it recognises what is near to
    everything; 0 for the plain cosine. views: a picture is looked at in several views (`train.views`). again: how many
    of the first are ranked anew by the matching head."""

    data: ImageTextData
    neighbours: int
    views: bool = False
    again: int = 0


@torch.no_grad()
def evaluate_retrieval(
    model: AshNet,
    data: ImageTextData,
    codec: TextCodec,
    *,
    samples: int | None = None,
    ranking: Ranking | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Recalls in percent (see `train.metrics.retrieval`) and their mean, over the first `samples` images and all
    their captions. ranking: by default the plain cosine of one view. Where the matching head ranks again, 'itc_tr@K'
    and the like are what similarity alone gives."""
    check_pictures(model, data)
    rates, many = _Rates(), ranking is not None and ranking.views
    queried = list(image_batches(data, samples))
    images, texts, text_image = _embeddings(model, data, codec, queried, rates, progress, many)
    hubs: dict[str, np.ndarray] = {}
    if ranking and ranking.neighbours:
        first = {ranking.data.image_id(i): i for i in reversed(range(len(ranking.data)))}
        chosen = sorted(first.values())  # one picture of each id, so that ids with many weigh no more
        batches = [chosen[k : k + BATCH] for k in range(0, len(chosen), BATCH)]
        known_images, known_texts, _ = _embeddings(model, ranking.data, codec, batches, _Rates())
        hubs["image_hub"] = hubness(images, known_texts, ranking.neighbours)
        hubs["text_hub"] = hubness(texts, known_images, ranking.neighbours)
    near = Similarities(images=images, texts=texts, **hubs)
    ids = [data.image_id(i) for i in range(len(images))]
    others: dict[str, float] = {}
    if ranking and ranking.again:
        plain, ranked = rank_again(near, ids, text_image, ranking.again, _matcher(model, data, codec, len(images)))
        others = plain.recalls(prefix="itc_")
    else:
        ranked = rank(near, ids, text_image)
    metrics = ranked.recalls()
    mean = float(np.mean(list(metrics.values())))
    return Evaluation(
        metrics={**metrics, "mean_recall": mean, **others, **rates.metrics()},
        predictions=ranked.first,
        similarities=near,
    )


def embed_picture(model: AshNet, pixels: Tensor, many: bool) -> np.ndarray:
    """[K] of a picture uint8 [3, H, W]. many: the mean over its `views`, which are one batch."""
    shown = torch.cat(list(views(pixels[None]))) if many else pixels[None]
    return _mean(model.embed_images(model.vision(normalise(shown.to(next(model.parameters()).device))).v)[:, None])[0]


def _mean(embeddings: Tensor) -> np.ndarray:
    """The directions [B, K] between unit vectors [V, B, K]."""
    return F.normalize(embeddings.float().mean(0), dim=-1).cpu().numpy()


def _matcher(model: AshNet, data: ImageTextData, codec: TextCodec, count: int) -> Match:
    """How well pairs of the first `count` images and their captions match: log p(match) - log p(no match). Images are
    looked at once more, a batch at a time; texts are read with the images of each batch."""
    if model.match_head is None:
        raise UserError("this model has no matching head to rank again with; train it with the objective itm")
    device = next(model.parameters()).device
    texts = [text for i in range(count) for text in data.texts(i)]

    def match(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        scores = []
        batches = own_part(list(image_batches(data, count)))
        pictures = (images_of(data, indices, device) for indices in batches)
        for indices, vision in zip(batches, visions(model, pictures), strict=True):
            first, last = np.searchsorted(images, [indices.start, indices.stop])
            for start in range(first, last, PAIRS):
                part = slice(start, min(start + PAIRS, last))
                tokens = codec.encode([texts[t] for t in wanted[part]]).to(device)
                of = images[part]  # in ascending order: few images, each with many texts
                v = vision.v[of[0] - indices.start : of[-1] - indices.start + 1]
                text_image = torch.from_numpy(of - of[0]).to(device)
                logits = model.match(model.text(tokens), tokens.padding, v, text_image).float()
                scores.append((logits[:, 1] - logits[:, 0]).cpu().numpy())
        return joined_rows(scores)

    return match


def _embeddings(
    model: AshNet,
    data: ImageTextData,
    codec: TextCodec,
    batches: Sequence[Sequence[int]],
    rates: _Rates,
    progress: Progress | None = None,
    many: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings [images, K] of the pictures of `batches` and [texts, K] of their captions, and the position of each
    caption's picture [texts]. many: a picture's is the mean over its `views`."""
    device = next(model.parameters()).device
    images, texts = [], []
    seen, own = 0, own_part(batches)
    shown = views if many else lambda pixels: [pixels]
    pictures = (normalise(view.to(device)) for indices in own for view in shown(pixels_of(data, indices)))
    seen_as = visions(model, pictures)
    for indices in own:
        whole = next(seen_as)
        rates.add(whole)
        of_views = [model.embed_images(v.v) for v in (whole, *islice(seen_as, VIEWS - 1 if many else 0))]
        tokens = codec.encode([text for i in indices for text in data.texts(i)]).to(device)
        images.append(_mean(torch.stack(of_views)))
        texts.append(model.embed_texts(model.text(tokens), tokens).float().cpu().numpy())
        seen += len(indices)
        if progress:
            progress(seen, sum(map(len, own)))
    every = [i for indices in batches for i in indices]
    text_image = np.array([k for k, i in enumerate(every) for _ in data.texts(i)])
    return joined_rows(images), joined_rows(texts), text_image


def evaluate(
    task: str,
    model: AshNet,
    data: ImageTextData,
    codec: TextCodec,
    answers: list[str],
    *,
    ranking: Ranking | None = None,
    **options: Any,
) -> Evaluation:
    """The task's evaluation; the model is left in the mode it was in. ranking: for retrieval alone."""
    training = model.training
    model.eval()
    try:
        if task == "retrieval":
            return evaluate_retrieval(model, data, codec, ranking=ranking, **options)
        return evaluate_answers(task, model, data, codec, answers, **options)
    finally:
        model.train(training)
