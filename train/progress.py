"""A progress bar with ETA, losses and firing rate for a terminal; a line every tenth of the way elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from train import ranks
from train.loop import Report

SHOWN = ("loss", "rate", "vqa/accuracy", "lr")


def describe(values: dict[str, float]) -> str:
    """The values that a person watches, in one line."""
    return "  ".join(f"{key} {values[key]:.3g}" for key in SHOWN if key in values)


@contextmanager
def training_progress(title: str) -> Iterator[Report]:
    """Yield the function that `Trainer.train` reports each step to. Of several ranks the first shows it."""
    console = Console(stderr=True, quiet=ranks.rank() > 0)
    if not console.is_terminal:
        yield _line_reporter(title, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, values="")

        def report(step: int, steps: int, values: dict[str, float]) -> None:
            progress.update(task, completed=step, total=steps, values=describe(values))

        yield report


def _line_reporter(title: str, console: Console) -> Report:
    start: list[tuple[float, int]] = []

    def report(step: int, steps: int, values: dict[str, float]) -> None:
        if not start:
            start.append((time.monotonic(), step))
        if step % max(1, steps // 10) == 0 or step == steps:
            since, first = start[0]
            left = (time.monotonic() - since) / max(1, step - first) * (steps - step)
            console.print(
                f"{title}: {step}/{steps}  {describe(values)}  about {left:.0f} s left", highlight=False, soft_wrap=True
            )

    return report
