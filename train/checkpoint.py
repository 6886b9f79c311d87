"""Checkpoints: a folder each, whole or not at all, every file hashed; the newest whole one is where a run goes on.

    RUN/checkpoints/step-00000300/ {manifest.json, weights.safetensors, optimizer.safetensors, ema.safetensors}

Where ranks hold parts of tensors, each writes a file of its own, `weights-1-of-4.safetensors`: its rows of each tensor,
and the first rank whatever is not cut. One tensor's rows, file after file, are the tensor, so that any number of ranks
reads what any other number has written.

The manifest's meta holds the step and the history of evaluations, so that the best step is a function of the newest
checkpoint and no second file can disagree with it. Kept are the two newest and the best.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hw.artifact import Artifact, open_artifact, staged_artifact
from hw.errors import UserError
from train import ranks
from train.parallel import Part, cut_as

KIND = "checkpoint"
Tensors = dict[str, Tensor]
Saved = dict[str, dict[str, Tensor | Part]]
"""What a checkpoint holds, by the names of its files."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """step: updates done. history: [{'step', 'score', ...metrics}], one entry per evaluated checkpoint, oldest
    first."""

    folder: Path
    step: int
    history: list[dict[str, Any]]

    @property
    def best_step(self) -> int:
        return best_of(self.history)

    def tensors(self, name: str) -> Tensors:
        """Whole tensors, whoever wrote them."""
        found: dict[str, list[Tensor]] = {}
        for path in self._files(name):
            for key, value in load_file(path).items():
                found.setdefault(key, []).append(value)
        return {key: parts[0] if len(parts) == 1 else torch.cat(parts) for key, parts in found.items()}

    def _files(self, name: str) -> list[Path]:
        """Of one rank after another; empty where nothing was saved by that name."""
        parts = self.folder.glob(f"{name}-*-of-*.safetensors")
        alone = self.folder / f"{name}.safetensors"
        return [alone] if alone.exists() else sorted(parts, key=lambda path: int(path.stem.split("-")[1]))

    def evaluated_weights(self) -> Tensors:
        """The weights that were evaluated: the averaged ones over the raw ones, where there are averaged ones."""
        return self.tensors("weights") | self.tensors("ema")


def best_of(history: list[dict[str, Any]]) -> int:
    """The step with the best score; of several the last."""
    return max(history, key=lambda entry: (entry["score"], entry["step"]))["step"]


def _folders(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _checkpoint(artifact: Artifact) -> Checkpoint:
    return Checkpoint(folder=artifact.folder, step=artifact.meta["step"], history=artifact.meta["history"])


def save_checkpoint(
    run: Path,
    step: int,
    history: list[dict[str, Any]],
    tensors: Saved,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write the checkpoint of `step`, then drop those that are neither among the two newest nor the best. Every rank
    calls it; the first writes, and the others do where they hold parts of tensors. group: what they meet by."""
    meta = {"step": step, "history": history}
    if any(isinstance(value, Part) for values in tensors.values() for value in values.values()):
        _save_parts(_folder(run, step), meta, tensors, group)
    else:
        ranks.on_first(lambda: _save(_folder(run, step), meta, tensors), group)
    ranks.on_first(lambda: _drop_old(run, Checkpoint(folder=_folder(run, step), **meta)), group)


@contextmanager
def _failure_told(folder: Path) -> Iterator[None]:
    """`UserError` where the system does not let a checkpoint be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # which wraps what the system says
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"{folder}: the checkpoint cannot be written ({reason}); make room or mend the folder's permissions, and "
            "resume: the checkpoint before it is whole"
        ) from error


def _save(folder: Path, meta: dict[str, Any], tensors: Saved) -> None:
    with _failure_told(folder), staged_artifact(folder, KIND, meta) as temporary:
        for name, values in tensors.items():
            _write(values, temporary / f"{name}.safetensors")


def _save_parts(folder: Path, meta: dict[str, Any], tensors: Saved, group: Any) -> None:
    with ExitStack() as stack:
        if ranks.rank() == 0:
            stack.enter_context(_failure_told(folder))
        staged = ranks.on_first(lambda: str(stack.enter_context(staged_artifact(folder, KIND, meta))), group)
        temporary, problem = Path(ranks.gathered((staged or "").encode(), group)[0].decode()), ""
        try:
            with _failure_told(folder):
                for name, values in tensors.items():
                    own = {k: v for k, v in values.items() if _is_mine(v)}
                    _write(own, temporary / f"{name}-{ranks.rank()}-of-{ranks.count()}.safetensors")
        except UserError as error:
            problem = str(error)
        ranks.together(problem, group)  # which leaves nothing behind where it ends the block
        ranks.on_first(stack.close, group)


def _write(values: dict[str, Tensor | Part], path: Path) -> None:
    own = {key: value.rows if isinstance(value, Part) else value for key, value in values.items()}
    save_file({key: value.detach().cpu().contiguous() for key, value in own.items()}, path)


def _is_mine(value: Tensor | Part) -> bool:
    """Whether this rank writes it: rows, if it has any, and on the first rank what is not cut."""
    return len(value.rows) > 0 if isinstance(value, Part) else ranks.rank() == 0


def _drop_old(run: Path, saved: Checkpoint) -> None:
    """Keep the newest, the one before it, to which a damaged newest one falls back, and the best that each knows."""
    newest = _folders(run)[-2:]
    known = [[entry for entry in saved.history if _folder(run, entry["step"]) <= folder] for folder in newest]
    for old in set(_folders(run)) - {*newest, *(_folder(run, best_of(history)) for history in known if history)}:
        _remove(old)


def _remove(folder: Path) -> None:
    doomed = folder.with_name(f".{folder.name}.old")  # so that a kill leaves no half folder under a real name
    folder.rename(doomed)
    shutil.rmtree(doomed)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning. None where there is none at
    all."""
    folders = _folders(run)
    for folder in reversed(folders):
        try:
            return _checkpoint(open_artifact(folder, KIND))
        except UserError as error:
            log.warning("%s; going back to the checkpoint before it", error)
    if folders:
        raise UserError(f"{run / 'checkpoints'}: no checkpoint is whole; start the run anew in another folder")
    return None


def best_checkpoint(run: Path) -> Checkpoint:
    """The checkpoint with the best score so far, its hashes checked."""
    newest = max(_folders(run), default=None)
    if newest is None:
        raise UserError(f"{run}: no checkpoint yet; train it first")
    history = _checkpoint(open_artifact(newest, KIND))
    return _checkpoint(open_artifact(_folder(run, history.best_step), KIND))


def clear_leftovers(run: Path, newest: Checkpoint | None) -> None:
    """Remove what a killed process left under temporary names, and what is newer than the newest whole checkpoint."""
    for path in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(path)
    for path in _folders(run):
        if newest and path > newest.folder:
            _remove(path)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> Tensors:
    """The optimiser's state by parameter name: '<name>|<key>'."""
    return {
        f"{names[p]}|{key}": torch.as_tensor(value)
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: dict[Tensor, str], tensors: Tensors) -> None:
    """Inverse of `optimizer_tensors`."""
    by_name = {name: p for p, name in names.items()}
    for key, value in tensors.items():
        name, _, field = key.rpartition("|")
        if name not in by_name:
            raise UserError(
                f"optimizer.safetensors: '{name}' is not a parameter of this run; the folder mixes two runs, restore it"
            )
        optimizer.state[by_name[name]][field] = cut_as(value, by_name[name])
