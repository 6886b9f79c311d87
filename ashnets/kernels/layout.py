"""How the elements of a tensor [T, B, C, ...] lie in memory."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """One step as [outer, inner], inner being neighbours in memory: those of one channel, which is the row modulo
    `channels`; or the channels themselves, where `last`."""

    outer: int
    inner: int
    channels: int
    last: bool


def dense(x: Tensor) -> Tensor:
    """x itself where its elements lie without gaps, channels first or last; else a copy, channels first."""
    return x if x.is_contiguous() or (x.ndim > 3 and x.movedim(2, -1).is_contiguous()) else x.contiguous()


def flat_shape(x: Tensor) -> tuple[int, int]:
    """T and M, where a dense x is [T, M] in the order of its memory."""
    return len(x), x.numel() // max(1, len(x))


def laid_as(g: Tensor, x: Tensor) -> Tensor:
    """g itself where it lies as x does, which is dense and of its shape; else a copy that does."""
    return g if g.stride() == x.stride() else torch.empty_like(x, dtype=g.dtype).copy_(g)


def turned(g: Tensor, x: Tensor) -> bool:
    """Do g and x, which is dense, lie channels first and last, or last and first?"""
    return g.ndim > 3 and dense(g) is g and g.is_contiguous() != x.is_contiguous()


def layout_of(x: Tensor) -> Layout:
    """Of a dense x."""
    size, channels = math.prod(x.shape[1:]), channels_of(x)
    inner = math.prod(x.shape[3:])
    if channels > 1 and (inner == 1 or not x.is_contiguous()):
        return Layout(size // channels, channels, channels, True)
    return Layout(x.shape[1] * channels, inner, channels, False) if x.ndim > 2 else Layout(1, size, 1, False)


def channels_of(x: Tensor) -> int:
    return x.shape[2] if x.ndim > 2 else 1


def states_type(x: Tensor) -> torch.dtype:
    """float32 where x has 16 bits."""
    return torch.float32 if x.dtype.itemsize < 4 else x.dtype
