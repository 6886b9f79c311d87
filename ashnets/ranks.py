"""A batch that several ranks (processes, usually one for each GPU) share: what one of them must know of the others.

Rank r of R holds b_r images and m_r texts of the batch, the rows after those of the ranks before it. Its loss is

    L_r = R * (sum over its own rows) / (number of rows of all ranks),    so that mean_r L_r = L,

the loss of the batch as one process has it, and so is the mean of the ranks' gradients, which DDP and FSDP take. Where
a row needs the others (the negatives of a contrast), `everyone` brings them and their gradients go back to whom they
belong: a rank computes its own rows of the logits against all columns, O(batch) instead of O(batch^2) numbers for each
(as open_clip's "local loss" does).

Outside of `among` all of this is what one process does by itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from ashnets.kernels.layout import states_type

Of = Literal["images", "texts"]
"""What rows of a batch belong to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """images, texts: how many of the batch each rank has. Of pairs of images `images` counts pairs."""

    rank: int
    images: tuple[int, ...]
    texts: tuple[int, ...]

    @property
    def ranks(self) -> int:
        return len(self.images)

    @property
    def own_images(self) -> slice:
        """Where this rank's images are in the batch."""
        return _own(self.images, self.rank)

    @property
    def own_texts(self) -> slice:
        return _own(self.texts, self.rank)


def _own(counts: Sequence[int], rank: int) -> slice:
    first = sum(counts[:rank])
    return slice(first, first + counts[rank])


_split: Split | None = None  # one thread trains; torch.compile reads a global, where it does not read a ContextVar


@contextmanager
def among(split: Split | None) -> Iterator[None]:
    """Within the block this process has its part of a batch; None: all of it."""
    global _split
    before, _split = _split, split
    try:
        yield
    finally:
        _split = before


def current() -> Split | None:
    """How the batch is split, where it is."""
    return _split


def everyone(rows: Tensor, of: Of) -> Tensor:
    """[b, ...] -> [B, ...]: the rows of all ranks, in their order; each rank's loss has its gradient for each row.

    of: what a row belongs to; an image may have several, as many on every rank.
    """
    if _split is None:
        return rows
    counts = getattr(_split, of)
    each = len(rows) // counts[_split.rank]
    return _Everyone.apply(rows, [each * count for count in counts], _split.rank)


def summed(x: Tensor) -> Tensor:
    """The sum over ranks, whose gradient is that of all ranks' losses."""
    return x if _split is None else _Summed.apply(x)


def share(total: Tensor, rows: Tensor | int) -> Tensor:
    """A rank's loss from the sum over its rows and their number: R * total / (rows of all ranks), and total / rows of
    one process. No row at all counts as one, so that nothing is divided by zero."""
    if _split is None:
        return total / (rows.clamp(min=1) if isinstance(rows, Tensor) else max(1, rows))
    every = _total(torch.as_tensor(rows, device=total.device))
    return _split.ranks * total / every.clamp(min=1)


def share_of(mean: Tensor, of: Of) -> Tensor:
    """A rank's part of a mean over all images or texts, from the mean over its own."""
    if _split is None:
        return mean
    counts = getattr(_split, of)
    return mean * (_split.ranks * counts[_split.rank] / sum(counts))


def mean_of_images(mean: Tensor) -> Tensor:
    """The mean over all images, on every rank, from the mean over its own."""
    return mean if _split is None else summed(share_of(mean, "images")) / _split.ranks


def channel_moments(x: Float[Tensor, "N C *rest"]) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"], Tensor]:
    """Mean and mean square of each channel over the rows of all ranks, float64, and how many numbers those are of.
    Rows are summed by themselves and these sums in float64, so that it hardly matters how the rows are split."""
    x = x.to(states_type(x))
    x = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    sums = torch.stack([x.sum(2).double().sum(0), x.square().sum(2).double().sum(0)])
    count = summed(torch.tensor(float(len(x) * x.shape[2]), device=x.device))
    mean, square = summed(sums) / count
    return mean, square, count


class _Everyone(torch.autograd.Function):
    """Gather along the first axis; backward, the sum over ranks of the gradients of one's own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        most = max(counts)
        own = rows.new_zeros(most, *rows.shape[1:])
        own[: len(rows)] = rows
        given = rows.new_empty(len(counts) * most, *rows.shape[1:])
        dist.all_gather_into_tensor(given, own)
        parts = given.unflatten(0, (len(counts), most))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _total(gradients[0])[_own(ctx.counts, ctx.rank)], None, None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _total(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _total(gradients[0])


def _total(x: Tensor) -> Tensor:
    """The sum over ranks, of bfloat16 too taken in float32."""
    total = x.to(torch.promote_types(x.dtype, torch.float32), copy=True).contiguous()
    dist.all_reduce(total)
    return total.to(x.dtype)
