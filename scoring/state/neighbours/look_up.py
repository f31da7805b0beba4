"""The compiled half of `NeighbourReader`: looks up profiles by identity, all of a chunk as of one transaction.

    identities ─► keys of records ─► find all ─► keys of profiles, in the mirror's file ─► find all ─► copy

The keys of the profiles are not copied: the second search reads them in the mirror's file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import ABSENT, I64, IDENTITY_BIT, KNOWN, U8, UNKNOWN
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes, is_same
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
    TRIES_MAX,
    WORD_BYTES,
    begin_read,
    find_all,
    is_current,
)
from paywarden.scoring.state.mirror_look_up import copy_value

# Places in `limits`: the size of the index's mark, and that of the largest profile.
MARK_BYTES, PROFILE_BYTES_MAX = range(2)
LIMIT_COUNT = 2
IDENTITY_DIGITS = 16
# The same as KEY_BYTES_MAX in features/stores/base.py, which holds no compiled code.
_KEY_BYTES_MAX = 511
_ZERO, _LETTERS_AFTER = 48, 39


class NeighbourSlots(NamedTuple):
    """The frame of `look_up_neighbours`. A payment has one neighbour for each place; places are the same for all."""

    numbers: int
    """The numbers of the opened mirror, as in the frame of its own look-up (mirror_look_up.LookUpSlots)."""
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
def _begins_with(text: U8, at: int, text_size: int, prefixes: U8, start: int, end: int) -> bool:
    """Whether text[at:at + text_size] begins with prefixes[start:end], and goes on."""
    return bool(text_size > end - start and is_same(text, at, prefixes, start, end - start))


@compiled()
def _put_keys(identities: I64, prefixes: U8, prefix_bounds: I64, keys: U8, starts: I64, sizes: I64) -> int:
    """Write the keys of the records, an empty one where there is no neighbour. Returns how many bytes they take."""
    places, at = len(prefix_bounds) - 1, 0
    for item in range(len(identities)):
        starts[item], sizes[item] = at, 0
        if identities[item] < IDENTITY_BIT:
            continue
        start, end = prefix_bounds[item % places], prefix_bounds[item % places + 1]
        at = _put_hex(identities[item], keys, copy_bytes(prefixes, start, end - start, keys, at))
        sizes[item] = at - starts[item]
    return at


@compiled()
def _look_up(
    words: I64,
    data: U8,
    numbers: I64,
    keys: U8,
    starts: I64,
    sizes: I64,
    prefixes: U8,
    prefix_bounds: I64,
    limits: I64,
    found: I64,
    states: U8,
    bounds: I64,
    presence: U8,
) -> int:
    """Look up in one turn. `starts` and `sizes` then stand for the keys of the profiles, in `data`."""
    status: int = begin_read(words, numbers)
    if status != OK:
        return status
    count, places = len(sizes), len(prefix_bounds) - 1
    is_whole = find_all(words, data, numbers, keys, starts, sizes, count, found[0], found[1], found[2])
    for item in range(count):
        presence[item] = ABSENT if sizes[item] == 0 else UNKNOWN
        start, end = prefix_bounds[item % places] + limits[MARK_BYTES], prefix_bounds[item % places + 1]
        starts[item], sizes[item] = found[0, item], found[1, item]
        if sizes[item] > _KEY_BYTES_MAX or not _begins_with(data, starts[item], sizes[item], prefixes, start, end):
            sizes[item] = 0
    is_whole &= find_all(words, data, numbers, data, starts, sizes, count, found[0], found[1], found[2])
    at = 0
    for item in range(count):
        if found[1, item] >= 0:
            at = copy_value(data, found[0, item], found[1, item], limits[PROFILE_BYTES_MAX], states, at)
            presence[item] = KNOWN
        bounds[item + 1] = at
    return OK if is_whole else DAMAGED


@compiled(makes_arrays=True)
def look_up_neighbours(frame_at: int, rows: int) -> int:
    """Look up the neighbours of the frame's first `rows` payments. Returns OK to BUSY of mirror_form.py.

    A record that names no profile of its entity counts as none. A profile above PROFILE_BYTES_MAX is cut off there.
    """
    places = size(frame_at, SLOT.prefix_bounds) - 1
    count = rows * places
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
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
    if numbers[MAPPED_AT] == 0:
        return CLOSED
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    data = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES], np.uint8)
    bounds[0] = 0
    for _ in range(TRIES_MAX):
        if _put_keys(identities, prefixes, prefix_bounds, keys, starts, sizes) == 0:
            presence[:] = ABSENT
            bounds[1:] = 0
            return OK
        status: int = _look_up(
            *(words, data, numbers, keys, starts, sizes, prefixes, prefix_bounds, limits, found),
            *(states, bounds, presence),
        )
        if status == GREW or is_current(words, numbers):
            return status
    return BUSY
