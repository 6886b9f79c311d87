"""How a step is run on its device: precision, determinism, compilation, activations that are computed twice."""

import ctypes
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.compiler.config as limits
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ashnets.model import AshNet
from ashnets.stack import SpikingStack
from train import ranks
from train.config import TrainConfig


def precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What `precision` 'auto' means on a device."""
    if config.precision == "auto":
        units = torch.cpu.get_capabilities()
        fast = device.type == "cuda" or units.get("avx512_bf16") or units.get("amx_bf16")
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.precision]


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """A forward pass in the precision that the config asks for."""
    wanted = precision(config, device)
    return nullcontext() if wanted == torch.float32 else torch.autocast(device.type, wanted)


def attention(device: torch.device) -> AbstractContextManager[Any]:
    """How a step attends, forward and backward: on processors torch's fused attention is slower than the plain one for
    as few tokens as pictures and captions have, many times so in bfloat16."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class Deterministic:
    """Deterministic kernels on the CPU while the block runs."""

    def __init__(self, device: torch.device) -> None:
        self.enabled = device.type == "cpu"

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(self.enabled)
        determinism: Any = torch.utils.deterministic
        determinism.fill_uninitialized_memory = False  # costs time, and nothing reads it

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names of what `mallopt` sets."""


def keep_memory() -> None:
    """Keep what a step gives back for the next: to fetch it from the system anew takes a twelfth of a step of `tiny`.
    Up to 32 MiB a tensor, which is as far as glibc goes; with another library of C nothing changes."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_MMAP_THRESHOLD, 2**25)


def prepare(model: AshNet, config: TrainConfig, device: torch.device) -> None:
    """Let the model's parts run as the config says. Their weights, and the names of these, stay as they are."""
    if device.type == "cpu":
        keep_memory()
    if device.type == "cpu" and not config.compile:  # whose own is as fast
        dropouts = (module for module in model.modules() if isinstance(module, nn.Dropout))
        _replace_forward(dropouts, lambda module: partial(_dropout, module))
    if config.recompute:
        _replace_forward(model.blocks, lambda block: partial(checkpoint, block.forward, use_reentrant=False))
    if config.compile:
        mode, branches = config.compile, _branches(model)
        # Spiking layers share their code, and each is compiled for training, evaluation and the last batch of each.
        limits.recompile_limit = max(limits.recompile_limit, 4 * len(branches))
        _replace_forward(branches, lambda branch: torch.compile(branch.forward, fullgraph=True, mode=mode))


def _dropout(module: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
    """Dropout whose draws have 16 bits: torch's draws 64 for each element, on one thread. The probability is rounded to
    2**-16, and the scale fits the rounded one."""
    dropped = round(module.p * 2**16)
    if not module.training or not dropped:
        return x
    if dropped == 2**16:
        return x * 0
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = (draws[: x.numel()].view(x.shape) >= dropped - 2**15).to(x.dtype)
    return x * kept.mul_(2**16 / (2**16 - dropped))


def _branches(model: AshNet) -> list[nn.Module]:
    """What is compiled, each as one graph: the stem, the transformers, and spiking layers of floats; the transformers
    alone where ranks share the statistics of what is in the others."""
    transformers = [model.concrete.vit.blocks, model.text, model.cross]
    if ranks.count() > 1:
        return transformers
    stack = getattr(model.abstract, "stack", None)  # a codebook has none
    layers = stack.neural_layers.values() if isinstance(stack, SpikingStack) else ()
    return [model.concrete.vit.patch_embed, *transformers, *layers]


def _replace_forward(modules: Iterable[Any], forward: Callable[[Any], Callable[..., Any]]) -> None:
    for module in modules:
        module.__dict__["forward"] = forward(module)
