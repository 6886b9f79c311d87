"""Checkpoints: a folder each, whole or not at all, every file hashed; the newest whole one is where a run goes on.

    RUN/checkpoints/step-00000300/ {manifest.json, weights.safetensors, optimizer.safetensors, ema.safetensors}

The manifest's meta holds the step and the history of evaluations, so that the best step is a function of the newest
checkpoint and no second file can disagree with it. Kept are the two newest and the best.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hw.artifact import Artifact, open_artifact, staged_artifact
from hw.errors import UserError

KIND = "checkpoint"
Tensors = dict[str, Tensor]
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
        return max(self.history, key=lambda entry: (entry["score"], entry["step"]))["step"]

    def tensors(self, name: str) -> Tensors:
        return load_file(self.folder / f"{name}.safetensors")

    def evaluated_weights(self) -> Tensors:
        """The weights that were evaluated: the averaged ones over the raw ones, where there are averaged ones."""
        averaged = self.tensors("ema") if (self.folder / "ema.safetensors").exists() else {}
        return self.tensors("weights") | averaged


def _folders(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _checkpoint(artifact: Artifact) -> Checkpoint:
    return Checkpoint(folder=artifact.folder, step=artifact.meta["step"], history=artifact.meta["history"])


def save_checkpoint(run: Path, step: int, history: list[dict[str, Any]], tensors: dict[str, Tensors]) -> Checkpoint:
    """Write the checkpoint of `step`, then drop those that are neither among the two newest nor the best."""
    folder = _folder(run, step)
    with staged_artifact(folder, KIND, {"step": step, "history": history}) as temporary:
        for name, values in tensors.items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in values.items()},
                temporary / f"{name}.safetensors",
            )
    saved = Checkpoint(folder=folder, step=step, history=history)
    keep = {*_folders(run)[-2:], _folder(run, saved.best_step)}
    for old in set(_folders(run)) - keep:
        doomed = old.with_name(
            f".{old.name}.old"
        )  # renamed first, so that a kill leaves no half folder under a real name
        old.rename(doomed)
        shutil.rmtree(doomed)
    return saved


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


def clear_leftovers(run: Path) -> None:
    """Remove what a killed process left under temporary names."""
    for path in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(path)


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
        p = by_name[name]
        optimizer.state[p][field] = value.to(p.device)
