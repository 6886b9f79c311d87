"""A run on disk: its manifest (config, data, answers), tokenizer, checkpoints, logs; and the model that they make.

    RUN/ {manifest.json, tokenizer.json, lexicon.json, [float.safetensors],
         checkpoints/, log.jsonl, tensorboard/, [program/]}

A quantized run also holds the float weights that it started from (`float.safetensors`) and, when it is done, the
program.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from ashnets.model import AshNet, Inputs, Vision
from ashnets.objectives import OBJECTIVES, Objective
from ashnets.ranks import among
from ashnets.stack import SpikingStack
from ashnets.text import TextCodec
from hw.artifact import open_artifact, read_json, staged_artifact, write_json
from hw.errors import UserError
from hw.program import SpikingProgram
from hw.program_file import load_program
from hw.simulate import check_backend, open_backend
from quantize import QuantizedStack
from train import ranks
from train.checkpoint import best_checkpoint
from train.config import RunConfig, from_dict, to_dict

KIND = "run"


@dataclass(frozen=True, kw_only=True)
class Run:
    """answers: the VQA vocabulary, in the order of the logits. data: what the run was trained on (name, images,
    texts, fingerprint)."""

    folder: Path
    config: RunConfig
    codec: TextCodec
    answers: list[str]
    data: dict[str, str | int]

    @property
    def quantized(self) -> bool:
        return self.config.quantizer is not None


def create_run(
    folder: Path,
    config: RunConfig,
    codec: TextCodec,
    answers: list[str],
    data: dict[str, str | int],
    float_weights: dict[str, torch.Tensor] | None = None,
) -> Run:
    """Write the run's folder, whole or not at all, ready to be trained."""
    meta = {"config": to_dict(config), "answers": answers, "data": data}
    with staged_artifact(folder, KIND, meta) as temporary:
        codec.tokenizer.save(str(temporary / "tokenizer.json"))
        write_json(temporary / "lexicon.json", codec.lexicon)
        if float_weights is not None:
            save_file({k: v.contiguous() for k, v in float_weights.items()}, temporary / "float.safetensors")
    return Run(folder=folder, config=config, codec=codec, answers=answers, data=data)


def open_run(folder: Path) -> Run:
    """Check and read a run's folder."""
    meta = open_artifact(folder, KIND).meta
    manifest = folder / "manifest.json"
    config = from_dict(RunConfig, meta.get("config"), f"{manifest}: config")
    answers, data = meta.get("answers"), meta.get("data")
    if not isinstance(answers, list) or not isinstance(data, dict):
        raise UserError(
            f"{manifest}: 'answers' and 'data' are missing; the folder was not made by this program, make it anew"
        )
    lexicon = read_json(folder / "lexicon.json")
    codec = TextCodec(Tokenizer.from_file(str(folder / "tokenizer.json")), lexicon)
    return Run(folder=folder, config=config, codec=codec, answers=answers, data=data)


class Bundle(nn.Module):
    """The model and its objectives (they have parameters too), as one module for the optimiser and the checkpoint."""

    def __init__(self, config: RunConfig, answers: int) -> None:
        super().__init__()
        unknown = sorted(set(config.train.objectives) - set(OBJECTIVES))
        if unknown or not config.train.objectives:
            what = f"objective '{unknown[0]}' is not known" if unknown else "there is no objective to train by"
            raise UserError(f"{what}; choose from {', '.join(OBJECTIVES)}")
        if config.model.abstract.codebook and "scl" in config.train.objectives:
            raise UserError("objective 'scl' is about spikes, the abstract encoder is a codebook; leave scl out")
        self.model = AshNet(config.model, answers)
        self.objectives = nn.ModuleDict(
            {name: OBJECTIVES[name](config.model, config.train.losses) for name in config.train.objectives}
        )
        self.weights = config.train.objectives
        if config.quantizer is not None:
            self.quantize(config.quantizer)

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor], Vision]:
        """The weighted sum of the objectives, each of them and what it logs, and what the model saw. Of a rank's part
        of a batch its part of them."""
        with among(inputs.split):
            vision, w = self.model.vision(inputs.images), self.model.text(inputs.tokens)
            total, values = torch.zeros((), device=w.device), {}
            for name, weight in self.weights.items():
                loss, logs = self.objectives[name](self.model, inputs, vision, w)
                total = total + weight * loss
                values |= {name: loss} | {f"{name}/{key}": value for key, value in logs.items()}
            return total, values, vision

    def begin_step(self) -> None:
        """What objectives do before each training step."""
        for objective in self.objectives.values():
            cast(Objective, objective).begin(self.model)

    def quantize(self, quantizer: str) -> None:
        """Replace the float stack by the quantized one that starts from its weights, and freeze everything else."""
        stack = QuantizedStack(float_stack(self.model), quantizer)
        self.model.abstract.stack = stack
        trained = [p for p in stack.parameters() if p.requires_grad]
        self.requires_grad_(False)
        for p in trained:
            p.requires_grad_(True)


def fill(module: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Load `weights` into `module`, or `UserError` where they are those of another model."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:160]
        raise UserError(
            f"{source}: its weights are not this model's ({reason}); use the version that wrote it"
        ) from error


def fill_from_best(bundle: Bundle, run: Run) -> None:
    """Load the weights that the best checkpoint was evaluated with."""
    best = best_checkpoint(run.folder)
    fill(bundle, best.evaluated_weights(), best.folder)


def load_model(run: Run, backend: str, device: torch.device, keys: Path | None = None) -> AshNet:
    """The model of the best checkpoint in evaluation mode, its spiking stack replaced by `backend`.

    'float' and 'qat' are torch modules; every other name is a backend of `hw` behind a `SpikeBridge`. keys: the folder
    of keys for remote workers.
    """
    check_backend(backend, others=("float", "qat"))
    if not run.quantized and backend != "float":
        raise UserError(
            f"{run.folder}: has no quantized stack, so that backend '{backend}' cannot run; "
            f"make one with 'ashnets quantize {run.folder}' or use --backend float"
        )
    if run.quantized and backend == "float":
        model = AshNet(run.config.model, len(run.answers))
        fill(model, load_file(run.folder / "float.safetensors"), run.folder / "float.safetensors")
        return model.to(device).eval()
    bundle = Bundle(run.config, len(run.answers))
    fill_from_best(bundle, run)
    model = bundle.model.to(device).eval()
    if backend not in ("float", "qat"):
        from hw.bridge.module import SpikeBridge

        model.abstract.stack = SpikeBridge(open_backend(backend, run_program(run), keys))
    return model


def float_stack(model: AshNet) -> SpikingStack:
    """The model's stack, where it is the float one."""
    stack = model.abstract.stack
    if not isinstance(stack, SpikingStack):
        raise TypeError(f"expected a model with a SpikingStack, found {type(stack).__name__}")
    return stack


def quantized_stack(model: AshNet) -> QuantizedStack:
    """The model's stack, where it is the quantized one."""
    stack = model.abstract.stack
    if not isinstance(stack, QuantizedStack):
        raise TypeError(f"expected a model with a QuantizedStack, found {type(stack).__name__}")
    return stack


def run_program(run: Run) -> SpikingProgram:
    """The integer program of a finished quantized run."""
    if not run.quantized:
        raise UserError(f"{run.folder}: has no quantized stack; make one with 'ashnets quantize {run.folder}'")
    folder = run.folder / "program"
    if not folder.exists():
        raise UserError(f"{run.folder}: has no program yet; finish it with 'ashnets quantize --resume {run.folder}'")
    return load_program(folder)


def choose_device(name: str = "auto") -> torch.device:
    """'auto' is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device 'cuda' was asked for, but torch sees no GPU; use --device cpu or mend the driver ('ashnets doctor')"
        )
    if name == "cuda" and ranks.count() > 1:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)
