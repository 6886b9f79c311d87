"""The operator's work on processors, spread over torch's number of threads."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ashnets.kernels import numba_lif
from ashnets.kernels.columns import TILE
from ashnets.kernels.layout import Layout, flat_shape, laid_as, layout_of, states_type, turned
from ashnets.kernels.lines import LINE, cache_bytes
from ashnets.kernels.recursion import SLOPES, UNITY_BITS
from ashnets.kernels.threads import team

_compiled: Any = numba_lif  # numba's own type hints do not know its calls
_NUMBERS: dict[torch.dtype, Callable[[Any], Any]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int32: np.int32,
}
_SIGNS = np.array([[-1], [-1], [1], [1]])
"""Of gradients by what the kernels take: 1 minus a decay, v_th, bias."""
_CACHE = cache_bytes()
_PARTS = 32
"""That sums are made of, at most; how many depends on shapes alone, so that sums do not on the number of threads."""


def forward(x: Tensor, s: Tensor, bits: Tensor, params: Sequence[Tensor]) -> None:
    """See `ashnets.kernels.lif.lif_forward`; x is dense, s lies as it does, bits without elements are not written."""
    dtype = states_type(x)
    wide, out = _as(x, dtype), s if s.dtype == dtype else torch.empty_like(s, dtype=dtype)
    states = torch.int32 if params[0].dtype == torch.int32 else dtype
    steps, columns = flat_shape(x)
    at = wide.data_ptr(), out.data_ptr(), bits.data_ptr() if bits.numel() else None
    given = *at, steps, columns, _past(out, columns), _NUMBERS[dtype](0), _NUMBERS[states](0), *_numbers(params, states)
    _on_columns(_compiled.forward, steps, columns, TILE, *given, _run(layout_of(x)))
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
    wide, out = _as(x, dtype), grad_x if grad_x.dtype == dtype else torch.empty_like(grad_x, dtype=dtype)
    numbers = _numbers(params, dtype)
    inner = math.prod(grad_x.shape[3:]) if turned(grad_s, grad_x) else 0
    grad_s = _as(grad_s if inner else laid_as(grad_s, grad_x), dtype)
    layout, (steps, columns) = layout_of(grad_x), flat_shape(grad_x)
    run, channels = _run(layout), layout.channels
    least = max(columns / _PARTS, 8 * sums.numel() / steps)  # or the parts would be more than there is to sum
    part = TILE * max(1, math.ceil(least / TILE))
    parts = np.zeros((-(-columns // part), *sums.shape)) if sums.numel() else None
    of_g = grad_s.data_ptr(), inner, channels
    of_gx = out.data_ptr(), steps, columns, _past(out, columns), _NUMBERS[dtype](0)
    if bits.numel():
        given = *of_g, bits.data_ptr(), *of_gx, *numbers[:2], run
        _on_columns(_compiled.backward_of_bits, steps, columns, part, *given)
    else:
        whole_ = tuple(_numbers(whole, torch.int32)) or None
        unit_ = _NUMBERS[dtype](1 if unit is None else unit.item())
        of_sums = SLOPES[surrogate], parts, part
        given = *of_g, wide.data_ptr(), *of_gx, *numbers, whole_, unit_, run, *of_sums
        _on_columns(_compiled.backward, steps, columns, part, *given)
    if out is not grad_x:
        grad_x.copy_(out)
    if parts is not None:
        sums.copy_(torch.from_numpy(parts.sum(0) * _SIGNS))


def _on_columns(work: Callable[..., int], steps: int, columns: int, least: int, *given: Any) -> None:
    """work over all columns, in a share for each of torch's threads, which is a multiple of `least` columns."""
    each = least * max(1, -(-columns // (least * torch.get_num_threads())))
    if work(*team(-(-columns // each)), each, *given):
        raise MemoryError(f"CUBA-LIF: no memory for the states of {steps} steps; take fewer at once, or fewer threads")


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), of which torch takes a microsecond to see that there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def _past(to: Tensor, columns: int) -> bool:
    """Is `to` written past the caches? Where, beside what is read for it, they do not hold it: what reads it next would
    not find it there either. Its rows must be of whole lines."""
    held = 2 * to.numel() * to.itemsize < _CACHE
    return not held and to.data_ptr() % LINE == 0 and columns * to.itemsize % LINE == 0


def _run(layout: Layout) -> int:
    return 1 if layout.last else layout.inner


def _numbers(params: Sequence[Tensor], dtype: torch.dtype) -> list[Any]:
    """What the kernels take, numbers or arrays: 1 minus a decay, rounded as the decay is, or 4096 minus a whole one."""
    unity = 1 << UNITY_BITS if dtype == torch.int32 else 1
    return [*(_number(p, dtype, unity) for p in params[:2]), *(_number(p, dtype) for p in params[2:])]


def _number(p: Tensor, dtype: torch.dtype, unity: int | None = None) -> Any:
    """p, or unity - p. A copy: memory that numpy has seen cannot be given back, which FSDP does with parameters that it
    has put together."""
    if unity is None or p.numel() > 1 or p.dtype not in _NUMBERS:
        p = p if unity is None else unity - p
        return _NUMBERS[dtype](p.item()) if p.numel() == 1 else p.to(dtype, copy=True).reshape(-1).numpy()
    own = _NUMBERS[p.dtype]
    return _NUMBERS[dtype](own(unity) - own(p.item()))
