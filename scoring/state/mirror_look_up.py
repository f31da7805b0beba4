"""The compiled half of `MirrorReader`: looks up the profiles of a chunk, all as of one transaction.

    keys ─► begin_read ─► find_all ─► copy each value into `states` ─► is_current ─ no: begin again

The form of the mirror's file, and why a look-up is of one moment, is in scoring/state/mirror_form.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import ABSENT, I64, KNOWN, U8, UNKNOWN
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.intrinsics import pointer
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.scoring.state.mirror_form import (
    BUSY,
    CLOSED,
    DAMAGED,
    GREW,
    MAPPED_AT,
    MAPPED_BYTES,
    NUMBER_COUNT,
    OK,
    PROFILE_BYTES_MAX,
    TRIES_MAX,
    WORD_BYTES,
    begin_read,
    find_all,
    is_current,
    list_records,
)


class LookUpSlots(NamedTuple):
    """The frame of `look_up_bound`."""

    numbers: int
    """int64: MAPPED_AT to PROFILE_BYTES_MAX of scoring/state/mirror_form.py. MAPPED_AT is 0 when it is closed."""
    keys: int
    """uint8. Bytes in which all keys stand."""
    key_starts: int
    """Where each key begins in `keys`, int64."""
    key_sizes: int
    """The size of each key, int64; 0 stands for an entity that the payment does not have."""
    found: int
    """Shape (3, most keys of a look-up), int64. Scratch space."""
    states: int
    """uint8. Filled: the profiles, one after the other."""
    bounds: int
    """int64. Filled: where each profile begins, and where the last one ends."""
    presence: int
    """uint8. Filled: ABSENT, UNKNOWN or KNOWN for each key."""


SLOT = positions(LookUpSlots)


@inlined
def copy_value(data: U8, place: int, value_size: int, size_max: int, states: U8, at: int) -> int:
    """Copy a value, cut off at `size_max` bytes; returns the position behind it."""
    length = min(value_size, size_max)
    end: int = copy_bytes(data, place, length, states, at)
    return end


@compiled()
def _look_up(
    words: I64,
    data: U8,
    numbers: I64,
    keys: U8,
    starts: I64,
    sizes: I64,
    count: int,
    found: I64,
    states: U8,
    bounds: I64,
    presence: U8,
) -> int:
    """Look up in one turn."""
    status: int = begin_read(words, numbers)
    if status != OK:
        return status
    places, value_sizes = found[0], found[1]
    if not find_all(words, data, numbers, keys, starts, sizes, count, places, value_sizes, found[2]):
        return DAMAGED
    at = 0
    bounds[0] = 0
    for item in range(count):
        presence[item] = ABSENT if sizes[item] == 0 else UNKNOWN
        if value_sizes[item] >= 0:
            at = copy_value(data, places[item], value_sizes[item], numbers[PROFILE_BYTES_MAX], states, at)
            presence[item] = KNOWN
        bounds[item + 1] = at
    return OK


@compiled(makes_arrays=True)
def look_up_bound(frame_at: int, count: int) -> int:
    """Look up the frame's first `count` keys. Returns OK to BUSY.

    A profile above PROFILE_BYTES_MAX is cut off there: it is of another catalogue, and the kernel sees that.
    """
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    if numbers[MAPPED_AT] == 0:
        return CLOSED
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    data = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES], np.uint8)
    keys = carray(address(frame_at, SLOT.keys), size(frame_at, SLOT.keys), np.uint8)
    starts = carray(address(frame_at, SLOT.key_starts), count, np.int64)
    sizes = carray(address(frame_at, SLOT.key_sizes), count, np.int64)
    room = size(frame_at, SLOT.found) // 3
    found = carray(address(frame_at, SLOT.found), (3, room), np.int64)
    states = carray(address(frame_at, SLOT.states), size(frame_at, SLOT.states), np.uint8)
    bounds = carray(address(frame_at, SLOT.bounds), count + 1, np.int64)
    presence = carray(address(frame_at, SLOT.presence), count, np.uint8)
    for _ in range(TRIES_MAX):
        status: int = _look_up(words, data, numbers, keys, starts, sizes, count, found, states, bounds, presence)
        if status == GREW or is_current(words, numbers):
            return status
    return BUSY


# For Python, one step at a time: it copies values itself, and then asks whether they are of one transaction.


@compiled(makes_arrays=True)
def find_values(numbers: I64, keys: U8, starts: I64, sizes: I64, found: I64) -> int:
    """Find keys as of the newest transaction. Returns OK to DAMAGED. `found`: as `places` … `slots` of `find_all`."""
    if numbers[MAPPED_AT] == 0:
        return CLOSED
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    data = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES], np.uint8)
    status: int = begin_read(words, numbers)
    if status != OK:
        return status
    is_whole = find_all(words, data, numbers, keys, starts, sizes, len(sizes), found[0], found[1], found[2])
    return OK if is_whole else DAMAGED


@compiled(makes_arrays=True)
def find_records(numbers: I64, home: int, homes: int, places: I64) -> int:
    """Returns `list_records` as of what `find_values` has found last."""
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    return int(list_records(words, numbers, home, homes, places))


@compiled(makes_arrays=True)
def is_still_current(numbers: I64) -> bool:
    """Whether all that was read since `find_values` is as of its transaction."""
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    return bool(is_current(words, numbers))


def warm_up() -> None:
    """Load or compile the steps that Python calls."""
    numbers = "int64[::1]"
    find_values.compile(f"int64({numbers}, uint8[::1], {numbers}, {numbers}, int64[:,::1])")  # type: ignore[attr-defined]
    find_records.compile(f"int64({numbers}, int64, int64, {numbers})")  # type: ignore[attr-defined]
    is_still_current.compile(f"boolean({numbers})")  # type: ignore[attr-defined]
