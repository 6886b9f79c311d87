"""Work shared by torch's own threads.

Torch's threads are OpenMP's, which wait for their next work at full speed; threads of another kind would have to fight
them for the processor. So this work is given to the same team: `GOMP_parallel` of the library that torch loaded. Shares
are compiled, and so is what hands them out: threads that had to pass Python's lock to each other would take longer than
a small layer's work.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _find_team() -> int:
    """The address of `GOMP_parallel`, or 0."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):  # torch was built with another library: one thread does it all
        return 0


_team = _find_team()


def _forget_team() -> None:
    """A forked process has none of the threads."""
    global _team
    _team = 0


os.register_at_fork(after_in_child=_forget_team)


def team(shares: int) -> tuple[int, int, int]:
    """For `on_team`: the address of the team, 0 where one thread does it all, the number of its threads, and shares."""
    threads = min(shares, torch.get_num_threads())
    return (_team if threads > 1 else 0), threads, shares


def _on_team(typing: Any, team: Any, threads: Any, shares: Any, job: Any, given: Any) -> Any:
    """For compiled functions: job(share, *given) for each share below `shares`, by so many threads of the team, each of
    which takes the next share when it is done with one -> how many shares raised an error. job is compiled as well, and
    must let the interpreter's lock alone."""
    of_job = typing.resolve_function_type(job, (types.intp, *given.types), {})

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        team, threads, shares, _, given_ = values
        compiled = job.dispatcher.overloads[of_job.args]
        context.add_linking_libs((compiled.library,))
        word = context.get_value_type(types.intp)
        zero, one = ir.Constant(word, 0), ir.Constant(word, 1)

        # What the threads share: the next share, how many failed, how many there are, what the job is given.
        frame = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, (zero, zero, shares, given_)))
        pointer = ir.PointerType(ir.IntType(8))
        work = ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer]), builder.module.get_unique_name("team_work")
        )
        work.linkage = "internal"

        start, again, share_, end = (work.append_basic_block(name) for name in ("start", "again", "share", "end"))
        inner = ir.IRBuilder(start)
        shared = inner.bitcast(work.args[0], frame.type)
        following, failed, count, own = (cgutils.gep_inbounds(inner, shared, 0, k) for k in range(4))
        count, own = inner.load(count), cgutils.unpack_tuple(inner, inner.load(own), len(given.types))
        inner.branch(again)
        inner.position_at_end(again)
        share = inner.atomic_rmw("add", following, one, "monotonic")
        inner.cbranch(inner.icmp_signed("<", share, count), share_, end)
        inner.position_at_end(share_)
        status, _ = context.call_internal_no_propagate(inner, compiled.fndesc, of_job, [share, *own])
        inner.atomic_rmw("add", failed, inner.zext(status.is_error, word), "monotonic")
        inner.branch(again)
        inner.position_at_end(end)
        inner.ret_void()

        data = builder.bitcast(frame, pointer)
        with builder.if_else(builder.icmp_signed("!=", team, zero)) as (several, alone):
            with several:
                number = ir.IntType(32)
                parallel = ir.FunctionType(ir.VoidType(), [work.type, pointer, number, number])
                call = builder.inttoptr(team, ir.PointerType(parallel))
                builder.call(call, [work, data, builder.trunc(threads, number), ir.Constant(number, 0)])
            with alone:
                builder.call(work, [data])
        return builder.load(cgutils.gep_inbounds(builder, frame, 0, 1))

    return types.intp(types.intp, types.intp, types.intp, job, given), generate


on_team: Any = intrinsic(_on_team)
