"""Surrogate derivatives of the spike: the forward pass is a step, the backward pass pretends that it was smooth.

Each function maps the distance to the threshold, v - v_th (any shape, in the unit of v; the widths suit thresholds near
1), to d s / d v.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Surrogate = Callable[[Tensor], Tensor]


def rectangle(x: Tensor) -> Tensor:
    """1 for |x| < 1/2, else 0: a box of area one (STBP, Wu et al. 2018)."""
    return (x.abs() < 0.5).to(x.dtype)


def arctan(x: Tensor) -> Tensor:
    """1 / (1 + (pi x)^2): the slope of atan(pi x) / pi, one at the threshold (PLIF, Fang et al. 2021)."""
    return 1.0 / (1.0 + (torch.pi * x) ** 2)


def fast_sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + 4 |x|)^2: one at the threshold, long tails (SuperSpike, Zenke and Ganguli 2018)."""
    return (1.0 + 4.0 * x.abs()) ** -2


SURROGATES: dict[str, Surrogate] = {"rectangle": rectangle, "arctan": arctan, "fast_sigmoid": fast_sigmoid}
"""Name -> surrogate. A new one is a function here and a line in this table; the tests cover every entry."""
