"""One loop for pre-training, fine-tuning and quantization-aware training.

What happens in step k is a function of the config, the seed and k alone: the images, the texts drawn, the
augmentation, dropout and the learning rate. So a checkpoint needs weights, optimiser state and k, and a resumed run
ends with the same bits.
"""

import math
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ashnets.model import AshNet, Inputs
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
from train.data import ImageTextData
from train.evaluate import Ranking, evaluate
from train.execution import Deterministic, attention, autocast, prepare
from train.loader import Batches, deaths_told, load_ahead
from train.logs import RunLog
from train.run import Bundle, Run, fill, load_model, quantized_stack

Report = Callable[[int, int, dict[str, float]], None]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine that reaches zero after `steps`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one step: its dropout, and what its objectives draw."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]))


class Trainer:
    """Holds what a run needs in memory. `train` goes on from the newest checkpoint to the end."""

    def __init__(
        self, run: Run, train_data: ImageTextData, val_data: ImageTextData, device: torch.device, workers: int = 0
    ) -> None:
        """workers: processes that make batches ahead."""
        self.run, self.config, self.device, self.workers = run, run.config.train, device, workers
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
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, fused=True)
        self.ema: Tensors = {}
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.batches = Batches(run, train_data)
        prepare(self.bundle.model, self.config, device)

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
        else:
            self.start_average()
        ahead = load_ahead(self.batches, range(self.step, self.config.steps), self.device, self.workers)
        with RunLog(self.run.folder, self.step) as log, Deterministic(self.device), closing(ahead), deaths_told():
            if not checkpoint:
                self._evaluate_and_save(log)
            for inputs in ahead:
                values = self.train_step(inputs)
                self.step += 1
                if report:
                    report(self.step, self.config.steps, values)
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    log.write(self.step, "train", values)
                if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                    self._evaluate_and_save(log)

    def start_average(self) -> None:
        """Let the averaged weights be the present ones, where the config wants any."""
        if self.config.ema:
            self.ema = {name: p.detach().clone() for p, name in self.names.items()}

    def train_step(self, inputs: Inputs) -> dict[str, float]:
        if self.run.quantized:  # the host is frozen: its norms must not move either
            self.bundle.eval()
            self.bundle.model.abstract.stack.train()
        else:
            self.bundle.train()
        seed_step(self.config.seed, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        with attention(self.device):
            with autocast(self.config, self.device):
                total, values = self._loss(inputs)
            total.backward()
        norm = nn.utils.clip_grad_norm_(self.names, self.config.clip)
        values |= {"loss": total, "gradient_norm": norm}
        numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()  # waits for the GPU once
        logged = dict(zip(values, numbers, strict=True))
        self._refuse_non_finite({name: logged[name] for name in ("loss", *self.config.objectives, "gradient_norm")})
        lr = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.config.ema:
            averaged = [self.ema[name] for name in self.names.values()]
            get_ema_multi_avg_fn(self.config.ema)(averaged, [p.detach() for p in self.names], None)
        return logged | {"lr": lr}

    def _loss(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the objectives, and what is logged of them."""
        total, values, vision = self.bundle(inputs)
        values = {"rate_in": vision.s_in.mean(), "rate": vision.s_out.mean()} | values
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(vision.s_in).mean(0)
            values["distill"] = (vision.s_out.mean(0) - wanted).square().mean()
            total = total + self.run.config.distill * values["distill"]
        return total, values

    def _refuse_non_finite(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"step {self.step + 1}: {name.replace('_', ' ')} is {value}, so that no update was made; "
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


def fitted_positions(model: AshNet, weights: Tensors) -> Tensors:
    """The position embeddings among `weights` for the model's number of tokens, where they are of another."""
    key, vit = "model.concrete.vit.pos_embed", model.concrete.vit
    if key not in weights or weights[key].shape[1] == vit.pos_embed.shape[1]:
        return {}
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid = list(model.concrete.grid)
    return {key: resample_abs_pos_embed(weights[key], grid, num_prefix_tokens=vit.num_prefix_tokens)}
