"""One training step on several ranks: data parallelism with whole copies of the model (DDP) or with its weights,
gradients and optimiser state cut up (FSDP2), and tensors that are cut up.

FSDP2 cuts the first axis of a parameter into as many equal parts as there are ranks (`torch.chunk`). What has no axis
(temperatures, r) stays whole on every rank.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from train import ranks


def spread(module: nn.Module, blocks: Iterable[nn.Module], fsdp: bool, device: torch.device) -> nn.Module:
    """What stands for `module` where ranks train it together; itself for one rank. blocks: whose weights are whole only
    while they are at work, if any are cut up."""
    if ranks.count() == 1:
        return module
    if not fsdp:
        # The objectives do not need every parameter: the answer head waits while captions are learned.
        on_gpu = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            module, on_gpu, find_unused_parameters=True, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    mesh = init_device_mesh(device.type, (ranks.count(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params={p for p in module.parameters() if p.ndim == 0})
    return module


def cut(tensor: Tensor) -> bool:
    """Whether a rank has a part of it alone."""
    return isinstance(tensor, DTensor)


@dataclass(frozen=True)
class Part:
    """A rank's rows of a tensor that is cut up."""

    rows: Tensor


def part_of(tensor: Tensor) -> Tensor | Part:
    """What this rank saves of it."""
    own = tensor.detach()
    return Part(own.to_local()) if isinstance(own, DTensor) else own


def local(tensor: Tensor) -> Tensor:
    """What this rank has of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank; each has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_as(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, cut as `target` is, on its device. Shapes that differ are left to who compares them."""
    if not isinstance(target, DTensor) or value.shape != target.shape:
        return value.to(target.device)
    rows = -(-len(value) // ranks.count())
    own = value[rows * ranks.rank() : rows * (ranks.rank() + 1)].to(target.device, copy=True)
    return DTensor.from_local(
        own, target.device_mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
    )


def reduce_uncut(parameters: Iterable[Tensor]) -> None:
    """The mean over ranks of the gradients that neither DDP nor FSDP has taken it of."""
    scalars = [p for p in parameters if p.ndim == 0 and p.grad is not None]
    if scalars:
        mean = torch.stack([p.grad for p in scalars if p.grad is not None]) / ranks.count()
        dist.all_reduce(mean)
        for p, gradient in zip(scalars, mean, strict=True):
            p.grad = gradient


def clip(parameters: Iterable[Tensor], most: float) -> Tensor:
    """Scale all gradients so that their norm is at most `most`; the norm that they had."""
    parameters = list(parameters)
    kinds = [[p for p in parameters if p.grad is not None and cut(p) == kind] for kind in (False, True)]
    if not kinds[1]:
        return nn.utils.clip_grad_norm_(parameters, most)
    norms = [whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind]
    norm = torch.stack(norms).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, most, norm)
    return norm
