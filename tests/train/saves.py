"""Saving, and what goes wrong then, in a process of its own: saves.py WHAT FOLDER BESIDE TIMES. Prints as JSON what was
found.

kills     a process saves one checkpoint after another and is killed at any moment
full      the disk has room for a part of a checkpoint; FOLDER is a small file system of its own
limited   no file may grow beyond some size
locked    nothing may be written into the folder
"""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from hw.errors import UserError
from train.checkpoint import Checkpoint, clear_leftovers, newest_checkpoint, save_checkpoint
from train.saving import Saver

NOBODY = 65534


def tensors_of(step: int) -> dict:
    """What a checkpoint of a step holds, some 200 KB."""
    values = {f"layer{k}": torch.full((40, 100), float(step + k)) for k in range(4)}
    return {"weights": values, "optimizer": {f"{name}|exp_avg": 2 * value for name, value in values.items()}}


def history_of(step: int) -> list:
    return [{"step": k, "score": float(k)} for k in range(max(0, step - 3), step + 1)]


def save(saver: Saver, run: Path, step: int) -> None:
    saver.save(lambda saved, group: save_checkpoint(run, step, history_of(step), saved, group), tensors_of(step))


def whole(checkpoint: Checkpoint) -> bool:
    return all(
        torch.equal(value, checkpoint.tensors(name)[key])
        for name, values in tensors_of(checkpoint.step).items()
        for key, value in values.items()
    )


def kills(run: Path, beside: bool, times: int) -> dict:
    """lost: how often what had been saved was not there. corrupt: how often it was another's. oldest: by how many
    checkpoints a run had to go back behind the last one that was asked for.

    The process is killed behind some saves, none to three, at any moment of the next one or shortly after it, however
    fast the machine is."""
    rng, found = random.Random(times), {"lost": 0, "corrupt": 0, "oldest": 0, "saved": 0, "leftovers": 0}
    step, pace = 0, 0.02
    for _ in range(times):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            with Saver(beside) as saver:
                for k in range(step, 1_000_000):
                    save(saver, run, k)
                    os.write(writing, f"{k}\n".encode())
        os.close(writing)
        with os.fdopen(reading) as told:
            begin, asked = time.perf_counter(), [int(told.readline()) for _ in range(rng.randrange(4))]
            if asked:
                pace = (time.perf_counter() - begin) / len(asked)
            time.sleep(rng.uniform(0, 1.5 * pace))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            asked += [int(line) for line in told]
        newest = newest_checkpoint(run)
        last = newest.step if newest else -1
        back = max(asked, default=step - 1) - last
        found["oldest"] = max(found["oldest"], back)
        found["lost"] += back > (1 if beside and asked else 0)
        found["corrupt"] += newest is not None and not whole(newest)
        clear_leftovers(run, newest)
        found["leftovers"] += len(list(run.glob("checkpoints/.*")))
        found["saved"] += len(asked)
        step = last + 1
    return found


def refusals(run: Path, beside: bool, times: int, hinder) -> dict:
    """hinder(k): what lets a save of the second checkpoint fail; gives what lifts it again. told: what was said."""
    with Saver(False) as saver:
        save(saver, run, 1)
    told, intact, leftovers = [], 0, 0
    for k in range(times):
        lift = hinder(k)
        try:
            with Saver(beside) as saver:
                save(saver, run, 2)
                saver.wait()
            told.append("")
        except UserError as error:
            told.append(str(error))
        lift()
        newest = newest_checkpoint(run)
        intact += newest is not None and newest.step == 1 and whole(newest)
        leftovers += len(list(run.glob("checkpoints/.*")))
    with Saver(beside) as saver:  # and then it can
        save(saver, run, 2)
    newest = newest_checkpoint(run)
    return {"told": told, "intact": intact, "leftovers": leftovers, "after": newest.step if newest else None}


def full(run: Path, beside: bool, times: int) -> dict:
    rng, filler = random.Random(times), run.parent / "filler"

    def hinder(k: int):
        room = rng.randrange(0, 120_000)
        stat = os.statvfs(run.parent)
        filler.write_bytes(b"x" * max(0, stat.f_bavail * stat.f_bsize - room))
        return filler.unlink

    return refusals(run, beside, times, hinder)


def limited(run: Path, beside: bool, times: int) -> dict:
    rng = random.Random(times)

    def hinder(k: int):
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(1, 60_000), resource.RLIM_INFINITY))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    return refusals(run, beside, times, hinder)


def locked(run: Path, beside: bool, times: int) -> dict:
    run.mkdir()
    if not os.getuid():  # whom nothing is forbidden
        os.chown(run, NOBODY, NOBODY)
        os.setuid(NOBODY)

    def hinder(k: int):
        (run / "checkpoints").chmod(0o555)
        return lambda: (run / "checkpoints").chmod(0o755)

    return refusals(run, beside, times, hinder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder, beside, times = sys.argv[1:]
    print(json.dumps(globals()[what](Path(folder) / "run", beside == "beside", int(times))))
