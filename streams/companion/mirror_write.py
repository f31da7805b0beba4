"""The compiled half of `MirrorWriter`: writes a mirror's file, one transaction at a time (mirror_form.py).

    begin_write ─► put_all, move_segment, grow_index, in any number ─► commit_write

1. Records are only appended, to the *open* segment. What a transaction replaces stays where it is, and its segment has
   fewer *live* bytes from then on. A segment without any is free from the next transaction on.
2. `move_segment` appends the live records of a segment again, so that it becomes free.
3. Which segments are free, and how many bytes of each are live, is known in memory alone. `read_state` finds it out
   from the index, and takes back what a transaction that was never committed has left there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import I64, U8
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes, is_same
from paywarden.features.kernel.toolkit.intrinsics import fence, pointer, prefetch_element, store_atomic
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.scoring.state.mirror_form import (
    ALLOCATED_AT,
    BEGUN_AT,
    COMMITTED_AT,
    INDEX_BITS,
    INDEX_WORD,
    KEY_SIZE_BITS,
    LIMIT,
    MAPPED_AT,
    MAPPED_BYTES,
    META_AT,
    META_COMPLETE_TO_MS,
    META_ENTRIES,
    META_INDEX_AT,
    META_INDEX_BITS,
    META_PROFILES,
    META_TRANSACTION,
    META_USED,
    META_WORDS,
    NEWEST,
    RECORD_HASH,
    RECORD_HEAD_BYTES,
    RECORD_SIZES,
    SEGMENT_BYTES,
    SLOT_FIRST,
    SLOT_HASH,
    SLOT_PLACES,
    SLOT_SECOND,
    SLOT_WORDS,
    UNIT_BYTES,
    VERSION_BITS,
    WORD_BYTES,
    hash_of,
    home_of,
    sizes_at,
    version_at,
)

# What a segment is used for. Those behind the allocated end of the file are NO_ROOM.
NO_ROOM, FREE, RECORDS, INDEX, HEADER = range(5)
# The rows of `segments`: what each is used for, its live bytes, and the transaction that has freed it.
KIND, LIVE, FREED = range(3)
# Places in `state`: the segment that records are appended to (-1: none) and where, the segment where the search for a
# free one begins, and the number of records, of profiles among them, and of slots that were ever used.
OPEN, OPEN_AT, NEXT, ENTRIES, PROFILES, USED = range(6)
STATE_COUNT = 6
_UNITS_MASK = (1 << VERSION_BITS) - 1
_LOW_HALF = 0xFFFFFFFF
# How many slots before a slot is checked its record is prefetched.
_AHEAD = 16


@inlined
def record_bytes(key_size: int, value_size: int) -> int:
    """Returns how many bytes a record takes."""
    return (RECORD_HEAD_BYTES + key_size + value_size + UNIT_BYTES - 1) & -UNIT_BYTES


@inlined
def _size_of(version: int) -> int:
    return ((version & _UNITS_MASK) + 1) * UNIT_BYTES


@inlined
def _release(state: I64, segments: I64, segment: int, transaction: int) -> None:
    """Free a segment that has no live bytes, unless it is the open one."""
    if segments[LIVE, segment] == 0 and segments[KIND, segment] == RECORDS and segment != state[OPEN]:
        segments[KIND, segment], segments[FREED, segment] = FREE, transaction


@inlined
def _take_room(state: I64, segments: I64, size: int, transaction: int) -> int:
    """Returns the place of a new record; 0 if no segment is free."""
    opened = state[OPEN]
    if opened < 0 or state[OPEN_AT] + size > (opened + 1) * SEGMENT_BYTES:
        state[OPEN] = -1
        if opened >= 0:
            _release(state, segments, opened, transaction)
        count = segments.shape[1]
        for step in range(count):
            segment = (state[NEXT] + step) % count
            if segments[KIND, segment] == FREE and segments[FREED, segment] < transaction:
                segments[KIND, segment], segments[LIVE, segment] = RECORDS, 0
                state[OPEN], state[OPEN_AT], state[NEXT] = segment, segment * SEGMENT_BYTES, segment + 1
                break
        if state[OPEN] < 0:
            return 0
    place: int = state[OPEN_AT]
    state[OPEN_AT] += size
    segments[LIVE, state[OPEN]] += size
    return place


@inlined
def _put_version(words: I64, slot_at: int, version: int, place: int) -> None:
    """Write a version over a slot's older one. Readers as of the transaction before go by the newer one."""
    places = words[slot_at + SLOT_PLACES]
    if words[slot_at + SLOT_FIRST] <= words[slot_at + SLOT_SECOND]:
        words[slot_at + SLOT_PLACES] = (places & ~_LOW_HALF) | (place // UNIT_BYTES)
        fence()
        words[slot_at + SLOT_FIRST] = version
    else:
        words[slot_at + SLOT_PLACES] = (places & _LOW_HALF) | ((place // UNIT_BYTES) << 32)
        fence()
        words[slot_at + SLOT_SECOND] = version


@inlined
def _slot_for(
    words: I64, data: U8, numbers: I64, hashed: int, keys: U8, start: int, size: int, transaction: int
) -> tuple[int, bool]:
    """Returns the slot of a key, and True; or the slot that it may take, or -1, and False."""
    bits, index = numbers[INDEX_BITS], numbers[INDEX_WORD]
    mask, slot, free = (1 << bits) - 1, home_of(hashed, bits), -1
    for _ in range(mask + 1):
        slot_at = index + slot * SLOT_WORDS
        found = words[slot_at + SLOT_HASH]
        if found == 0:
            return (slot_at if free < 0 else free), False
        version, place = version_at(words, slot_at, NEWEST)
        if place == 0:
            # A key that was deleted in this very transaction is still there for readers.
            if free < 0 and version >> VERSION_BITS < transaction:
                free = slot_at
        elif found == hashed:
            key_size, _ = sizes_at(words, place, numbers[LIMIT])
            if key_size == size and is_same(keys, start, data, place + RECORD_HEAD_BYTES, size):
                return slot_at, True
        slot = (slot + 1) & mask
    return free, False


@inlined
def _forget(words: I64, state: I64, segments: I64, slot_at: int, transaction: int) -> None:
    """Note that the record of a slot is replaced."""
    version, place = version_at(words, slot_at, NEWEST)
    segment = place // SEGMENT_BYTES
    segments[LIVE, segment] -= _size_of(version)
    _release(state, segments, segment, transaction)


@compiled()
def _put(
    words: I64,
    data: U8,
    numbers: I64,
    state: I64,
    segments: I64,
    transaction: int,
    hashed: int,
    keys: U8,
    key: int,
    key_size: int,
    values: U8,
    value: int,
    value_size: int,
) -> bool:
    """Put a key's value, or delete the key: size -1. Returns False without room."""
    slot_at, is_there = _slot_for(words, data, numbers, hashed, keys, key, key_size, transaction)
    is_profile = 1 if keys[key] != 0 else 0
    if value_size < 0:
        if is_there:
            _forget(words, state, segments, slot_at, transaction)
            _put_version(words, slot_at, transaction << VERSION_BITS, 0)
            state[ENTRIES] -= 1
            state[PROFILES] -= is_profile
        return True
    size = record_bytes(key_size, value_size)
    place = _take_room(state, segments, size, transaction)
    if place == 0 or slot_at < 0:
        return False
    words[place // WORD_BYTES + RECORD_HASH] = hashed
    words[place // WORD_BYTES + RECORD_SIZES] = value_size << KEY_SIZE_BITS | key_size
    at = copy_bytes(keys, key, key_size, data, place + RECORD_HEAD_BYTES)
    copy_bytes(values, value, value_size, data, at)
    if is_there:
        _forget(words, state, segments, slot_at, transaction)
    else:
        state[ENTRIES] += 1
        state[PROFILES] += is_profile
        if words[slot_at + SLOT_HASH] == 0:
            state[USED] += 1
        words[slot_at + SLOT_HASH] = hashed
    _put_version(words, slot_at, transaction << VERSION_BITS | (size // UNIT_BYTES - 1), place)
    return True


@compiled(makes_arrays=True)
def note_allocated(numbers: I64, allocated: int) -> None:
    """Say how many bytes of the file have memory."""
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    store_atomic(words, ALLOCATED_AT, allocated)
    numbers[LIMIT] = allocated


@compiled(makes_arrays=True)
def begin_write(numbers: I64, transaction: int) -> None:
    """Say that a transaction has begun: from now on, look-ups as of the last but one before it begin again."""
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    store_atomic(words, BEGUN_AT, transaction)
    fence()


@compiled(makes_arrays=True)
def put_all(
    numbers: I64,
    state: I64,
    segments: I64,
    transaction: int,
    keys: U8,
    key_bounds: I64,
    values: U8,
    value_bounds: I64,
    erases: U8,
    hashes: I64,
) -> bool:
    """Put values, or delete keys where `erases` is 1. Returns False if there is no room; then nothing may be committed.

    Key i is keys[key_bounds[i]:key_bounds[i + 1]], and so are the values. `hashes` is scratch space.
    """
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    data = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES], np.uint8)
    index, bits = numbers[INDEX_WORD], numbers[INDEX_BITS]
    for item in range(len(hashes)):
        hashes[item] = hash_of(words, keys, key_bounds[item], key_bounds[item + 1])
        prefetch_element(words, index + home_of(hashes[item], bits) * SLOT_WORDS)
    for item in range(len(hashes)):
        slot_at = index + home_of(hashes[item], bits) * SLOT_WORDS
        if words[slot_at + SLOT_HASH] == hashes[item]:
            prefetch_element(words, version_at(words, slot_at, NEWEST)[1] // WORD_BYTES)
    for item in range(len(hashes)):
        key, value = key_bounds[item], value_bounds[item]
        key_size = key_bounds[item + 1] - key
        value_size = value_bounds[item + 1] - value if erases[item] == 0 else -1
        if not _put(
            *(words, data, numbers, state, segments, transaction, hashes[item]),
            *(keys, key, key_size, values, value, value_size),
        ):
            return False
    return True


@compiled(makes_arrays=True)
def move_segment(numbers: I64, state: I64, segments: I64, transaction: int, segment: int) -> bool:
    """Append the live records of a segment again, which frees it. Returns False if there is no room, or for damage."""
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    data = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES], np.uint8)
    place = segment * SEGMENT_BYTES
    bits, index = numbers[INDEX_BITS], numbers[INDEX_WORD]
    mask = (1 << bits) - 1
    while segments[LIVE, segment] > 0:
        key_size, value_size = sizes_at(words, place, (segment + 1) * SEGMENT_BYTES)
        if key_size < 0:
            return False
        hashed, size = words[place // WORD_BYTES + RECORD_HASH], record_bytes(key_size, value_size)
        slot = home_of(hashed, bits)
        for _ in range(mask + 1):
            slot_at = index + slot * SLOT_WORDS
            if words[slot_at + SLOT_HASH] == 0:
                break
            if version_at(words, slot_at, NEWEST)[1] == place:
                new = _take_room(state, segments, size, transaction)
                if new == 0:
                    return False
                copy_bytes(data, place, size, data, new)
                _forget(words, state, segments, slot_at, transaction)
                _put_version(words, slot_at, transaction << VERSION_BITS | (size // UNIT_BYTES - 1), new)
                break
            slot = (slot + 1) & mask
        place += size
    return True


@compiled(makes_arrays=True)
def grow_index(numbers: I64, state: I64, index_at: int, bits: int, is_emptied: bool) -> None:
    """Make an index with 2 ** `bits` slots at a place in the file, with all that the present one has, or nothing."""
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    old, slots, new, mask = numbers[INDEX_WORD], 1 << numbers[INDEX_BITS], index_at // WORD_BYTES, (1 << bits) - 1
    words[new : new + (SLOT_WORDS << bits)] = 0
    if is_emptied:
        slots = 0
        state[OPEN], state[ENTRIES], state[PROFILES] = -1, 0, 0
    for number in range(slots):
        version, place = version_at(words, old + number * SLOT_WORDS, NEWEST)
        if place == 0:
            continue
        hashed = words[old + number * SLOT_WORDS + SLOT_HASH]
        slot = home_of(hashed, bits)
        while words[new + slot * SLOT_WORDS + SLOT_HASH] != 0:
            slot = (slot + 1) & mask
        slot_at = new + slot * SLOT_WORDS
        words[slot_at + SLOT_HASH], words[slot_at + SLOT_FIRST] = hashed, version
        words[slot_at + SLOT_PLACES] = place // UNIT_BYTES
    state[USED] = state[ENTRIES]
    numbers[INDEX_WORD], numbers[INDEX_BITS] = new, bits


@compiled(makes_arrays=True)
def commit_write(numbers: I64, state: I64, transaction: int, complete_to_ms: int) -> None:
    """Let readers see a transaction."""
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    meta = META_AT + (transaction & 1) * META_WORDS
    words[meta + META_TRANSACTION], words[meta + META_COMPLETE_TO_MS] = transaction, complete_to_ms
    words[meta + META_INDEX_AT], words[meta + META_INDEX_BITS] = numbers[INDEX_WORD] * WORD_BYTES, numbers[INDEX_BITS]
    words[meta + META_ENTRIES], words[meta + META_PROFILES] = state[ENTRIES], state[PROFILES]
    words[meta + META_USED] = state[USED]
    fence()
    store_atomic(words, COMMITTED_AT, transaction)


@inlined
def _is_whole(words: I64, data: U8, numbers: I64, slot_at: int, version: int, place: int) -> bool:
    """Whether the record of a slot is there, with the key that the slot's hash is of."""
    key_size, value_size = sizes_at(words, place, numbers[LIMIT])
    if key_size < 0 or _size_of(version) != record_bytes(key_size, value_size):
        return False
    hashed, key = words[slot_at + SLOT_HASH], place + RECORD_HEAD_BYTES
    if words[place // WORD_BYTES + RECORD_HASH] != hashed or place % UNIT_BYTES != 0:
        return False
    return bool(hash_of(words, data, key, key + key_size) == hashed)


@inlined
def _fetch_record(words: I64, numbers: I64, slot: int) -> None:
    if slot < 1 << numbers[INDEX_BITS]:
        slot_at = numbers[INDEX_WORD] + slot * SLOT_WORDS
        prefetch_element(words, version_at(words, slot_at, NEWEST)[1] // WORD_BYTES)


@compiled(makes_arrays=True)
def check_slots(numbers: I64, first: int, count: int) -> bool:
    """Whether the records of some slots are whole. A range beyond the end of the index ends there."""
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    data = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES], np.uint8)
    for slot in range(first, min(first + count, 1 << numbers[INDEX_BITS])):
        _fetch_record(words, numbers, slot + _AHEAD)
        slot_at = numbers[INDEX_WORD] + slot * SLOT_WORDS
        version, place = version_at(words, slot_at, NEWEST)
        if place != 0 and not _is_whole(words, data, numbers, slot_at, version, place):
            return False
    return True


@compiled(makes_arrays=True)
def read_state(numbers: I64, state: I64, segments: I64, transaction: int) -> bool:
    """Find out the state of a file whose newest transaction this is, and take back what a later one has left.

    All segments with room must be FREE in `segments`, but for the header's. Returns False if the file is damaged.
    """
    words = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES] // WORD_BYTES, np.int64)
    data = carray(pointer(numbers[MAPPED_AT]), numbers[MAPPED_BYTES], np.uint8)
    index = numbers[INDEX_WORD]
    state[OPEN], state[NEXT], state[ENTRIES], state[PROFILES], state[USED] = -1, 0, 0, 0, 0
    first = index * WORD_BYTES // SEGMENT_BYTES
    segments[KIND, first : first + (((SLOT_WORDS * WORD_BYTES) << numbers[INDEX_BITS]) // SEGMENT_BYTES)] = INDEX
    for slot in range(1 << numbers[INDEX_BITS]):
        _fetch_record(words, numbers, slot + _AHEAD)
        slot_at = index + slot * SLOT_WORDS
        if words[slot_at + SLOT_HASH] == 0:
            continue
        state[USED] += 1
        if words[slot_at + SLOT_FIRST] >> VERSION_BITS > transaction:
            words[slot_at + SLOT_FIRST] = 0
            words[slot_at + SLOT_PLACES] &= ~_LOW_HALF
        if words[slot_at + SLOT_SECOND] >> VERSION_BITS > transaction:
            words[slot_at + SLOT_SECOND] = 0
            words[slot_at + SLOT_PLACES] &= _LOW_HALF
        version, place = version_at(words, slot_at, transaction)
        if place == 0:
            continue
        segment = place // SEGMENT_BYTES
        if not _is_whole(words, data, numbers, slot_at, version, place) or segments[KIND, segment] not in (
            FREE,
            RECORDS,
        ):
            return False
        segments[KIND, segment] = RECORDS
        segments[LIVE, segment] += _size_of(version)
        state[ENTRIES] += 1
        state[PROFILES] += 1 if data[place + RECORD_HEAD_BYTES] != 0 else 0
    meta = META_AT + (transaction & 1) * META_WORDS
    return bool(words[meta + META_ENTRIES] == state[ENTRIES] and words[meta + META_PROFILES] == state[PROFILES])


def warm_up() -> None:
    """Load or compile all steps."""
    numbers, table, texts = "int64[::1]", "int64[:,::1]", "uint8[::1]"
    arrays = f"{texts}, {numbers}, {texts}, {numbers}, {texts}, {numbers}"
    signatures: dict[Any, str] = {
        note_allocated: f"void({numbers}, int64)",
        begin_write: f"void({numbers}, int64)",
        put_all: f"boolean({numbers}, {numbers}, {table}, int64, {arrays})",
        move_segment: f"boolean({numbers}, {numbers}, {table}, int64, int64)",
        grow_index: f"void({numbers}, {numbers}, int64, int64, boolean)",
        commit_write: f"void({numbers}, {numbers}, int64, int64)",
        check_slots: f"boolean({numbers}, int64, int64)",
        read_state: f"boolean({numbers}, {numbers}, {table}, int64)",
    }
    for function, signature in signatures.items():
        function.compile(signature)
