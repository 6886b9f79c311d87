"""Starting ranks as a user does, with torchrun, each with one thread."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).with_name("on_ranks.py"))


def launch(ranks: int, what: str, *torchrun: str, **arguments) -> subprocess.CompletedProcess[str]:
    """Run a function of `on_ranks` on so many ranks; on one without torchrun."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-W", "ignore"]
    if ranks > 1 or torchrun:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *torchrun]
    done = [*start, PROGRAM, what, json.dumps(arguments)]
    return subprocess.run(done, capture_output=True, text=True, env=environment, cwd=ROOT, start_new_session=True)


def trained(ranks: int, *every: dict) -> list[dict]:
    """What `on_ranks.train` tells of each of several trainings, one after another."""
    ended = launch(ranks, "train", every=every)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout.splitlines()[-1])
