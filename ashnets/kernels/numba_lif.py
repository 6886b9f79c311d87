"""CUBA-LIF on processors, compiled by numba: tiles of columns that stay in the cache, shared out over threads.

x is read once and s written once. The backward pass keeps nothing of the forward pass but x; or, for the rectangle with
fixed parameters, two bits per element, and not even x.
"""

import hashlib
from pathlib import Path
from typing import Any

import numba

from ashnets.kernels.numba_backward import backward_share, backward_share_of_bits
from ashnets.kernels.numba_forward import forward_share
from ashnets.kernels.threads import on_team


def _kernels(sources: int) -> tuple[Any, Any, Any]:
    """Functions of (team, threads, shares, each, and what a share is given): all shares, `each` columns but for the
    last, which may have less -> how many failed.

    numba keeps what it compiled until the function's own file changes, or what the function encloses: `sources` stands
    for all that is compiled into these.
    """

    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def forward(team, threads, shares, *given):
        return on_team(team, threads, shares, forward_share, given) if sources else shares

    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def backward(team, threads, shares, *given):
        return on_team(team, threads, shares, backward_share, given) if sources else shares

    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def backward_of_bits(team, threads, shares, *given):
        return on_team(team, threads, shares, backward_share_of_bits, given) if sources else shares

    return forward, backward, backward_of_bits


def _digest(folder: Path) -> int:
    """Of the modules in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:4]) | 1


forward, backward, backward_of_bits = _kernels(_digest(Path(__file__).parent))
