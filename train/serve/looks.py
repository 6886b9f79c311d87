"""What a page can ask of a run, without the page: pictures by text, captions by picture, answers, and spikes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ashnets.model import AshNet, normalise
from ashnets.stack import layer_spikes
from hw.bridge.module import SpikeBridge
from hw.errors import UserError
from hw.simulate import Backend, Result, open_backend
from quantize.verify import mismatching_spikes
from train.data import ImageTextData, load, pictures_each
from train.evaluate import embed_picture, evaluate_retrieval
from train.metrics.retrieval import Similarities
from train.run import Run, load_model, open_run, run_program
from train.stages import ranking_of

STACKS = {"float": "float", "program": "auto", "Lava": "lava"}
"""What the page calls the ways to run a spiking stack, and the backends behind them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Spikes:
    """One picture's spikes uint8 [T, neurons] by layer, and where they were compared with the reference simulator's:
    how many differ, and of how many."""

    layers: dict[str, np.ndarray]
    differing: int | None
    compared: int


class Look:
    """A run and its models, one for each stack that it can run on. A picture is uint8 [H, W, 3] of the model's size."""

    def __init__(self, run: Run, data: ImageTextData, device: torch.device) -> None:
        self.run, self.data, self.device = run, data, device
        self.stacks: Sequence[str] = tuple(STACKS) if run.quantized else ("float",)
        self.models: dict[str, AshNet] = {}
        self.backends: dict[str, Backend] = {}

    @property
    def image_size(self) -> int:
        return self.run.config.model.concrete.image_size

    def model(self, stack: str) -> AshNet:
        """Loaded when it is first asked for."""
        if stack not in self.models:
            model = load_model(self.run, "float" if stack == "float" else "qat", self.device)
            if stack != "float":
                model.abstract.stack = SpikeBridge(self.backend(STACKS[stack]))
            self.models[stack] = model
        return self.models[stack]

    def backend(self, name: str) -> Backend:
        if name not in self.backends:
            self.backends[name] = _Remembering(open_backend(name, run_program(self.run)))
        return self.backends[name]

    @torch.no_grad()
    def spikes(self, picture: np.ndarray, stack: str) -> Spikes:
        """What each layer does for a picture; the float stack is compared with nothing."""
        model = self.model(stack)
        s_in = model.code(self._batch(picture))
        if stack == "float":
            return _flat({"input": s_in.cpu().numpy(), **_numpy(layer_spikes(model.abstract.stack, s_in))})
        given = s_in.cpu().numpy().astype(np.uint8)
        found = self.backend(STACKS[stack]).run(given, layers=True).layers
        truth = self.backend("reference").run(given, layers=True).layers
        return _flat({"input": given, **found}, sum(mismatching_spikes(found, truth).values()))

    def _batch(self, picture: np.ndarray) -> Tensor:
        return normalise(_tensor(picture)[None].to(self.device))


class _Remembering:
    """A backend that knows the samples of its last run: an answer and the spikes drawn beside it are one run."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.name, self.program = backend, backend.name, backend.program
        self.last: dict[bytes, dict[str, np.ndarray]] = {}

    def run(self, spikes: np.ndarray, **_: object) -> Result:
        samples = [spikes[:, i].tobytes() for i in range(spikes.shape[1])]
        if not all(sample in self.last for sample in samples):
            layers = self.backend.run(spikes, layers=True).layers
            self.last = {s: {name: v[:, i] for name, v in layers.items()} for i, s in enumerate(samples)}
        found = [self.last[sample] for sample in samples]
        layers = {name: np.stack([sample[name] for sample in found], 1) for name in found[0]}
        return Result(output=list(layers.values())[-1], layers=layers)


class Search(Look):
    """Pictures of a split and their captions, found by each other.

    The split is read once for each stack. Lava is spared that: it sees the picture in question, and what it is
    compared with was seen by the program, whose spikes are the same.
    """

    def __init__(self, run: Run, data: ImageTextData, device: torch.device) -> None:
        super().__init__(run, data, device)
        self.indices: dict[str, Similarities] = {}
        ranking = ranking_of(run)
        self.ranking = replace(ranking, again=0) if ranking else None  # the matching head is not asked
        self.texts = [text for i in range(len(data)) for text in data.texts(i)]

    def index(self, stack: str) -> Similarities:
        """The embeddings of the split as a stack sees it."""
        key = "program" if stack == "Lava" else stack
        if key not in self.indices:
            found = evaluate_retrieval(self.model(key), self.data, self.run.codec, ranking=self.ranking).similarities
            assert found is not None  # retrieval has them
            self.indices[key] = found
        return self.indices[key]

    @torch.no_grad()
    def pictures(self, text: str, stack: str, count: int) -> list[tuple[int, float]]:
        """(picture, cosine) of the nearest pictures, ranked as the run's recipe ranks."""
        model, tokens = self.model(stack), self.run.codec.encode([text]).to(self.device)
        query = model.embed_texts(model.text(tokens), tokens).float().cpu().numpy()[0]
        if not query.any():
            raise UserError(f"'{text}': the model knows no part of these words; try others")
        index = self.index(stack)
        order = np.argsort(-index.of_text(query), kind="stable")[:count]
        return [(int(i), float(index.images[i] @ query)) for i in order]

    @torch.no_grad()
    def captions(self, picture: np.ndarray, stack: str, count: int) -> list[tuple[str, float]]:
        """(caption, cosine) of the nearest captions, none twice."""
        many = self.ranking is not None and self.ranking.views
        query = embed_picture(self.model(stack), _tensor(picture), many)
        index = self.index(stack)
        order = np.argsort(-index.of_image(query), kind="stable")
        found: dict[str, float] = {}
        for t in order:
            found.setdefault(self.texts[t], float(index.texts[t] @ query))
            if len(found) == count:
                break
        return list(found.items())


class Answers(Look):
    """Questions about one picture, or claims, and what the run makes of them."""

    @torch.no_grad()
    def answer(self, picture: np.ndarray, question: str, stack: str) -> dict[str, float]:
        """The probability of every answer that the run knows."""
        model, tokens = self.model(stack), self.run.codec.encode([question]).to(self.device)
        v = model.vision(self._batch(picture)).v
        chances = model.answer(model.text(tokens), tokens.padding, v).float().softmax(1)[0].tolist()
        return dict(zip(self.run.answers, chances, strict=True))


def open_looks(
    folders: Sequence[Path], dataset: str | None, split: str, device: torch.device
) -> tuple[Search | None, Answers | None]:
    """What runs are good for: one for retrieval, one that answers. dataset: pictures to search, instead of the run's
    own data. `UserError` names the run that the page has no place for."""
    search: Search | None = None
    answers: Answers | None = None
    for folder in folders:
        run = open_run(folder)
        config, task = run.config, run.config.train.task
        if config.model.fusion.images > 1:
            raise UserError(f"{folder}: reads pairs of pictures, the page shows one; use 'ashnets evaluate {folder}'")
        if config.model.abstract.codebook:
            raise UserError(f"{folder}: holds a codebook where spikes would be; there are none to show")
        if (search if task == "retrieval" else answers) is not None:
            raise UserError(f"{folder}: is a second run for the same task; give one that retrieves, one that answers")
        data = load(dataset or config.train.dataset, split, config.model.concrete.image_size)
        if pictures_each(data) > 1:
            raise UserError(f"{data.name}: shows pairs of pictures, the page one; give other --data")
        if task == "retrieval":
            search = Search(run, data, device)
        else:
            answers = Answers(run, data, device)
    return search, answers


def _tensor(picture: np.ndarray) -> Tensor:
    """uint8 [3, H, W]."""
    return torch.from_numpy(picture).permute(2, 0, 1)


def _numpy(layers: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: values.cpu().numpy() for name, values in layers.items()}


def _flat(layers: dict[str, np.ndarray], differing: int | None = None) -> Spikes:
    """Of one sample: [T, 1, ...] -> uint8 [T, neurons]. All but the input's were compared."""
    flat = {name: values.reshape(len(values), -1).astype(np.uint8) for name, values in layers.items()}
    return Spikes(layers=flat, differing=differing, compared=sum(v.size for n, v in flat.items() if n != "input"))
