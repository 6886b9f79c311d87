"""Where a number that is not finite came from."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from train.parallel import local


def not_finite(tensor: Tensor) -> bool:
    own = local(tensor.detach())
    return own.is_floating_point() and not bool(torch.isfinite(own).all())


@contextmanager
def watched(module: nn.Module) -> Iterator[list[tuple[float, str]]]:
    """Within the block, modules are noted whose output is not finite: (how many had ended by then, name); a weight
    that is not comes before them."""
    seen = [(0.0, f"weight {name}") for name, p in module.named_parameters() if not_finite(p)]
    ended = count(1)

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            order = float(next(ended))
            if any(map(not_finite, _tensors(output))):
                seen.append((order, f"layer {name}"))

        return hook

    hooks = [inner.register_forward_hook(note(name)) for name, inner in module.named_modules() if name]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for inner in value for t in _tensors(inner)] if isinstance(value, (tuple, list)) else []
