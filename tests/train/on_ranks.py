"""What the tests of several ranks run: torchrun ... on_ranks.py WHAT, a JSON object of arguments. The first rank prints
what came out as one line of JSON."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from ashnets.cli.common import leave
from tests.conftest import micro_config, shorten
from train import ranks

TASKS = {
    "retrieval": {"itc": 1.0, "itc_queue": 1.0, "itm": 1.0, "mlm": 1.0, "scl": 0.2, "stua": 0.2},
    "vqa": {"vqa": 1.0, "vqa_soft": 1.0, "scl": 0.5, "stua": 0.5},
    "nlvr2": {"vqa": 1.0, "scl": 0.5},
}


def draw_nothing() -> None:
    """Let the model and its objectives be the same function of a batch every time: no dropout, the nearest misses in
    the place of near ones, fixed words hidden."""
    from ashnets.heads import SpellingEmbeddingHead
    from ashnets.objectives import itm, mlm
    from train import execution

    def nearest(logits, excluded):
        return logits.float().masked_fill(excluded, -torch.inf).argmax(1).masked_fill(excluded.all(1), -1)

    def hide(self, tokens):
        hidden = (tokens.ids % 5 == 0) & ~torch.isin(tokens.ids, torch.tensor(self.special))
        return tokens._replace(ids=tokens.ids.masked_fill(hidden, self.special[3])), hidden

    itm.drawn, mlm.MaskedLanguage.hide = nearest, hide
    execution._dropout = torch.nn.Dropout.forward = lambda module, x: x
    SpellingEmbeddingHead.dropped = 0.0


def in_double_precision() -> None:
    """Let rounding be so small that no spike depends on it."""
    from ashnets import model
    from train import evaluate

    torch.set_default_dtype(torch.float64)
    model.normalise = evaluate.normalise = lambda images: images.double() / 127.5 - 1


def train(folder: str, task: str, double: bool = True, until: int | None = None, **config) -> dict:
    """Train the run in `folder`, made if it is not there, without draws. until: the step behind which it is left."""
    from train.loop import Trainer
    from train.run import Bundle, open_run
    from train.stages import load_split, new_run

    draw_nothing()
    if double:
        in_double_precision()
    path, spikes = Path(folder), []
    made = micro_config(task, objectives=TASKS[task], precision="float32", **config)
    ranks.on_first(lambda: None if path.exists() else new_run(path, made))
    run = open_run(path)
    forward = Bundle.forward

    def recorded(self, inputs):
        found = forward(self, inputs)
        spikes.append([s.detach().transpose(0, 1).numpy().astype(np.uint8) for s in (found[2].s_in, found[2].s_out)])
        return found

    trainer = Trainer(run, load_split(run, "train"), load_split(run, "val"), torch.device("cpu"))
    values = []

    def report(step, steps, logged):
        values.append(logged)
        if step == until:
            raise InterruptedError

    with suppress(InterruptedError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "forward", recorded)
        trainer.train(report)
    every = [[ranks.joined_rows([side]) for side in step] for step in spikes]
    if ranks.rank() == 0:
        named = {f"{k}-{side}": s for k, step in enumerate(every) for side, s in zip(("in", "out"), step, strict=True)}
        np.savez(path / "spikes.npz", **named)
    return {"values": values, "history": trainer.history, "ranks": ranks.count()}


def commands(
    every: list[list[str]],
    kill: tuple[int, int] | None = None,
    terminate: tuple[int, int] | None = None,
    spoil: tuple[int, int] | None = None,
    going_on: bool = False,
    kills: int = 0,
    job: bool = False,
) -> int:
    """Commands, one after another, to the first that fails unless they are `going_on`. kill, terminate, spoil: a rank
    and a step; in front of it the rank is killed, sent SIGTERM or given a layer whose output is not finite when it
    comes there first. kills: in each of so many starts one rank is killed at a moment that a seed draws,
    before it takes a ninth step.
    job: SIGTERM is sent to all processes of the command.
    """
    from ashnets.cli import main
    from train.loop import Trainer

    ending = threading.Lock()

    def end() -> None:
        ending.acquire()  # for good: several may want it
        os.write(2, b"killed itself\n")  # torchrun may tell of the other rank instead, if both are gone when it looks
        os.kill(os.getpid(), signal.SIGKILL)

    step, start = Trainer.train_step, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    draw, begun, ended = random.Random(start), [], []
    doom = start < kills and int(os.environ["RANK"]) == start % 2
    if doom:
        threading.Timer(draw.uniform(0, 12), end).start()  # while it starts, trains, evaluates or saves
    several, while_at_it = draw.randint(0, 5), draw.uniform(0, 0.5)

    def doomed(self, inputs):
        here = [ranks.rank(), self.step]
        begun.append(self.step)
        if doom and len(begun) == several + 1:  # no machine is so fast that it is done before the last kill
            threading.Timer(while_at_it, end).start()
        if (here == kill and not start) or (doom and len(begun) > 8):
            end()
        if here == terminate and not ended:
            ended.append(here)
            if job:  # a process's own children tell its signals from others'
                subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}"])
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        if here == spoil:
            self.bundle.model.image_head.project.register_forward_hook(lambda _, __, x: x / 0)
        return step(self, inputs)

    Trainer.train_step = doomed
    codes = []
    for arguments in every:
        codes.append(main(arguments))
        if codes[-1] and not going_on:
            break
    return codes[-1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    shorten(pytest.MonkeyPatch())
    if sys.argv[1] == "commands":
        leave(commands(**json.loads(sys.argv[2])))
    with ranks.joined():
        print(json.dumps([train(**each) for each in json.loads(sys.argv[2])["every"]]), flush=True)
    leave(0)
