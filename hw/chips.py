"""The chips that a program is measured against: what one core holds, each limit with its source.

Loihi 2's limits per core are not public. What third parties say is marked so, and where nobody says anything Loihi 1's
limit stands in.
"""

from dataclasses import dataclass

import numpy as np

from hw.errors import UserError

RESOURCES = ("neurons", "input axons", "output axons", "synapse bits")
NENGO = "nengo-loihi, block.py"
DERIVED = "Loihi 1-derived: no public figure for Loihi 2"


@dataclass(frozen=True)
class Limit:
    """The most of one resource that a core holds."""

    what: str
    value: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Chip:
    """limits: one for each of `RESOURCES`, in that order. cores: of one chip, in tiles of 2 x 2 that share a router, 8
    tiles in a row. graded: spikes may carry a number."""

    name: str
    title: str
    cores: int
    cores_source: str
    limits: tuple[Limit, Limit, Limit, Limit]
    graded: bool

    @property
    def values(self) -> np.ndarray:
        """int64 [4]: the limits."""
        return np.array([limit.value for limit in self.limits], np.int64)


LOIHI1 = Chip(
    name="loihi1",
    title="Loihi 1",
    cores=128,
    cores_source="Davies et al. 2018",
    limits=(
        Limit("neurons", 1024, f"{NENGO}; Davies et al. 2018"),
        Limit("input axons", 4096, NENGO),
        Limit("output axons", 4096, NENGO),
        Limit("synapse bits", 16384 * 64, f"{NENGO}; Davies et al. 2018 (128 KB)"),
    ),
    graded=False,
)
LOIHI2 = Chip(
    name="loihi2",
    title="Loihi 2",
    cores=128,
    cores_source="open-neuromorphic.org",
    limits=(
        Limit("neurons", 8192, "third party: 1 million on 128 cores (open-neuromorphic.org)"),
        Limit("input axons", 4096, DERIVED),
        Limit("output axons", 4096, DERIVED),
        Limit("synapse bits", 192 * 1024 * 8, "third party: 192 KB a core, not confirmed by Intel"),
    ),
    graded=True,
)
CHIPS = {chip.name: chip for chip in (LOIHI1, LOIHI2)}


def chip_named(name: str) -> Chip:
    """The chip, or `UserError`."""
    if name not in CHIPS:
        raise UserError(f"chip '{name}' is not known; choose one of {', '.join(CHIPS)}")
    return CHIPS[name]
