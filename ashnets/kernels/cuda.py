"""The operator's work on graphics cards. Tiles are as wide as rows are, up to what registers hold."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ashnets.kernels import triton_lif
from ashnets.kernels.layout import Layout, laid_as, layout_of, states_type
from ashnets.kernels.recursion import STEPS_PER_BYTE, UNITY_BITS

_jit: Any = triton_lif  # Triton's own type hints do not know its calls
CHUNK = 32  # steps whose states registers hold in the backward pass
_EXACT = {"enable_fp_fusion": False}  # a multiplication fused with an addition rounds once, the plain loop twice


def forward(x: Tensor, s: Tensor, bits: Tensor, params: Sequence[Tensor]) -> None:
    """See `ashnets.kernels.lif.lif_forward`; x is dense, s lies as it does, bits without elements are not written."""
    if not x.numel():
        return
    layout, whole = layout_of(x), params[0].dtype == torch.int32
    rows, cols, grid = _tiles(layout, 8)
    numbers = _numbers(params, torch.int32 if whole else states_type(x))
    _jit.forward[grid](
        x, s, bits, *numbers, *_strides(params), len(x), layout.outer, layout.inner, layout.channels,
        WHOLE=whole, BITS=bits.numel() > 0, BYTE=STEPS_PER_BYTE, LAST=layout.last, ROWS=rows, COLS=cols, **_EXACT,
    )  # fmt: skip


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
    sums.zero_()
    if not grad_x.numel():
        return
    grad_s = laid_as(grad_s, grad_x)
    layout, steps, dtype = layout_of(grad_x), len(grad_x), states_type(grad_x)
    numbers, whole = _numbers(params, dtype), _numbers(whole, torch.int32)
    if bits.numel():
        rows, cols, grid = _tiles(layout, 8)
        _jit.backward_of_bits[grid](
            grad_s, bits, grad_x, *numbers[:2], *_strides(params)[:2],
            steps, layout.outer, layout.inner, layout.channels,
            BYTE=STEPS_PER_BYTE, LAST=layout.last, ROWS=rows, COLS=cols, **_EXACT,
        )  # fmt: skip
        return
    chunk = min(steps, CHUNK)
    rows, cols, grid = _tiles(layout, 4 if chunk <= 8 else 2)
    count = (grid[0], layout.inner) if layout.last else (grid[1], layout.outer)
    parts = grad_x.new_empty((4, *count) if sums.numel() else 0, dtype=dtype)
    chunks = -(-steps // chunk)
    kept = grad_x.new_empty((chunks if chunks > 1 else 0, 2, *grad_x.shape[1:]), dtype=torch.int32 if whole else dtype)
    one = numbers[0] if unit is None else unit.to(dtype)
    _jit.backward[grid](
        grad_s, x, grad_x, parts, kept, *numbers[:2], *(whole or numbers), one, *_strides(params),
        steps, layout.outer, layout.inner, layout.channels,
        SURROGATE=triton_lif.SLOPES[surrogate], PARAMETERS=sums.numel() > 0, WHOLE=bool(whole), LAST=layout.last,
        CHUNK=chunk, ROWS=rows, COLS=cols, **_EXACT,
    )  # fmt: skip
    if sums.numel():
        found = parts.double().view(4, -1, layout.channels).sum(1)
        for row, p, total in zip(sums, params, found, strict=True):
            row[: p.numel()] = total if p.numel() > 1 else total.sum()
        sums[:2].neg_()  # a decay is one minus what the kernels take


def _numbers(params: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What the kernels take: 1 minus a decay, rounded as the decay is, or 4096 minus a whole one."""
    unity = 1 << UNITY_BITS if dtype == torch.int32 else 1
    return [p.to(dtype).reshape(-1) for p in (*(unity - p for p in params[:2]), *params[2:])]


def _strides(params: Sequence[Tensor]) -> list[int]:
    return [int(p.numel() > 1) for p in params]


def _tiles(layout: Layout, each: int) -> tuple[int, int, tuple[int, int]]:
    """Rows and columns of a tile with `each` elements to one of 128 threads, and how many tiles there are."""
    size = 128 * each
    cols = min(triton.next_power_of_2(layout.inner), size)
    rows = size // cols
    return rows, cols, (-(-layout.outer // rows), -(-layout.inner // cols))
