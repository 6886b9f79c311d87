"""Where a training step spends its time, by the parts of the model, forward and backward.

Forward work is what runs while a part's module does. Backward work belongs to the part whose forward work made the node
of autograd's graph: torch numbers both alike.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from ashnets.model import AshNet
from hw.artifact import staged_file
from train.execution import Deterministic
from train.loop import Trainer

SPIKING, OTHER = "spiking", "objectives and update"
_BACKWARD, _LABEL = "autograd::engine::evaluate_function", "part: "


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """milliseconds: of one step, (forward, backward) by part; on a GPU its own time, on a processor that of the threads
    that call torch, which wait for the others."""

    milliseconds: dict[str, tuple[float, float]]

    @property
    def total(self) -> float:
        return sum(map(sum, self.milliseconds.values()))

    @property
    def shares(self) -> dict[str, float]:
        """Of the whole, by part."""
        return {part: sum(both) / self.total for part, both in self.milliseconds.items()}


def parts_of(model: AshNet) -> dict[str, list[nn.Module]]:
    """The modules that are called in each part; some are called by themselves as well as in another."""
    by_name = dict(model.named_children())
    text = [by_name.pop(name) for name in ("text", "text_head")]
    return {
        SPIKING: list(by_name.pop("abstract").children()),
        "artificial": [by_name.pop("concrete"), model.concrete.vit.patch_embed],
        "text": text,
        "fusion and heads": list(by_name.values()),
    }


def profile_step(trainer: Trainer, steps: int = 5, trace: Path | None = None) -> StepProfile:
    """Profile `steps` steps behind two that warm up. trace: a file for what chrome://tracing and Perfetto show."""
    cuda = trainer.device.type == "cuda"
    inputs = trainer.batches[0].to(trainer.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with Deterministic(trainer.device), labelled(parts_of(trainer.bundle.model)):
        for _ in range(2):
            trainer.train_step(inputs)
        with profile(activities=activities, acc_events=True) as found:
            for _ in range(steps):
                trainer.train_step(inputs)
    if trace is not None:
        with staged_file(trace) as temporary:
            found.export_chrome_trace(str(temporary))
    return StepProfile(milliseconds=_by_part(list(found.events() or []), steps, cuda))


@contextmanager
def labelled(parts: dict[str, list[nn.Module]]) -> Iterator[None]:
    """Each part's modules run under its name while the block does."""
    with ExitStack() as hooks:
        for part, modules in parts.items():
            for module in modules:
                open_: list[Any] = []

                def enter(*_: Any, part: str = part, open_: list[Any] = open_) -> None:
                    open_.append(record_function(_LABEL + part))
                    open_[-1].__enter__()

                def leave(*_: Any, open_: list[Any] = open_) -> None:
                    open_.pop().__exit__(None, None, None)

                hooks.callback(module.register_forward_pre_hook(enter).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        yield


def _by_part(events: list[Any], steps: int, cuda: bool) -> dict[str, tuple[float, float]]:
    totals: dict[str, list[float]] = {}
    for event, part, backward in attributed(events):
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        totals.setdefault(part, [0.0, 0.0])[backward] += own / 1000 / steps
    return {part: (forward, back) for part, (forward, back) in totals.items()}


def attributed(events: list[Any]) -> Iterator[tuple[Any, str, bool]]:
    """(event, its part, whether it is backward work) of each event of a profile."""
    part_of_node: dict[int, str] = {}
    for event in events:
        if _above(event, _BACKWARD) is None and event.sequence_nr >= 0:
            part_of_node[event.sequence_nr] = _part(event)  # the last to see a number makes its node
    for event in events:
        node = _above(event, _BACKWARD)
        yield event, part_of_node.get(node.sequence_nr, OTHER) if node else _part(event), node is not None


def _part(event: Any) -> str:
    label = _above(event, _LABEL)
    return label.name.removeprefix(_LABEL) if label else OTHER


def _above(event: Any, prefix: str) -> Any:
    """The event itself or the nearest around it whose name starts so; None where there is none."""
    while event is not None and not event.name.startswith(prefix):
        event = event.cpu_parent
    return event
