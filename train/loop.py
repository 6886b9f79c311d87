"""One loop for pre-training, fine-tuning and quantization-aware training, on one rank or many.

What happens in step k is a function of the config, the seed and k alone: the images, the texts drawn, the
augmentation, dropout and the learning rate. So a checkpoint needs weights, optimiser state and k, and a resumed run
ends with the same bits. Ranks share each batch; what a model draws in its forward pass each draws for itself.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ashnets.model import AshNet, Inputs
from hw.errors import Stopped, UserError
from quantize.loop import ChipInTheLoop
from train import ranks
from train.checkpoint import (
    Tensors,
    clear_leftovers,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from train.data import ImageTextData
from train.evaluate import Ranking, evaluate
from train.execution import Deterministic, attention, autocast, prepare
from train.finite import not_finite, watched
from train.loader import Batches, deaths_told, load_ahead
from train.logs import RunLog, open_log
from train.parallel import clip, cut, cut_as, local, part_of, reduce_uncut, spread, whole
from train.run import Bundle, Run, fill, load_model, quantized_stack
from train.saving import Clock, Saver, Termination
from train.step import StepLoss, learning_rate, seed_step

Report = Callable[[int, int, dict[str, float]], None]
_STATES = re.compile(r"objectives\.itc_queue\.(momentum|images|texts)\.")  # what is not learned, but gathered


class Trainer:
    """Holds what a run needs in memory. `train` goes on from the newest checkpoint to the end."""

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        run: Run,
        train_data: ImageTextData,
        val_data: ImageTextData,
        device: torch.device,
        workers: int = 0,
        keys: Path | None = None,
    ) -> None:
        """workers: processes that make batches ahead. keys: for a chip in the loop that is on another host."""
        self.run, self.config, self.device, self.workers = run, run.config.train, device, workers
        self.train_data, self.val_data = train_data, val_data
        torch.manual_seed(self.config.seed)
        bundle = Bundle(run.config, len(run.answers))
        bundle.model.text_head.learn_lexicon(run.codec.lexicon)
        self.bundle = bundle.to(device)
        if run.config.chip is not None:
            quantized_stack(bundle.model).chip = ChipInTheLoop(run.config.chip, keys)
        self.teacher = load_model(run, "float", device).abstract.stack if run.config.distill else None
        self.loss = StepLoss(bundle, self.teacher, run.config.distill)
        self.wishes: Callable[[], dict[str, bool]] = dict
        self.asked: dict[str, bool] = {}
        self.ema: Tensors = {}
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.batches = Batches(run, train_data, ranks.rank(), ranks.count())
        prepare(self.bundle.model, self.config, device)

    def load_weights(self, weights: Tensors) -> None:
        """Start from the weights of another run: all that has the same name and shape. The answer head may differ, and
        the image size, to which position embeddings are fitted. Queues and averaged encoders begin anew: their ids are
        those of that run's data; and r is what the configuration says, where it says so."""
        own = self.bundle.state_dict()
        weights = weights | fitted_positions(self.bundle.model, weights)
        if self.run.config.model.fusion.r is not None:
            weights.pop("model.fusion.r", None)
        fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape and not _STATES.match(k)}
        if not any(k.startswith("model.concrete.") and v.ndim > 1 for k, v in fitting.items()):
            raise UserError(
                "the weights to start from fit no layer of this model; use the same model preset as that run"
            )
        self.bundle.load_state_dict(fitting, strict=False)

    def start(self) -> None:
        """Cut the weights up where ranks share them, and begin the optimiser and the averaged weights anew."""
        self.in_parts = ranks.count() > 1 and self.config.parallel == "fsdp" and not self.run.quantized
        models = [module for module in self.bundle.modules() if isinstance(module, AshNet)]  # averaged ones too
        self.parallel = spread(
            self.loss, [block for model in models for block in model.blocks], self.in_parts, self.device
        )
        self.names: dict[Tensor, str] = {p: name for name, p in self.bundle.named_parameters() if p.requires_grad}
        groups: dict[tuple[float, float, bool], list[Tensor]] = {}
        for p, name in self.names.items():
            share = 1.0 if self.config.lr_concrete is None or ".concrete." not in name else self.config.lr_concrete
            decay = 0.0 if p.ndim < 2 else self.config.weight_decay
            groups.setdefault((share, decay, cut(p)), []).append(p)  # cut ones apart, as AdamW wants them
        kinds = [{"params": ps, "share": share, "weight_decay": decay} for (share, decay, _), ps in groups.items()]
        self.optimizer = torch.optim.AdamW(kinds, lr=self.config.lr, fused=True)
        if self.config.ema:
            self.ema = {name: p.detach().clone() for p, name in self.names.items()}

    def train(self, report: Report | None = None) -> None:
        """Train to the end from the newest checkpoint; a checkpoint of step 0 is written first, so that a start is
        never lost. `Stopped` where SIGTERM comes in between, with a checkpoint of the step."""
        checkpoint = newest_checkpoint(self.run.folder)
        ranks.on_first(lambda: clear_leftovers(self.run.folder, checkpoint))
        self.start()
        if checkpoint:
            self._restore(checkpoint)
        ahead = load_ahead(self.batches, range(self.step, self.config.steps), self.device, self.workers)
        c, clock = self.config, Clock(self.config.save_minutes)
        with (
            open_log(self.run.folder, self.step if checkpoint else None) as log,
            Deterministic(self.device),
            closing(ahead),
            Saver(c.save_beside) as saver,
            Termination() as termination,
            deaths_told(),
        ):
            self.wishes = lambda: {"stop": termination.asked, "save": clock.due}
            if not checkpoint:
                self._evaluate_and_save(log, saver)
            for inputs in ahead:
                values = self.train_step(inputs)
                self.step += 1
                if report:
                    report(self.step, c.steps, values)
                if self.step % c.log_every == 0 or self.step == c.steps:
                    log.write(self.step, "train", values)
                if self.step % c.save_every == 0 or self.step == c.steps:
                    self._evaluate_and_save(log, saver)
                elif self.asked["stop"] or self.asked["save"]:
                    self._save(log, saver)
                else:
                    continue
                clock.restart()
                if self.asked["stop"] and self.step < c.steps:
                    saver.wait()
                    raise Stopped(f"{self.run.folder}: stopped by SIGTERM behind step {self.step}, which is saved")

    def train_step(self, inputs: Inputs) -> dict[str, float]:
        """One update. `asked` is what any rank wishes then."""
        if self.run.quantized:  # the host is frozen: its norms must not move either
            self.bundle.eval()
            self.bundle.model.abstract.stack.train()
        else:
            self.bundle.train()
            self.bundle.begin_step()
        self.optimizer.zero_grad(set_to_none=True)
        with attention(self.device):
            total, values = self._forward(self.parallel, inputs)
            total.backward()
        if self.in_parts:
            reduce_uncut(self.names)
        norm = clip(self.names, self.config.clip or math.inf)
        values |= {"loss": total, "gradient_norm": norm}
        logged = self._agreed(values)
        self._refuse_non_finite(logged, inputs)
        lr = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        self.optimizer.step()
        if self.config.ema:
            averaged = [local(self.ema[name]) for name in self.names.values()]
            get_ema_multi_avg_fn(self.config.ema)(averaged, [local(p.detach()) for p in self.names], None)
        return logged | {"lr": lr}

    def _forward(self, loss: nn.Module, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        seed_step(self.config.seed, self.step, *([ranks.rank()] if ranks.count() > 1 else []))
        with autocast(self.config, self.device):
            return loss(inputs)

    def _agreed(self, values: dict[str, Tensor]) -> dict[str, float]:
        """The mean of each value over ranks; `asked` is set to the wishes that any rank has. Waits for the GPU, once,
        and then looks at the wishes."""
        numbers = torch.stack([value.detach().float() for value in values.values()])
        if ranks.count() > 1:
            dist.all_reduce(numbers)
            numbers /= ranks.count()
        told, self.asked = numbers.tolist(), self.wishes()
        if ranks.count() > 1 and self.asked:
            wished = torch.tensor([float(wish) for wish in self.asked.values()], device=self.device)
            dist.all_reduce(wished)
            self.asked = {wish: number > 0 for wish, number in zip(self.asked, wished.tolist(), strict=True)}
        return dict(zip(values, told, strict=True))

    def _refuse_non_finite(self, logged: dict[str, float], inputs: Inputs) -> None:
        broken = [
            name for name in ("loss", *self.config.objectives, "gradient_norm") if not math.isfinite(logged[name])
        ]
        if not broken:
            return
        found = [json.loads(said) for said in ranks.gathered(json.dumps(self._where(inputs)).encode())]
        first = min(order for order, _ in found)  # what is gathered takes it from rank to rank
        many = ranks.count() > 1
        told = [f"{where} (rank {r})" if many else where for r, (order, where) in enumerate(found) if order == first]
        again = f"first in {', '.join(told)}" if first < math.inf else "and nowhere when the step was run again"
        ranks.together(
            f"step {self.step + 1}: {broken[0].replace('_', ' ')} is {logged[broken[0]]}, {again}, so that no update "
            f"was made; the last checkpoint is whole. Lower --train.lr (now {self.config.lr:g}) and resume"
        )

    def _where(self, inputs: Inputs) -> tuple[float, str]:
        """(when, what) is not finite first when the step is run once more on this rank; when is infinite where all
        is."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.parallel if self.in_parts else self.loss  # DDP mixes the gradients of all ranks
        with attention(self.device):
            with watched(self.bundle) as seen:
                total, _ = self._forward(loss, inputs)
            if not any(ranks.gathered(b"seen" if seen else b"")):  # backward all of them, or none
                total.backward()
        wrong = [
            f"the gradient of {name}" for p, name in self.names.items() if p.grad is not None and not_finite(p.grad)
        ]
        if seen or not wrong:
            return next(iter(seen), (math.inf, ""))
        return 1e9, wrong[-1]  # gradients come from the last layers to the first

    @contextmanager
    def _averaged(self) -> Iterator[AshNet]:
        """The model as it is evaluated: with the averaged weights, if there are any, and with all of them."""
        if self.in_parts:
            weights = {k: whole(v) for k, v in (self.bundle.state_dict() | self.ema).items()}
            bundle = Bundle(self.run.config, len(self.run.answers)).to(self.device)
            bundle.load_state_dict(weights)
            yield bundle.model
            return
        raw = {k: v.clone() for k, v in self.bundle.state_dict().items() if k in self.ema}
        self.bundle.load_state_dict(self.ema, strict=False)
        yield self.bundle.model
        self.bundle.load_state_dict(raw, strict=False)

    def _evaluate_and_save(self, log: RunLog, saver: Saver) -> None:
        c = self.config
        ranking = Ranking(data=self.train_data, neighbours=c.neighbours, views=c.views, again=c.again)
        with self._averaged() as model:
            result = evaluate(c.task, model, self.val_data, self.run.codec, self.run.answers, ranking=ranking)
        log.write(self.step, "val", result.metrics)
        self.history.append({"step": self.step, "score": result.score, **result.metrics})
        self._save(log, saver)

    def _save(self, log: RunLog, saver: Saver) -> None:
        tensors = {"weights": self.bundle.state_dict(), "optimizer": optimizer_tensors(self.optimizer, self.names)}
        if self.ema:
            tensors["ema"] = self.ema
        log.flush()
        step, history = self.step, list(self.history)
        saver.save(
            lambda saved, group: save_checkpoint(self.run.folder, step, history, saved, group),
            {name: {k: part_of(v) for k, v in values.items()} for name, values in tensors.items()},
        )

    def _restore(self, checkpoint) -> None:
        own = self.bundle.state_dict()
        weights = {k: cut_as(v, own[k]) if k in own else v for k, v in checkpoint.tensors("weights").items()}
        fill(self.bundle, weights, checkpoint.folder)
        restore_optimizer(self.optimizer, self.names, checkpoint.tensors("optimizer"))
        if self.config.ema:
            named = dict(self.bundle.named_parameters())
            self.ema = {k: cut_as(v, named[k]) for k, v in checkpoint.tensors("ema").items()}
        self.step, self.history = checkpoint.step, checkpoint.history


def fitted_positions(model: AshNet, weights: Tensors) -> Tensors:
    """The position embeddings among `weights` for the model's number of tokens, where they are of another square of
    them."""
    key, vit = "model.concrete.vit.pos_embed", model.concrete.vit
    (_, tokens, width), prefix = vit.pos_embed.shape, vit.num_prefix_tokens
    if key not in weights or weights[key].shape[1] == tokens or weights[key].shape[2] != width:
        return {}
    there = weights[key].shape[1] - prefix
    if math.isqrt(there) ** 2 != there:
        return {}
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid = list(model.concrete.grid)
    return {key: resample_abs_pos_embed(weights[key], grid, num_prefix_tokens=prefix)}
