"""The compiled half of overlay.py: a table of the payments that a host has answered, without a lock.

Two arrays of int64 in shared memory:

    table    head │ directory: buckets of 8 slots │ rows, used in turn            workers write it, workers read it
    marks    head │ buckets of 8: 8 tags │ 8 sources and times │ 8 offsets        the companion writes it

A *row* is one payment: 2 * number + 1 │ moment │ tag │ an entity's hash, for each │ the next row, for
each │ the cut, for each │ attributes. The *tag* is a hash of the payment's id. A *slot* of the directory is one entity,
in one word: some bits of its hash, and the number of its newest row. A bucket is one line of the processor's cache.
Most entities have nothing pending, and one look at their two buckets says so. Each row names the entity's row before
it:

    card C1 ─► row 907 ─► row 311 ─► 0            a payment of C1 reads 907, then 311

1. `add_all` takes the next row by compare-and-swap of its first word, which is then even: nobody reads the row. It
   writes the row, makes the first word odd, and links the row to each of its entities.
2. A worker that is killed in between leaves a row that nobody reads, or that some of its entities know. The payment
   had no answer yet. The next round through the rows leaves out a row whose first word is even.
3. A row is used again when it is twice as old as the lifetime. A reader that finds another number in a row than its
   link says is at the end of the entity's rows.
4. A slot is used again when its newest row is that old, by compare-and-swap of its one word.
5. A reader (overlay_reader.py) takes a payment's rows, the newest first, and adds those to the profile
   that it does not contain.
6. `mark_all` notes where on Kafka a payment stands. A profile says up to which offset of each partition it contains
   payments. For a payment with a mark, the two offsets tell whether the profile contains it. A payment without a mark
   is in no profile of the mirror, because the companion writes marks before profiles.
7. A reader that finds an entity's oldest rows contained notes the mirror's transaction in the newest of these rows, its
   *cut* for this entity. Profiles lose no payment, so a reader of this transaction or a later one ends there. The cut
   of a row that is not cut holds the row's negative number: a reader that slept while the row was used again changes
   nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import I64, TIME_MS
from paywarden.features.kernel.plan_schema import HEAD, positions
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.intrinsics import load_atomic, store_atomic, swap_atomic
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.update import mix

# The head of the table: the kind of file, the catalogue's digest, its sizes; and the number of
# the newest row, which all workers change and which has a cache line to itself.
MAGIC_AT, DIGEST_AT, ENTITIES_AT, WIDTH_AT, ROWS_AT, BUCKETS_AT, NEXT_AT = 0, 1, 2, 3, 4, 5, 8
HEAD_SIZE = 16
# Eight words are a line of the cache.
BUCKET_SLOTS = BUCKET_SIZE = 8
# A slot: the low bits of the number of the newest row, and above them bits of the entity's hash, never 0.
NUMBER_BITS = 37
_NUMBER_MASK = (1 << NUMBER_BITS) - 1
_PRINT_MASK = (1 << 26) - 1
# A row. Hashes, links, cuts and attributes follow.
STATE, MOMENT, TAG, ROW_HEAD = range(4)
# The head of the marks: the mirror's newest transaction whose payments are all marked, and the time until which nobody
# knows which payments profiles contain.
MARK_MAGIC_AT, MARK_BUCKETS_AT, MARK_SNAPSHOT_AT, MARK_UNSURE_UNTIL_AT = 0, 1, 8, 9
MARK_HEAD_SIZE = 16
MARK_BUCKET_SIZE = 3 * BUCKET_SLOTS
SOURCE_SHIFT = 40
_MOMENT_MASK = (1 << SOURCE_SHIFT) - 1
# Rows that are being written, or were left so, are passed over.
_ROWS_TRIED = 8
_LINKS_TRIED = 64

# The numbers of a call, one int64 array. The first ones are given: the moment, the lifetime, the most payments that are
# added to one profile, the mirror's transaction that profiles were read in, and the first moment whose rows are still
# pending. The others are results.
NOW_MS, LIFE_MS, EVENTS_MAX, SNAPSHOT, PENDING_FROM_MS = range(5)
IS_SURE, FOLDED, LEFT_OUT, ADDED, FULL, UNTIMELY = range(5, 11)
# A result: how many rows of the table the walks have looked at.
VISITED = 11
# State that a worker keeps from call to call, to know old rows by their numbers: rows up to OVER are older than the
# lifetime; the newest row as the last call saw it; and, for each sixteenth of a lifetime, a moment before which all
# rows up to a number were made. A worker begins with zeros.
OVER, SEEN, SAMPLES_AT, SAMPLES = 12, 13, 14, 32
NUMBER_COUNT = SAMPLES_AT + 2 * SAMPLES
# The sizes of a table, as its owner has checked them: compiled code takes none from memory that others may write.
SHAPE_ENTITIES, SHAPE_WIDTH, SHAPE_ROWS, SHAPE_BUCKETS, SHAPE_MARK_BUCKETS = range(5)
SHAPE_COUNT = 5


class OverlaySlots(NamedTuple):
    """The frame of `fill_hashed` and `add_bound`: arguments of `fill_with_pending`."""

    plan: int
    attributes: int
    presence: int
    states: int
    bounds: int
    words: int
    values: int
    out: int
    table: int
    marks: int
    shape: int
    hashes: int
    tags: int
    chain: int
    row: int
    folded: int
    numbers: int
    hops: int


SLOT = positions(OverlaySlots)


@inlined
def row_size(entities: int, width: int) -> int:
    """Returns the number of words of a row: whole lines of the cache."""
    return (ROW_HEAD + 3 * entities + width + 7) // 8 * 8


@inlined
def row_at(shape: I64, number: int) -> int:
    """Returns where the row with this number stands. Numbers count from 1."""
    place = ((number - 1) & 0x7FFFFFFFFFFFFFFF) % shape[SHAPE_ROWS]
    size_of_row = row_size(shape[SHAPE_ENTITIES], shape[SHAPE_WIDTH])
    return int(HEAD_SIZE + shape[SHAPE_BUCKETS] * BUCKET_SIZE + place * size_of_row)


@inlined
def bucket_at(shape: I64, mixed: int, choice: int) -> int:
    """Returns where an entity's first or second bucket begins. `mixed` is the entity's hash, mixed."""
    bucket = ((mixed >> 31) * shape[SHAPE_BUCKETS] >> 32) + choice
    if bucket == shape[SHAPE_BUCKETS]:
        bucket = 0
    return int(HEAD_SIZE + bucket * BUCKET_SIZE)


@inlined
def print_of(mixed: int) -> int:
    """Returns the bits of an entity's hash that its slot holds."""
    return int(mixed & _PRINT_MASK | 1)


@inlined
def number_of(word: int, next_number: int) -> int:
    """Returns the number of a slot's newest row, from its low bits and a number that is not far from it."""
    return int(next_number + (((word - next_number) << (64 - NUMBER_BITS)) >> (64 - NUMBER_BITS)))


@inlined
def _is_over(table: I64, at: int, now_ms: int, life_ms: int) -> bool:
    """Whether a row that is written can be used again. A moment in the future is of a clock before the host's start."""
    age_ms = now_ms - load_atomic(table, at + MOMENT)
    return bool(age_ms > 2 * life_ms or age_ms < -life_ms)


@compiled()
def _take_row(table: I64, shape: I64, now_ms: int, life_ms: int) -> int:
    """Returns the number of a row that this caller may write now, 0 when all rows are in use."""
    for _ in range(_ROWS_TRIED):
        number = load_atomic(table, NEXT_AT) + 1
        at = row_at(shape, number)
        state = load_atomic(table, at + STATE)
        is_written = state & 1 == 1
        if is_written and not _is_over(table, at, now_ms, life_ms):
            return 0
        if swap_atomic(table, NEXT_AT, number - 1, number) == 0:
            continue
        if (is_written or state == 0) and swap_atomic(table, at + STATE, state, 2 * number) == 1:
            return int(number)
    return 0


@inlined
def _is_free(table: I64, shape: I64, word: int, next_number: int, now_ms: int, life_ms: int) -> bool:
    """Whether a slot of the directory can be used for another entity."""
    number = number_of(word, next_number)
    # A whole round has passed: nobody need look at the row, even if it is in use again.
    if word == 0 or next_number - number >= shape[SHAPE_ROWS]:
        return True
    at = row_at(shape, number)
    return bool(load_atomic(table, at + STATE) >> 1 != number or _is_over(table, at, now_ms, life_ms))


@compiled()
def _slot_of(table: I64, shape: I64, mixed: int, next_number: int, now_ms: int, life_ms: int) -> int:
    """Returns the slot of an entity, one that is free if it has none; -1 if both of its buckets are full."""
    for choice in range(2):
        bucket = bucket_at(shape, mixed, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            if load_atomic(table, slot) >> NUMBER_BITS == print_of(mixed):
                return slot
    # The first one that says so itself; only then one whose row says so, which is elsewhere in memory.
    for reads_rows in range(2):
        for choice in range(2):
            bucket = bucket_at(shape, mixed, choice)
            for slot in range(bucket, bucket + BUCKET_SLOTS):
                word = load_atomic(table, slot)
                if word == 0 or next_number - number_of(word, next_number) >= shape[SHAPE_ROWS]:
                    return slot
                if reads_rows == 1 and _is_free(table, shape, word, next_number, now_ms, life_ms):
                    return slot
    return -1


@compiled()
def _link(table: I64, shape: I64, number: int, entity: int, wanted: int, now_ms: int, life_ms: int) -> bool:
    """Make a row the newest one of an entity. Returns False if there is no room."""
    at = row_at(shape, number) + ROW_HEAD + shape[SHAPE_ENTITIES] + entity
    mixed = mix(wanted)
    for _ in range(_LINKS_TRIED):
        next_number = load_atomic(table, NEXT_AT)
        slot = _slot_of(table, shape, mixed, next_number, now_ms, life_ms)
        if slot < 0:
            return False
        word = load_atomic(table, slot)
        newest = number_of(word, next_number)
        if word >> NUMBER_BITS != print_of(mixed):
            if not _is_free(table, shape, word, next_number, now_ms, life_ms):
                # Another worker has taken it since.
                continue
            newest = 0
        table[at] = newest
        if swap_atomic(table, slot, word, print_of(mixed) << NUMBER_BITS | number & _NUMBER_MASK) == 1:
            return True
    return False


@compiled()
def add_all(
    table: I64,
    shape: I64,
    attributes: I64,
    hashes: I64,
    tags: I64,
    numbers: I64,
    now_ms: int,
    earliest_ms: int,
    latest_ms: int,
) -> None:
    """Add payments that are answered, if their times are from `earliest_ms` to `latest_ms`.

    `now_ms`: by the host's own clock.

    `attributes` has shape (payments, row width), `hashes` (payments * entities,), 0 where a payment has no such entity.
    numbers[ADDED], [FULL] and [UNTIMELY] count them.
    """
    entities, width = shape[SHAPE_ENTITIES], shape[SHAPE_WIDTH]
    life_ms = numbers[LIFE_MS]
    numbers[ADDED] = numbers[FULL] = numbers[UNTIMELY] = 0
    for payment in range(len(attributes)):
        if attributes[payment, TIME_MS] < earliest_ms or attributes[payment, TIME_MS] > latest_ms:
            numbers[UNTIMELY] += 1
            continue
        number = _take_row(table, shape, now_ms, life_ms)
        if number == 0:
            numbers[FULL] += 1
            continue
        at = row_at(shape, number)
        table[at + MOMENT] = now_ms
        table[at + TAG] = tags[payment]
        for entity in range(entities):
            table[at + ROW_HEAD + entity] = hashes[payment * entities + entity]
            table[at + ROW_HEAD + entities + entity] = 0
            table[at + ROW_HEAD + 2 * entities + entity] = -number
        for column in range(width):
            table[at + ROW_HEAD + 3 * entities + column] = attributes[payment, column]
        store_atomic(table, at + STATE, 2 * number + 1)
        has_room = True
        for entity in range(entities):
            wanted = hashes[payment * entities + entity]
            if wanted != 0:
                has_room &= _link(table, shape, number, entity, wanted, now_ms, life_ms)
        numbers[ADDED if has_room else FULL] += 1


@compiled()
def erase(table: I64, shape: I64, entity: int, wanted: int) -> int:
    """Erase every payment of an entity: its rows stay as links, with nothing in them. Returns how many there were."""
    entities, width, erased = shape[SHAPE_ENTITIES], shape[SHAPE_WIDTH], 0
    for place in range(shape[SHAPE_ROWS]):
        at = row_at(shape, place + 1)
        state = load_atomic(table, at + STATE)
        if state & 1 == 0 or table[at + ROW_HEAD + entity] != wanted:
            continue
        if swap_atomic(table, at + STATE, state, state - 1) == 0:
            continue
        table[at + TAG] = 0
        for column in range(width):
            table[at + ROW_HEAD + 3 * entities + column] = 0
        store_atomic(table, at + STATE, state)
        erased += 1
    return erased


@inlined
def mark_bucket_at(shape: I64, tag: int, choice: int) -> int:
    return int(MARK_HEAD_SIZE + (mix(tag) + choice) % shape[SHAPE_MARK_BUCKETS] * MARK_BUCKET_SIZE)


@compiled()
def mark_all(marks: I64, shape: I64, tags: I64, sources: I64, offsets: I64, now_ms: int, keep_ms: int) -> int:
    """Note where payments stand on Kafka. Returns how many younger marks had to give way: their payments are unsure.

    A mark that is a little of the future is a young one: the clock has jumped back. One of later is of another clock.
    """
    lost = 0
    for payment in range(len(tags)):
        tag = tags[payment]
        best, oldest_ms = -1, now_ms + keep_ms + 1
        for choice in range(2):
            bucket = mark_bucket_at(shape, tag, choice)
            for slot in range(bucket, bucket + BUCKET_SLOTS):
                moment_ms = marks[slot + BUCKET_SLOTS] & _MOMENT_MASK
                if marks[slot] == tag:
                    moment_ms = -1
                elif marks[slot] == 0 or moment_ms > now_ms + keep_ms:
                    moment_ms = 0
                if moment_ms < oldest_ms:
                    best, oldest_ms = slot, moment_ms
        if marks[best] != tag:
            if marks[best] != 0 and now_ms - oldest_ms <= keep_ms:
                lost += 1
            # A reader that sees the tag sees its source, time and offset.
            store_atomic(marks, best, 0)
        store_atomic(marks, best + 2 * BUCKET_SLOTS, offsets[payment])
        store_atomic(marks, best + BUCKET_SLOTS, sources[payment] << SOURCE_SHIFT | now_ms)
        store_atomic(marks, best, tag)
    return lost


@compiled(makes_arrays=True)
def add_bound(frame_at: int, rows: int, now_ms: int, earliest_ms: int, latest_ms: int) -> int:
    """Run `add_all` for the first `rows` payments of a frame, those of its last `fill_hashed`.

    Returns how many were not added.
    """
    plan = carray(address(frame_at, SLOT.plan), size(frame_at, SLOT.plan), np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), size(frame_at, SLOT.numbers), np.int64)
    add_all(
        carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64),
        carray(address(frame_at, SLOT.shape), size(frame_at, SLOT.shape), np.int64),
        carray(address(frame_at, SLOT.attributes), (rows, plan[HEAD.row_width]), np.int64),
        carray(address(frame_at, SLOT.hashes), size(frame_at, SLOT.hashes), np.int64),
        carray(address(frame_at, SLOT.tags), size(frame_at, SLOT.tags), np.int64),
        numbers,
        now_ms,
        earliest_ms,
        latest_ms,
    )
    return int(rows - numbers[ADDED])
