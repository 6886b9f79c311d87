"""One loop for pre-training, fine-tuning and quantization-aware training.

What happens in step k is a function of the config, the seed and k alone: the images, the texts drawn, the
augmentation, dropout and the learning rate. So a checkpoint needs weights, optimiser state and k, and a resumed run
ends with the same bits.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ashnets.model import AshNet, Inputs, normalise
from hw.errors import UserError
from quantize.loop import ChipInTheLoop
from train.checkpoint import (
    Tensors,
    clear_leftovers,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from train.config import TrainConfig
from train.data import Batch, ImageTextData, batches, collate
from train.evaluate import Ranking, evaluate
from train.logs import RunLog
from train.metrics.vqa import soft_scores
from train.run import Bundle, Run, fill, load_model, quantized_stack

Report = Callable[[int, int, dict[str, float]], None]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine that reaches zero after `steps`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def seed_step(seed: int, step: int) -> np.random.Generator:
    """Seed torch for one step and return numpy's generator for it."""
    torch_seed, numpy_seed = np.random.SeedSequence([seed, step]).generate_state(2, np.uint64)
    torch.manual_seed(int(torch_seed))
    return np.random.default_rng(int(numpy_seed))


def augmentation(config: TrainConfig, size: int) -> v2.Transform:
    """What happens to a training image, uint8 [3, H, W]: cropping, rotation, mirroring and erasing, where asked for."""
    steps: list[nn.Module] = []
    if config.crop < 1:
        steps.append(v2.RandomResizedCrop(size, scale=(config.crop, 1.0), ratio=(0.9, 1.1), antialias=True))
    if config.rotate:
        steps.append(v2.RandomAffine([-config.rotate, config.rotate], fill=255))
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.erase:
        steps.append(v2.RandomErasing(p=config.erase, scale=(0.05, 0.25), value=255))
    return v2.Compose(steps or [v2.Identity()])


def recolouring(config: TrainConfig) -> list[v2.Transform]:
    """What else happens to the second view of an image: other light, and other colours or none where asked for."""
    saturation = 0.5 if config.view_hue else 0.0
    steps: list[v2.Transform] = [v2.ColorJitter(0.3, 0.3, saturation, config.view_hue)]
    return [*steps, v2.RandomGrayscale(config.view_grey)] if config.view_grey else steps


class Trainer:
    """Holds what a run needs in memory. `train` goes on from the newest checkpoint to the end."""

    def __init__(self, run: Run, train_data: ImageTextData, val_data: ImageTextData, device: torch.device) -> None:
        self.run, self.config, self.device = run, run.config.train, device
        self.train_data, self.val_data = train_data, val_data
        torch.manual_seed(self.config.seed)
        bundle = Bundle(run.config, len(run.answers))
        bundle.model.text_head.learn_lexicon(run.codec.lexicon)
        self.bundle = bundle.to(device)
        if run.config.chip is not None:
            quantized_stack(bundle.model).chip = ChipInTheLoop(run.config.chip)
        self.teacher: nn.Module | None = None
        if run.config.distill:
            self.teacher = load_model(run, "float", device).abstract.stack
        self.names: dict[Tensor, str] = {p: name for name, p in self.bundle.named_parameters() if p.requires_grad}
        vectors = [p for p in self.names if p.ndim < 2]
        matrices = [p for p in self.names if p.ndim >= 2]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, fused=device.type == "cuda")
        self.ema: Tensors = {}
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.answer_index = {answer: i for i, answer in enumerate(run.answers)}
        self.images_by_id: dict[str, list[int]] = {}
        for i in range(len(train_data)):
            self.images_by_id.setdefault(train_data.image_id(i), []).append(i)
        size = run.config.model.concrete.image_size
        self.augment = augmentation(self.config, size)
        self.augment_view = v2.Compose([self.augment, *recolouring(self.config)])

    def load_weights(self, weights: Tensors) -> None:
        """Start from the weights of another run: all that has the same name and shape. The answer head may differ, and
        the image size, to which position embeddings are fitted."""
        own = self.bundle.state_dict()
        weights = weights | fitted_positions(self.bundle.model, weights)
        fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
        if not any(k.startswith("model.concrete.") for k in fitting):
            raise UserError(
                "the weights to start from fit no layer of this model; use the same model preset as that run"
            )
        self.bundle.load_state_dict(fitting, strict=False)

    def train(self, report: Report | None = None) -> None:
        """Train to the end from the newest checkpoint; a checkpoint of step 0 is written first, so that a start is
        never lost."""
        clear_leftovers(self.run.folder)
        checkpoint = newest_checkpoint(self.run.folder)
        if checkpoint:
            self._restore(checkpoint)
        elif self.config.ema:
            self.ema = {name: p.detach().clone() for p, name in self.names.items()}
        with RunLog(self.run.folder, self.step) as log, Deterministic(self.device):
            if not checkpoint:
                self._evaluate_and_save(log)
            while self.step < self.config.steps:
                values = self._train_step()
                self.step += 1
                if report:
                    report(self.step, self.config.steps, values)
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    log.write(self.step, "train", values)
                if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                    self._evaluate_and_save(log)

    def inputs(self, step: int) -> Inputs:
        """The batch of a step: distinct ids, one image of each, so that ids with many images weigh no more. Reseeds
        torch and numpy."""
        rng = seed_step(self.config.seed, step)
        ids = batches(len(self.images_by_id), self.config.batch, self.config.seed, step)
        groups = list(self.images_by_id.values())
        indices = [rng.choice(groups[i]) for i in ids]
        batch = collate(self.train_data, indices, rng, self.config.texts_per_image)
        images = torch.from_numpy(batch.images)
        needs_view = any(o.needs_view for o in self.bundle.objectives.values())
        return Inputs(
            images=self._augmented(self.augment, images),
            view=self._augmented(self.augment_view, images) if needs_view else None,
            tokens=self.run.codec.encode(batch.texts).to(self.device),
            text_image=torch.from_numpy(batch.text_image).to(self.device),
            image_ids=torch.from_numpy(ids).to(self.device),
            picture_ids=torch.from_numpy(picture_ids(batch, ids)).to(self.device) if needs_view else None,
            answers=self._answers(batch) if batch.answers else None,
            scores=self._scores(batch) if "vqa_soft" in self.bundle.objectives else None,
        )

    def _answers(self, batch: Batch) -> Tensor:
        return torch.tensor([self.answer_index.get(answer, -1) for answer in batch.answers], device=self.device)

    def _scores(self, batch: Batch) -> Tensor:
        scores = torch.zeros(len(batch.texts), len(self.answer_index))
        for row, votes in zip(scores, batch.votes, strict=True):
            for answer, worth in soft_scores(votes).items():
                if answer in self.answer_index:
                    row[self.answer_index[answer]] = worth
        return scores.to(self.device)

    def _augmented(self, augment: v2.Transform, images: Tensor) -> Tensor:
        return normalise(torch.stack([augment(image) for image in images]).to(self.device, non_blocking=True))

    def _train_step(self) -> dict[str, float]:
        if self.run.quantized:  # the host is frozen: its norms must not move either
            self.bundle.eval()
            self.bundle.model.abstract.stack.train()
        else:
            self.bundle.train()
        inputs = self.inputs(self.step)
        model = self.bundle.model
        with autocast(self.device):
            vision = model.vision(inputs.images)
            w = model.text(inputs.tokens)
            total = torch.zeros((), device=self.device)
            values = {"rate_in": vision.s_in.detach().mean(), "rate": vision.s_out.detach().mean()}
            for name, weight in self.config.objectives.items():
                loss, logs = self.bundle.objectives[name](model, inputs, vision, w)
                total = total + weight * loss
                values |= {name: loss.detach()} | {f"{name}/{key}": value for key, value in logs.items()}
            if self.teacher is not None:
                with torch.no_grad():
                    wanted = self.teacher(vision.s_in).mean(0)
                distance = (vision.s_out.mean(0) - wanted).square().mean()
                total = total + self.run.config.distill * distance
                values["distill"] = distance.detach()
        self._refuse_non_finite({"loss": total} | {name: values[name] for name in self.config.objectives})
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.names, self.config.clip)
        self._refuse_non_finite({"gradient norm": norm})
        lr = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.config.ema:
            with torch.no_grad():
                for p, name in self.names.items():
                    self.ema[name].lerp_(p, 1 - self.config.ema)
        values |= {"loss": total.detach(), "gradient_norm": norm}
        return {key: float(value) for key, value in values.items()} | {"lr": lr}

    def _refuse_non_finite(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            if not torch.isfinite(value):
                raise UserError(
                    f"step {self.step + 1}: {name} is {value.item()}, so that no update was made; "
                    f"the last checkpoint is whole. Lower --train.lr (now {self.config.lr:g}) and resume"
                )

    def _evaluate_and_save(self, log: RunLog) -> None:
        raw = {k: v.clone() for k, v in self.bundle.state_dict().items() if k in self.ema}
        self.bundle.load_state_dict(self.ema, strict=False)
        c = self.config
        ranking = Ranking(data=self.train_data, neighbours=c.neighbours, views=c.views, again=c.again)
        model, codec = self.bundle.model, self.run.codec
        result = evaluate(self.config.task, model, self.val_data, codec, self.run.answers, ranking=ranking)
        self.bundle.load_state_dict(raw, strict=False)
        log.write(self.step, "val", result.metrics)
        self.history.append({"step": self.step, "score": result.score, **result.metrics})
        tensors = {"weights": self.bundle.state_dict(), "optimizer": optimizer_tensors(self.optimizer, self.names)}
        if self.ema:
            tensors["ema"] = self.ema
        log.flush()
        save_checkpoint(self.run.folder, self.step, self.history, tensors)

    def _restore(self, checkpoint) -> None:
        fill(self.bundle, checkpoint.tensors("weights"), checkpoint.folder)
        restore_optimizer(self.optimizer, self.names, checkpoint.tensors("optimizer"))
        if self.config.ema:
            self.ema = {k: v.to(self.device) for k, v in checkpoint.tensors("ema").items()}
        self.step, self.history = checkpoint.step, checkpoint.history


def picture_ids(batch: Batch, ids: np.ndarray) -> np.ndarray:
    """int64, one for each picture of a batch: the record's, or of pairs, which share pictures, by what it shows."""
    if len(batch.images) == len(ids):
        return ids
    return np.unique([picture.tobytes() for picture in batch.images], return_inverse=True)[1]


def fitted_positions(model: AshNet, weights: Tensors) -> Tensors:
    """The position embeddings among `weights` for the model's number of tokens, where they are of another."""
    key, vit = "model.concrete.vit.pos_embed", model.concrete.vit
    if key not in weights or weights[key].shape[1] == vit.pos_embed.shape[1]:
        return {}
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid = list(model.concrete.grid)
    return {key: resample_abs_pos_embed(weights[key], grid, num_prefix_tokens=vit.num_prefix_tokens)}


def autocast(device: torch.device):
    """bf16 on CUDA; nothing on the CPU, where bits are to be reproducible."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


class Deterministic:
    """Deterministic kernels on the CPU while the block runs."""

    def __init__(self, device: torch.device) -> None:
        self.enabled = device.type == "cpu"

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(self.enabled)
        determinism: Any = torch.utils.deterministic
        determinism.fill_uninitialized_memory = False  # costs time, and nothing reads it

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)
