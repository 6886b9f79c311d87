"""Work shared by torch's own threads.

Torch's threads are OpenMP's, which wait for their next work at full speed; threads of another kind would have to fight
them for the processor. So this work is given to the same team: `GOMP_parallel` of the library that torch loaded.
"""

import ctypes
import itertools
import os
from collections.abc import Callable
from typing import Any

_TEAM_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _find_team() -> Any:
    try:
        team = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # torch was built with another library: one thread does it all
        return None
    team.argtypes, team.restype = (_TEAM_WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return team


_team = _find_team()


def _forget_team() -> None:
    """A forked process has none of the threads."""
    global _team
    _team = None


os.register_at_fork(after_in_child=_forget_team)


def on_threads(job: Callable[[int], None], shares: int, threads: int) -> None:
    """job(0) ... job(shares - 1), which let go of the interpreter's lock, by up to so many threads."""
    if _team is None or min(shares, threads) < 2:
        for share in range(shares):
            job(share)
        return
    numbers, failures = itertools.count(), list[BaseException]()

    def work(_: int | None) -> None:
        try:
            while (share := next(numbers)) < shares:
                job(share)
        except BaseException as failure:  # must not leave a thread that is not Python's
            failures.append(failure)

    _team(_TEAM_WORK(work), None, min(shares, threads), 0)
    if failures:
        raise failures[0]
