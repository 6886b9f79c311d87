"""Several processes that work on one run: how they meet, who writes, and what happens when one of them fails.

torchrun starts them and tells each its rank by the environment. The first rank writes and speaks for all. What they
tell each other here goes over gloo, as bytes and numbers: nothing is pickled.
"""

import io
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from hw.errors import UserError

PATIENCE = timedelta(minutes=30)  # for a rank that does not answer: the first may have much data to read
T = TypeVar("T")
_JOB = "torchrun.txt"
_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|[Tt]imed out|remote process|heartbeat", re.I)


def launched() -> int:
    """How many ranks torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def note_job(folder: Path) -> None:
    """Let a folder that this job of torchrun has made be known as its own."""
    if _job():
        (folder / _JOB).write_text(_job(), encoding="utf-8")


def made_by_this_job(folder: Path) -> bool:
    """Whether torchrun has started the ranks anew, and an earlier start of theirs has made the folder. (Its own count
    of starts tells of ranks that failed, and not of hosts that came or went.)"""
    note = folder / _JOB
    return bool(_job()) and note.exists() and note.read_text(encoding="utf-8") == _job()


def _job() -> str:
    """What torchrun calls a job, or its user by --rdzv-id; where it has no name the process that starts the ranks gives
    one. '' without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"agent {os.getppid()}" if name == "none" else name


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """The number of this rank on its host, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def on_this_host() -> int:
    """How many ranks share the cores of this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[None]:
    """Within the block the ranks that torchrun has started can reach each other; all but the first say nothing."""
    if launched() == 1:
        yield
        return
    if on_this_host() == launched():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody outside has to reach them
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    store, rank_, ranks = _meeting_place()
    dist.init_process_group(backend, store=store, rank=rank_, world_size=ranks, timeout=PATIENCE)
    silent = None
    if rank():
        sys.stdout = silent = open(os.devnull, "w")  # noqa: SIM115  (closed below)
    try:
        with losses_told():
            yield
    finally:
        if silent:
            sys.stdout = sys.__stdout__
            silent.close()
        dist.destroy_process_group()


def _meeting_place() -> tuple[Store, int, int]:
    """(a store of this start alone, rank, how many ranks there are).

    torchrun keeps one store over all starts, with what ranks that are dead have put there, and its own count of starts
    differs between hosts (pytorch/pytorch#135712). So the first rank draws a name for this start, and a rank believes
    in a name once the first has seen the number that it drew itself.
    """
    store, rank_, ranks = next(iter(rendezvous("env://", timeout=PATIENCE)))
    own, end = secrets.token_hex(8), time.monotonic() + PATIENCE.total_seconds()
    if rank_ == 0:
        store.set("start", own)
        seen = [store.get(f"{own}/{r}").decode() for r in range(1, ranks)]  # waits for each
        store.set(f"{own}/seen", " ".join(seen))
        return PrefixStore(own, store), rank_, ranks
    while time.monotonic() < end:
        start = store.get("start").decode()
        store.set(f"{start}/{rank_}", own)
        if store.check([f"{start}/seen"]) and own in store.get(f"{start}/seen").decode():
            return PrefixStore(start, store), rank_, ranks
        time.sleep(0.05)
    raise UserError(f"rank {rank_}: the first rank did not answer within {PATIENCE}; start all of them anew")


@contextmanager
def losses_told() -> Iterator[None]:
    """`UserError` where another rank does not answer any more."""
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise, and torch's own DistError
        if count() == 1 or not _LOST.search(str(error)):
            raise
        told = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0]
        raise UserError(
            f"another rank was lost ({told}); the last checkpoint is whole: start the same command again with "
            "--resume, or let torchrun do it with --max-restarts"
        ) from error


def gathered(message: bytes, group: dist.ProcessGroup | None = None) -> list[bytes]:
    """What every rank says, in their order."""
    if count() == 1:
        return [message]
    sizes = torch.zeros(count(), dtype=torch.int64)
    sizes[rank()] = len(message)
    dist.all_reduce(sizes, group=group)
    own = torch.zeros(max(1, int(sizes.max())), dtype=torch.uint8)
    own[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else own[:0]
    every = torch.empty(count() * len(own), dtype=torch.uint8)
    dist.all_gather_into_tensor(every, own, group=group)
    rows = every.view(count(), -1).numpy()
    return [row[:size].tobytes() for row, size in zip(rows, sizes.tolist(), strict=True)]


def together(problem: str, group: dist.ProcessGroup | None = None) -> None:
    """End all ranks where one has a problem: the first raises `UserError` with all that is told, the others leave in
    silence. Every rank has to ask; '' for no problem."""
    told = [said.decode() for said in gathered(problem.encode(), group)]
    if not any(told):
        return
    if rank():
        raise SystemExit(2)
    same = told[0] and len(set(filter(None, told))) == 1
    raise UserError(told[0] if same else "; ".join(f"rank {r}: {said}" for r, said in enumerate(told) if said))


def on_first(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T | None:
    """Do it on the first rank while the others wait: its result, None elsewhere. Where it fails for a reason that a
    user can mend, all ranks end."""
    if count() == 1:
        return work()
    made, problem = None, ""
    if rank() == 0:
        try:
            made = work()
        except (UserError, OSError) as error:
            problem = str(error)
    together(problem, group)
    return made


def own_part(items: Sequence[T]) -> Sequence[T]:
    """The items that this rank works on: consecutive, and as many as the others have, or one more."""
    return items[len(items) * rank() // count() : len(items) * (rank() + 1) // count()]


def joined_rows(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all ranks one after another, from those of this one; a rank may have none."""
    if count() == 1:
        return np.concatenate(parts)
    file = io.BytesIO()
    if parts:
        np.lib.format.write_array(file, np.concatenate(parts), allow_pickle=False)
    given = [io.BytesIO(said) for said in gathered(file.getvalue()) if said]
    return np.concatenate([np.lib.format.read_array(said, allow_pickle=False) for said in given])
