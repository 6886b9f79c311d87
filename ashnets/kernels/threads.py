"""Work in fixed parts, spread over threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked process has the object, and none of its threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def on_threads(job: Callable[[int], None], parts: int, threads: int) -> None:
    """job(0) ... job(parts - 1), which let go of the interpreter's lock, spread over threads."""
    global _pool
    threads = min(threads, parts)
    if threads <= 1:
        for part in range(parts):
            job(part)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="cuba-lif")

    def share(thread: int) -> None:
        for part in range(thread, parts, threads):
            job(part)

    others = [_pool.submit(share, thread) for thread in range(1, threads)]
    share(0)
    for other in others:
        other.result()
