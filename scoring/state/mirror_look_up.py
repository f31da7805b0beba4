"""The compiled half of `MirrorReader`: looks up the profiles of a chunk in one read transaction of LMDB.

    keys ─► begin or renew ─► complete_to ─► find all ─► reset
                                               │
                                               └─ each value is copied into `states` before the transaction ends

LMDB's functions are called by their addresses (scoring/state/lmdb_calls.py). The transaction is kept from call to call:
to renew it costs a tenth of a new one. The keys are found in LMDB's pages (scoring/state/lmdb_pages.py), or one after
the other by LMDB, if its pages are not as they are known to be.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import ABSENT, I64, KNOWN, UNKNOWN
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes
from paywarden.features.kernel.toolkit.frame import address, address_number, size
from paywarden.features.kernel.toolkit.intrinsics import call_c, loose_word_at, pointer
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.scoring.state.lmdb_pages import find_all, root_of

# Places in `functions`.
BEGIN, RENEW, RESET, ABORT, GET, ID = range(6)
FUNCTION_COUNT = 6
# Places in `numbers`: LMDB's result, the size of the largest profile, and the results of the look-up.
ENVIRONMENT, DATABASE, TRANSACTION, PROFILE_BYTES_MAX, COMPLETE_TO_MS, SNAPSHOT, PAGE_BYTES = range(7)
NUMBER_COUNT = 7
# An MDB_val is a size and an address. The first one is a key, the second one its value.
_KEY_SIZE, _KEY_AT, _VALUE_SIZE, _VALUE_AT = range(4)
VALUE_WORDS = 4
# The same values as in scoring/state/lmdb_calls.py, which holds no compiled code.
_READ_ONLY, _NOT_FOUND = 0x20000, -30798
# The status of a look-up in an environment that is closed: no error of LMDB is this number.
_CLOSED = -1
_WORD_BYTES = 8


class LookUpSlots(NamedTuple):
    """The frame of `look_up_bound`."""

    functions: int
    """int64: the addresses of LMDB's functions, BEGIN to ID."""
    numbers: int
    """int64: ENVIRONMENT to PAGE_BYTES. ENVIRONMENT is 0 when it is closed. With PAGE_BYTES 0 LMDB finds all keys."""
    values: int
    """Shape (VALUE_WORDS,), int64. Scratch space: a key and its value."""
    complete_key: int
    """The key of the mirror's completeness, uint8."""
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
def _begin(functions: I64, numbers: I64, numbers_at: int) -> int:
    """Begin a read transaction. Returns 0, LMDB's error or _CLOSED, after which there is none."""
    if numbers[ENVIRONMENT] == 0:
        return _CLOSED
    if numbers[TRANSACTION] == 0:
        kept_at = numbers_at + TRANSACTION * _WORD_BYTES
        status = int(np.int32(call_c(functions[BEGIN], numbers[ENVIRONMENT], 0, _READ_ONLY, kept_at)))
        if status != 0:
            numbers[TRANSACTION] = 0
        return status
    status = int(np.int32(call_c(functions[RENEW], numbers[TRANSACTION], 0, 0, 0)))
    if status != 0:
        call_c(functions[ABORT], numbers[TRANSACTION], 0, 0, 0)
        numbers[TRANSACTION] = 0
    return status


@inlined
def _get(functions: I64, numbers: I64, values: I64, values_at: int, key_at: int, key_size: int) -> int:
    """Put a key's value into `values`. Returns 0 or LMDB's error."""
    values[_KEY_SIZE], values[_KEY_AT] = key_size, key_at
    value_at = values_at + _VALUE_SIZE * _WORD_BYTES
    return int(np.int32(call_c(functions[GET], numbers[TRANSACTION], numbers[DATABASE], values_at, value_at)))


@compiled()
def get_all(
    functions: I64,
    numbers: I64,
    values: I64,
    values_at: int,
    keys_at: int,
    starts: I64,
    sizes: I64,
    count: int,
    value_starts: I64,
    value_sizes: I64,
) -> int:
    """Find `count` keys one after the other: as `find_all`. Returns 0 or LMDB's error."""
    for item in range(count):
        value_starts[item], value_sizes[item] = 0, -1
        if sizes[item] == 0:
            continue
        status = _get(functions, numbers, values, values_at, keys_at + starts[item], sizes[item])
        if status == 0:
            value_starts[item], value_sizes[item] = values[_VALUE_AT], values[_VALUE_SIZE]
        elif status != _NOT_FOUND:
            return status
    return 0


@inlined
def begin_look_up(
    functions: I64, numbers: I64, numbers_at: int, values: I64, values_at: int, complete_at: int, complete_size: int
) -> tuple[int, int, int, int, int]:
    """Begin a read transaction, and note its number and the mirror's completeness.

    Returns a status, and what `root_of` returns. After a status other than 0 there is no transaction.
    """
    first_at, root, last, depth = 0, 0, 0, 0
    status = _begin(functions, numbers, numbers_at)
    if status != 0:
        return status, first_at, root, last, depth
    numbers[SNAPSHOT] = call_c(functions[ID], numbers[TRANSACTION], 0, 0, 0)
    numbers[COMPLETE_TO_MS] = 0
    status = _get(functions, numbers, values, values_at, complete_at, complete_size)
    if status == 0 and values[_VALUE_SIZE] == _WORD_BYTES:
        numbers[COMPLETE_TO_MS] = loose_word_at(values[_VALUE_AT])
        if numbers[PAGE_BYTES] > 0:
            first_at, root, last, depth = root_of(values[_VALUE_AT], numbers[PAGE_BYTES], numbers[SNAPSHOT])
    elif status != 0 and status != _NOT_FOUND:
        end_look_up(functions, numbers)
        return status, first_at, root, last, depth
    return 0, first_at, root, last, depth


@inlined
def end_look_up(functions: I64, numbers: I64) -> None:
    """End the transaction. It is kept for the next one, but the values that it has shown are gone."""
    call_c(functions[RESET], numbers[TRANSACTION], 0, 0, 0)


@compiled(makes_arrays=True)
def look_up_bound(frame_at: int, count: int) -> int:
    """Look up the frame's first `count` keys. Returns 0 or LMDB's error.

    A profile above PROFILE_BYTES_MAX is cut off there: it is of another catalogue, and the kernel sees that.
    """
    functions = carray(address(frame_at, SLOT.functions), FUNCTION_COUNT, np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    values = carray(address(frame_at, SLOT.values), VALUE_WORDS, np.int64)
    starts = carray(address(frame_at, SLOT.key_starts), count, np.int64)
    sizes = carray(address(frame_at, SLOT.key_sizes), count, np.int64)
    states = carray(address(frame_at, SLOT.states), size(frame_at, SLOT.states), np.uint8)
    bounds = carray(address(frame_at, SLOT.bounds), count + 1, np.int64)
    presence = carray(address(frame_at, SLOT.presence), count, np.uint8)
    keys_at, values_at = address_number(frame_at, SLOT.keys), address_number(frame_at, SLOT.values)
    status, first_at, root, last, depth = begin_look_up(
        *(functions, numbers, address_number(frame_at, SLOT.numbers), values, values_at),
        *(address_number(frame_at, SLOT.complete_key), size(frame_at, SLOT.complete_key)),
    )
    if status != 0:
        return status
    room = size(frame_at, SLOT.found) // 3
    found = carray(address(frame_at, SLOT.found), (3, room), np.int64)
    value_starts, value_sizes = found[0], found[1]
    if depth == 0 or not find_all(
        *(keys_at, starts, sizes, count, first_at, root, last, depth, numbers[PAGE_BYTES]),
        *(value_starts, value_sizes, found[2]),
    ):
        status = get_all(
            functions, numbers, values, values_at, keys_at, starts, sizes, count, value_starts, value_sizes
        )
        if status != 0:
            end_look_up(functions, numbers)
            return status
    position = 0
    bounds[0] = 0
    for item in range(count):
        if sizes[item] == 0:
            presence[item] = ABSENT
        elif value_sizes[item] < 0:
            presence[item] = UNKNOWN
        else:
            length = min(value_sizes[item], numbers[PROFILE_BYTES_MAX])
            position = copy_bytes(carray(pointer(value_starts[item]), length, np.uint8), 0, length, states, position)
            presence[item] = KNOWN
        bounds[item + 1] = position
    end_look_up(functions, numbers)
    return 0
