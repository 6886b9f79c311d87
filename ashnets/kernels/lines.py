"""Memory as compiled functions of ours meet it: elements at an address, and lines of the cache.

A layer whose tensors no cache holds waits for memory: for each new row of a tile, and for what it is about to
overwrite. So lines are asked for ahead, and written past the caches.

Tensors come as addresses, since to count the references of an array is an atomic operation, which waits until all that
was written past the caches is in memory. `like` is any number of an element's type.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE = 64
"""Bytes."""
PLACES = 8
_LINES = ir.VectorType(ir.IntType(64), LINE // 8)


def cache_bytes(cpu: Path = Path("/sys/devices/system/cpu/cpu0")) -> int:
    """The size of the largest cache, which cores may share; 32 MiB where the system does not tell."""
    sizes = [path.read_text().strip() for path in cpu.glob("cache/index*/size")]
    return max((int(size[:-1]) << 10 for size in sizes if size.endswith("K")), default=32 << 20)


def _element(context: Any, builder: Any, kind: Any, to: Any, index: Any, like: Any) -> Any:
    """The pointer to element `index` of an array, or from an address on; there may be no such element."""
    pointer = context.get_value_type(like).as_pointer()
    if isinstance(kind, types.Array):
        base = context.make_array(kind)(context, builder, to).data
    else:
        base = builder.inttoptr(to, pointer)
    return builder.gep(base, [index])


def _apart(builder: Any, instruction: Any, place: int) -> None:
    """In this function, accesses to one place do not meet those to another, so that the compiler need not look at run
    time. Functions that are compiled into this one have places of their own."""
    module = builder.module
    domain = module.add_metadata([builder.function.name])
    scopes = [module.add_metadata([f"place {k}", domain]) for k in range(PLACES)]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[place]]))
    instruction.set_metadata("noalias", module.add_metadata([*scopes[:place], *scopes[place + 1 :]]))


def _address(typing: Any, array: Any) -> Any:
    """Of an array's first element."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        data = context.make_array(array)(context, builder, values[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(array), generate


def _load(typing: Any, source: Any, index: Any, place: Any, like: Any) -> Any:
    """source[index]; source is an address or an array. Places are numbers below `PLACES`: of two places that a function
    names, no byte of one is one of the other."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        pointer = _element(context, builder, source, values[0], values[1], like)
        loaded = builder.load(pointer, align=like.bitwidth // 8)
        _apart(builder, loaded, place.literal_value)
        return loaded

    return like(source, index, place, like), generate


def _store(typing: Any, to: Any, index: Any, place: Any, value: Any) -> Any:
    """to[index] = value, which has the type of the elements; otherwise as `load`."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        pointer = _element(context, builder, to, values[0], values[1], value)
        _apart(builder, builder.store(values[3], pointer, align=value.bitwidth // 8), place.literal_value)
        return context.get_dummy_value()

    return types.none(to, index, place, value), generate


def _per_line(typing: Any, like: Any) -> Any:
    """Elements of a line."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        return context.get_constant(types.intp, 8 * LINE // like.bitwidth)

    return types.intp(like), generate


def _fetch(typing: Any, source: Any, index: Any, like: Any) -> Any:
    """Ask for the line of source[index]. Where no memory is, none is fetched."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.bitcast(_element(context, builder, source, values[0], values[1], like), byte)
        to_read, near, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(prefetch, [pointer, to_read, near, data])
        return context.get_dummy_value()

    return types.none(source, index, like), generate


def _write_line(typing: Any, to: Any, index: Any, source: Any, first: Any, like: Any) -> Any:
    """The line that begins at to[index] = that from source[first] on, past the caches. Other threads see it after an
    atomic operation of this one, which `on_team` has behind each share."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        there = _element(context, builder, to, values[0], values[1], like)
        here = _element(context, builder, source, values[2], values[3], like)
        line = builder.load(builder.bitcast(here, _LINES.as_pointer()), align=like.bitwidth // 8)
        stored = builder.store(line, builder.bitcast(there, _LINES.as_pointer()), align=LINE)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.none(to, index, source, first, like), generate


address: Any = intrinsic(_address)
load: Any = intrinsic(prefer_literal=True)(_load)
store: Any = intrinsic(prefer_literal=True)(_store)
per_line: Any = intrinsic(_per_line)
fetch: Any = intrinsic(_fetch)
write_line: Any = intrinsic(_write_line)
