"""Instructions of the processor that plain numba cannot express, each a few lines for LLVM. For compiled code only.

    word_at, put_word_at, pointer    memory at an address: the frames of toolkit/frame.py, and files that are mapped
    load_atomic, store_atomic, swap_atomic, fence    tables that several processes read and write at the same time
    prefetch_element    several cache misses at the same time, instead of one after the other
    call_c    a C function at an address: the bundle's native model, xxHash, the clock

docs/decisions/compiled-instructions.md has the reasons and what each saves. No other file makes instructions.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _element_address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Returns the address of an element: the first argument is the array, the second the index."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


def _fetch_line(builder: Any, place: Any) -> None:
    """Let the processor fetch the cache line of a pointer to bytes: to read, into all caches, as data."""
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [_I8.as_pointer()], kind)
    builder.call(function, [place, *[ir.Constant(_I32, number) for number in (0, 3, 1)]])


@intrinsic
def _word_at(typing_context: Any, address: Any) -> Any:  # noqa: ARG001
    """Read the int64 at an address in memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.load(builder.inttoptr(arguments[0], _I64.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def _put_word_at(typing_context: Any, address: Any, value: Any) -> Any:  # noqa: ARG001
    """Write the int64 at an address in memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        builder.store(arguments[1], builder.inttoptr(arguments[0], _I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:  # noqa: ARG001
    """Returns an address as a pointer, from which `numba.carray` makes an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(arguments[0], _I8.as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def _load_atomic(typing_context: Any, array: Any, position: Any) -> Any:  # noqa: ARG001
    """Read one element of an int64 array, sequentially consistent with all other atomic accesses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_element_address(context, builder, signature, arguments), "seq_cst", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def _store_atomic(typing_context: Any, array: Any, position: Any, value: Any) -> Any:  # noqa: ARG001
    """Set one element of an int64 array, sequentially consistent with all other atomic accesses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element_address(context, builder, signature, arguments)
        builder.store_atomic(arguments[2], place, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def _swap_atomic(typing_context: Any, array: Any, position: Any, expected: Any, value: Any) -> Any:  # noqa: ARG001
    """Compare and set: set one element of an int64 array if it equals `expected`. Returns 1 if it did, else 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element_address(context, builder, signature, arguments)
        pair = builder.cmpxchg(place, arguments[2], arguments[3], "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(pair, 1), _I64)

    return types.int64(array, types.int64, types.int64, types.int64), generate


@intrinsic
def _fence(typing_context: Any) -> Any:  # noqa: ARG001
    """Keep what is read and written before it before what is read and written after it, for other processes, too."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        builder.fence("acq_rel")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _prefetch_element(typing_context: Any, array: Any, position: Any) -> Any:  # noqa: ARG001
    """Let the processor fetch the cache line of one element."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(_element_address(context, builder, signature, arguments), _I8.as_pointer())
        _fetch_line(builder, place)
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def _call_c(
    typing_context: Any,  # noqa: ARG001
    function: Any,  # noqa: ARG001
    first: Any,  # noqa: ARG001
    second: Any,  # noqa: ARG001
    third: Any,  # noqa: ARG001
    fourth: Any,  # noqa: ARG001
) -> Any:
    """Call the C function at an address. Its arguments are at most four whole numbers or addresses; fill up with 0.

    Returns its result as an int64. If the function returns an `int`, only the low 32 bits count.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        kind = ir.FunctionType(_I64, [_I64] * 4)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(*[types.int64] * 5), generate


# Compiled code calls these without the typing context, which a type checker cannot know.
word_at: Any = _word_at
put_word_at: Any = _put_word_at
pointer: Any = _pointer
load_atomic: Any = _load_atomic
store_atomic: Any = _store_atomic
swap_atomic: Any = _swap_atomic
fence: Any = _fence
prefetch_element: Any = _prefetch_element
call_c: Any = _call_c
