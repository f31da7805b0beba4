"""Processor instructions that numba does not offer, made with LLVM. Only compiled code can call them.

For example, `load_word(data, 3)` reads data[3:11] as one little-endian int64 with a single instruction.
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
def _load_word(typing_context: Any, data: Any, position: Any) -> Any:  # noqa: ARG001
    """Read eight bytes at any position as an int64. numba has no unaligned load, and eight loads take far longer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(_element_address(context, builder, signature, arguments), _I64.as_pointer())
        return builder.load(place, align=1)

    return types.int64(data, types.int64), generate


@intrinsic
def _store_word(typing_context: Any, data: Any, position: Any, value: Any) -> Any:  # noqa: ARG001
    """Write the eight bytes of an int64 at any position."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(_element_address(context, builder, signature, arguments), _I64.as_pointer())
        builder.store(arguments[2], place, align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64), generate


@intrinsic
def _not_negative(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """Returns the same number, and promises that it is not negative. Indexing with it needs no check of its sign."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        builder.assume(builder.icmp_signed(">=", arguments[0], ir.Constant(_I64, 0)))
        return arguments[0]

    return types.int64(types.int64), generate


@intrinsic
def _leading_zeros(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """Returns how many of an int64's 64 bits are 0 before the first 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@intrinsic
def _bit_count(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """Returns how many of an int64's 64 bits are 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


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
load_word: Any = _load_word
store_word: Any = _store_word
not_negative: Any = _not_negative
leading_zeros: Any = _leading_zeros
bit_count: Any = _bit_count
word_at: Any = _word_at
put_word_at: Any = _put_word_at
pointer: Any = _pointer
load_atomic: Any = _load_atomic
store_atomic: Any = _store_atomic
swap_atomic: Any = _swap_atomic
fence: Any = _fence
prefetch_element: Any = _prefetch_element
call_c: Any = _call_c
