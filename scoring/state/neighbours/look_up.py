"""The compiled half of `NeighbourReader`: looks up profiles by identity, all of a chunk in one read transaction.

    identities ─► keys of records ─► find all ─► keys of profiles, where LMDB has them ─► find all ─► copy

The keys of the profiles are not copied: the second search reads them in the mirror's own pages.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import ABSENT, I64, IDENTITY_BIT, KNOWN, U8, UNKNOWN
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes
from paywarden.features.kernel.toolkit.frame import address, address_number, size
from paywarden.features.kernel.toolkit.intrinsics import byte_at, pointer
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.scoring.state.lmdb_pages import find_all
from paywarden.scoring.state.mirror_look_up import (
    FUNCTION_COUNT,
    NUMBER_COUNT,
    PAGE_BYTES,
    VALUE_WORDS,
    begin_look_up,
    end_look_up,
    get_all,
)

# Places in `limits`: the size of the index's mark, and that of the largest profile.
MARK_BYTES, PROFILE_BYTES_MAX = range(2)
LIMIT_COUNT = 2
IDENTITY_DIGITS = 16
# The same as KEY_BYTES_MAX in features/stores/base.py, which holds no compiled code.
_KEY_BYTES_MAX = 511
_ZERO, _LETTERS_AFTER = 48, 39


class NeighbourSlots(NamedTuple):
    """The frame of `look_up_neighbours`. A payment has one neighbour for each place; places are the same for all."""

    functions: int
    numbers: int
    values: int
    complete_key: int
    """These four are those of the mirror's own look-up, with its transaction (mirror_look_up.LookUpSlots)."""
    prefixes: int
    """uint8. How the keys of each place's records begin: the index's mark, the entity and a colon."""
    prefix_bounds: int
    """int64. Where in `prefixes` each one begins, and where the last one ends."""
    limits: int
    """MARK_BYTES and PROFILE_BYTES_MAX, int64. What follows the mark in a prefix is how the keys of profiles begin."""
    identities: int
    """Shape (payments, places), int64: an identity, or another number where there is no neighbour."""
    keys: int
    """uint8. Scratch space for the keys of all records."""
    key_starts: int
    key_sizes: int
    """int64, one for each payment and place. Scratch space."""
    found: int
    """Shape (3, payments * places), int64. Scratch space."""
    states: int
    """uint8. Filled: the profiles, one after the other."""
    bounds: int
    """int64. Filled: where each profile begins, and where the last one ends."""
    presence: int
    """uint8. Filled: KNOWN, UNKNOWN if the mirror has no such profile, or ABSENT where there is no neighbour."""


SLOT = positions(NeighbourSlots)


@inlined
def _put_hex(number: int, out: U8, at: int) -> int:
    """Write an identity as hex digits. Returns the position behind them."""
    for place in range(IDENTITY_DIGITS):
        digit = (number >> (4 * (IDENTITY_DIGITS - 1 - place))) & 15
        out[at + place] = _ZERO + digit + (_LETTERS_AFTER if digit > 9 else 0)
    return at + IDENTITY_DIGITS


@inlined
def _begins_with(text_at: int, text_size: int, prefixes: U8, start: int, end: int) -> bool:
    """Whether the text at an address begins with prefixes[start:end], and goes on."""
    if text_size <= end - start:
        return False
    is_same = True
    for place in range(start, end):
        is_same &= byte_at(text_at + place - start) == prefixes[place]
    return is_same


@inlined
def _find(
    functions: I64,
    numbers: I64,
    values: I64,
    values_at: int,
    keys_at: int,
    starts: I64,
    sizes: I64,
    pages: tuple[int, int, int, int],
    found: I64,
) -> int:
    """Find all keys that are not empty. Returns 0 or LMDB's error. `pages`: what `root_of` returns."""
    first_at, root, last, depth = pages
    count = len(sizes)
    if depth != 0 and find_all(
        *(keys_at, starts, sizes, count, first_at, root, last, depth, numbers[PAGE_BYTES]),
        *(found[0], found[1], found[2]),
    ):
        return 0
    status: int = get_all(functions, numbers, values, values_at, keys_at, starts, sizes, count, found[0], found[1])
    return status


@compiled(makes_arrays=True)
def look_up_neighbours(frame_at: int, rows: int) -> int:
    """Look up the neighbours of the frame's first `rows` payments. Returns 0 or LMDB's error.

    A record that names no profile of its entity counts as none. A profile above PROFILE_BYTES_MAX is cut off there.
    """
    places = size(frame_at, SLOT.prefix_bounds) - 1
    count = rows * places
    functions = carray(address(frame_at, SLOT.functions), FUNCTION_COUNT, np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    values = carray(address(frame_at, SLOT.values), VALUE_WORDS, np.int64)
    prefixes = carray(address(frame_at, SLOT.prefixes), size(frame_at, SLOT.prefixes), np.uint8)
    prefix_bounds = carray(address(frame_at, SLOT.prefix_bounds), places + 1, np.int64)
    limits = carray(address(frame_at, SLOT.limits), LIMIT_COUNT, np.int64)
    identities = carray(address(frame_at, SLOT.identities), count, np.int64)
    keys = carray(address(frame_at, SLOT.keys), size(frame_at, SLOT.keys), np.uint8)
    starts = carray(address(frame_at, SLOT.key_starts), count, np.int64)
    sizes = carray(address(frame_at, SLOT.key_sizes), count, np.int64)
    found = carray(address(frame_at, SLOT.found), (3, size(frame_at, SLOT.found) // 3), np.int64)
    states = carray(address(frame_at, SLOT.states), size(frame_at, SLOT.states), np.uint8)
    bounds = carray(address(frame_at, SLOT.bounds), count + 1, np.int64)
    presence = carray(address(frame_at, SLOT.presence), count, np.uint8)
    values_at = address_number(frame_at, SLOT.values)
    at, bounds[0] = 0, 0
    for item in range(count):
        starts[item], sizes[item], presence[item], bounds[item + 1] = at, 0, ABSENT, 0
        if identities[item] < IDENTITY_BIT:
            continue
        start, end = prefix_bounds[item % places], prefix_bounds[item % places + 1]
        at = _put_hex(identities[item], keys, copy_bytes(prefixes, start, end - start, keys, at))
        sizes[item], presence[item] = at - starts[item], UNKNOWN
    if at == 0:
        return 0
    status, first_at, root, last, depth = begin_look_up(
        *(functions, numbers, address_number(frame_at, SLOT.numbers), values, values_at),
        *(address_number(frame_at, SLOT.complete_key), size(frame_at, SLOT.complete_key)),
    )
    if status != 0:
        return status
    pages, keys_at = (first_at, root, last, depth), address_number(frame_at, SLOT.keys)
    status = _find(functions, numbers, values, values_at, keys_at, starts, sizes, pages, found)
    if status == 0:
        for item in range(count):
            start, end = prefix_bounds[item % places] + limits[MARK_BYTES], prefix_bounds[item % places + 1]
            key_at, key_size = found[0, item], found[1, item] if sizes[item] > 0 else 0
            is_key = key_size <= _KEY_BYTES_MAX and _begins_with(key_at, key_size, prefixes, start, end)
            starts[item], sizes[item] = key_at, key_size if is_key else 0
        status = _find(functions, numbers, values, values_at, 0, starts, sizes, pages, found)
    if status != 0:
        end_look_up(functions, numbers)
        return status
    at = 0
    for item in range(count):
        if sizes[item] > 0 and found[1, item] >= 0:
            length = min(found[1, item], limits[PROFILE_BYTES_MAX])
            at = copy_bytes(carray(pointer(found[0, item]), length, np.uint8), 0, length, states, at)
            presence[item] = KNOWN
        bounds[item + 1] = at
    end_look_up(functions, numbers)
    return 0
