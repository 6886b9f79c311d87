"""Logs of a run: one JSON object per line for programs, TensorBoard for people."""

import json
from pathlib import Path
from typing import Any

from hw.artifact import staged_file
from train import ranks


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of the run's log; a line that a kill cut short is passed over."""
    path = folder / "log.jsonl"
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def open_log(folder: Path, step: int | None) -> "RunLog":
    """The log of a run that goes on behind `step`, or begins; the first of several ranks writes it."""
    return RunLog(folder, step) if ranks.rank() == 0 else NoLog()


class RunLog:
    """`log.jsonl` and `tensorboard/`. Opened at step k, it forgets what a killed run logged beyond k; at None all."""

    def __init__(self, folder: Path, step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        kept = [entry for entry in read_log(folder) if step is not None and entry["step"] <= step]
        with staged_file(path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  (line by line; closed by __exit__)
        self.board = SummaryWriter(folder / "tensorboard", purge_step=0 if step is None else step + 1)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        for key, value in values.items():
            self.board.add_scalar(f"{split}/{key}", value, step)

    def flush(self) -> None:
        self.board.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.board.close()


class NoLog(RunLog):
    """Of ranks that say nothing."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        pass

    def flush(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
