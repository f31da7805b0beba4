"""Frames: many arrays passed to a compiled function as one number.

numba spends 0.1 µs on each array argument of a call, and a worker always passes the same arrays. Therefore a worker
puts them into a frame once. A frame holds the address and the size of each array, in the order of its slots:

    class Slots(NamedTuple):                                frame = Frame(SLOT, {"data": data, "rows": rows})
        data: int                                           read(frame.address, count)
        rows: int

    SLOT = positions(Slots)

    @compiled(makes_arrays=True)
    def read(frame_at: int, count: int) -> int:
        data = carray(address(frame_at, SLOT.data), size(frame_at, SLOT.data), np.uint8)
        rows = carray(address(frame_at, SLOT.rows), (count, width), np.int64)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.intrinsics import pointer, word_at
from paywarden.features.kernel.toolkit.jit import inlined

_SLOT_BYTES = 16


class Frame:
    """The addresses and sizes of arrays. It keeps the arrays alive. `address` is the frame's own address."""

    def __init__(self, slots: NamedTuple, arrays: Mapping[str, NDArray[Any]]) -> None:
        """`arrays` must have one C-contiguous array for each slot."""
        self._names = slots._fields
        assert arrays.keys() == set(self._names)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._slots = np.zeros((len(self._names), _SLOT_BYTES // 8), dtype=np.int64)
        self.address: int = self._slots.ctypes.data
        for name, array in arrays.items():
            self.put(name, array)

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Replace the array of one slot."""
        assert array.flags.c_contiguous
        self._slots[self._names.index(name)] = array.ctypes.data, array.size
        self._arrays[name] = array


# For compiled code that makes arrays.


@inlined
def address_number(frame_at: int, slot: int) -> int:
    """Returns the address of a slot's array as a number, for C functions."""
    found: int = word_at(frame_at + slot * _SLOT_BYTES)
    return found


@inlined
def address(frame_at: int, slot: int) -> Any:
    """Returns the address of a slot's array, for `numba.carray`."""
    return pointer(address_number(frame_at, slot))


@inlined
def size(frame_at: int, slot: int) -> int:
    """Returns the number of elements of a slot's array."""
    elements: int = word_at(frame_at + slot * _SLOT_BYTES + 8)
    return elements
