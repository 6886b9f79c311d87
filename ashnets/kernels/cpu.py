"""The operator's work on processors, spread over torch's number of threads."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ashnets.kernels import numba_lif
from ashnets.kernels.layout import Layout, flat, laid_as, layout_of, states_type, turned
from ashnets.kernels.threads import team

_compiled: Any = numba_lif  # numba's own type hints do not know its calls
_NUMBERS: dict[torch.dtype, Callable[[Any], Any]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int32: np.int32,
}
_PARTS = 32
"""That sums are made of, at most; how many depends on shapes alone, so that sums do not on the number of threads."""


def forward(x: Tensor, s: Tensor, bits: Tensor, params: Sequence[Tensor]) -> None:
    """See `ashnets.kernels.lif.lif_forward`; x is dense, s lies as it does, bits without elements are not written."""
    wide, out = x.to(states_type(x)), s if s.dtype == states_type(x) else torch.empty_like(s, dtype=states_type(x))
    numbers = [_number(p, p.dtype if p.dtype == torch.int32 else wide.dtype) for p in params]
    x_, s_, bits_ = flat(wide).numpy(), flat(out).numpy(), bits.numpy() if bits.numel() else None
    _on_columns(_compiled.forward, *x_.shape, numba_lif.TILE, x_, s_, bits_, *numbers, _run(layout_of(x)))
    if out is not s:
        s.copy_(out)


def backward(
    grad_s: Tensor,
    x: Tensor,
    grad_x: Tensor,
    sums: Tensor,
    bits: Tensor,
    params: Sequence[Tensor],
    surrogate: str,
    whole: Sequence[Tensor],
    unit: Tensor | None,
) -> None:
    """See `ashnets.kernels.lif.lif_backward`; x and bits lie as grad_x does, sums is [4, channels] or empty."""
    dtype = states_type(grad_x)
    wide, out = x.to(dtype), grad_x if grad_x.dtype == dtype else torch.empty_like(grad_x, dtype=dtype)
    numbers: list[Any] = [_number(p, dtype) for p in params]
    inner = math.prod(grad_x.shape[3:]) if turned(grad_s, grad_x) else 0
    grad_s = grad_s if inner else laid_as(grad_s, grad_x)
    g_, x_, gx_ = (flat(tensor).numpy() for tensor in (grad_s.to(dtype), wide, out))
    whole_ = tuple(_number(p, torch.int32) for p in whole) or None
    unit_ = gx_.dtype.type(1 if unit is None else unit.item())
    layout, columns = layout_of(grad_x), g_.shape[1]
    run, channels = _run(layout), layout.channels
    least = max(columns / _PARTS, 8 * sums.numel() / len(g_))  # or the parts would be more than there is to sum
    part = numba_lif.TILE * max(1, math.ceil(least / numba_lif.TILE))
    parts = np.zeros((-(-columns // part), *sums.shape)) if sums.numel() else None
    if bits.numel():
        given = bits.numpy(), gx_, *numbers[:2], run
        _on_columns(_compiled.backward_of_bits, *g_.shape, part, g_, inner, channels, *given)
    else:
        given = x_, gx_, *numbers, whole_, unit_, run, numba_lif.SLOPES[surrogate], parts, part
        _on_columns(_compiled.backward, *g_.shape, part, g_, inner, channels, *given)
    if out is not grad_x:
        grad_x.copy_(out)
    if parts is not None:
        sums.copy_(torch.from_numpy(parts.sum(0)))


def _on_columns(work: Callable[..., int], steps: int, columns: int, least: int, *given: Any) -> None:
    """work over all columns, in a share for each of torch's threads, which is a multiple of `least` columns."""
    each = least * max(1, -(-columns // (least * torch.get_num_threads())))
    if work(*team(-(-columns // each)), each, *given):
        raise MemoryError(f"CUBA-LIF: no memory for the states of {steps} steps; take fewer at once, or fewer threads")


def _run(layout: Layout) -> int:
    return 1 if layout.last else layout.inner


def _number(p: Tensor, dtype: torch.dtype) -> Any:
    """What the kernel takes for a parameter: a number or an array. A copy: memory that numpy has seen cannot be given
    back, which FSDP does with parameters that it has put together."""
    return _NUMBERS[dtype](p.item()) if p.numel() == 1 else p.to(dtype, copy=True).numpy()
