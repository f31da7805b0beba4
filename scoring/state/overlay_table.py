"""The compiled half of scoring/state/overlay.py: a table of the payments that a host has answered, without a lock.

Two arrays of int64 in shared memory:

    table    head │ directory: buckets of 8 slots │ rows, used in turn            workers write it, workers read it
    marks    head │ buckets of 8: 8 tags │ 8 sources and times │ 8 offsets        the companion writes it

A *row* is one payment: 2 * number + 1 │ moment │ tag │ check │ origin │ an entity's hash, for each │ the next row, for
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
5. `fill_with_pending` reads a payment's rows, the newest first, and adds those to the profile that it does not contain.
6. `mark_all` notes where on Kafka a payment stands. A profile says up to which offset of each partition it contains
   payments. So a payment with a mark is in the profile, or not; a payment without a mark is in no profile that the
   mirror holds, since the companion writes marks before profiles.
7. A reader that finds an entity's oldest rows contained notes the mirror's transaction in the newest of these rows, its
   *cut* for this entity. Profiles lose no payment, so a reader of this transaction or a later one ends there. The cut
   of a row that is not cut holds the row's negative number: a reader that slept while the row was used again changes
   nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.assemble import assemble
from paywarden.features.kernel.codec import clear, unpack
from paywarden.features.kernel.layout import (
    ABSENT,
    F32,
    F64,
    I64,
    KNOWN,
    LENGTHS_AT,
    OK,
    PAYMENT,
    SOURCES_MAX,
    STATUS_UNIT,
    TAG_MIN,
    TIME_MS,
    U8,
    UNKNOWN,
)
from paywarden.features.kernel.plan_schema import ENTITY, HEAD, entity_at, positions
from paywarden.features.kernel.rollup import clear_slots, roll_up
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.intrinsics import (
    call_c,
    load_atomic,
    prefetch_element,
    store_atomic,
    swap_atomic,
)
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.update import mix, update

# The head of the table: what file it is, the catalogue's digest, its sizes; and the number of the newest row, which all
# workers change and which has a cache line to itself.
MAGIC_AT, DIGEST_AT, ENTITIES_AT, WIDTH_AT, ROWS_AT, BUCKETS_AT, NEXT_AT = 0, 1, 2, 3, 4, 5, 8
HEAD_SIZE = 16
# Eight words are a line of the cache.
BUCKET_SLOTS = BUCKET_SIZE = 8
# A slot: the low bits of the number of the newest row, and above them bits of the entity's hash, never 0.
_NUMBER_BITS = 37
_NUMBER_MASK = (1 << _NUMBER_BITS) - 1
_PRINT_MASK = (1 << 26) - 1
# A row. Hashes, links, cuts and attributes follow.
STATE, MOMENT, TAG, CHECK, ORIGIN, ROW_HEAD = range(6)
# Who has answered a payment.
OWN, OTHERS = 0, 1
# The head of the marks: the mirror's newest transaction whose payments are all marked, and until when nobody knows what
# profiles contain.
MARK_MAGIC_AT, MARK_BUCKETS_AT, MARK_SNAPSHOT_AT, MARK_UNSURE_UNTIL_AT = 0, 1, 8, 9
MARK_HEAD_SIZE = 16
MARK_BUCKET_SIZE = 3 * BUCKET_SLOTS
SOURCE_SHIFT = 40
_MOMENT_MASK = (1 << SOURCE_SHIFT) - 1

# The most rows of one entity that a payment looks at, contained and expired ones too.
VISITS_MAX = 64
# Rows that are being written, or were left so, are passed over.
_ROWS_TRIED = 8
_LINKS_TRIED = 64
# New rows that the processor fetches while a chunk is scored.
_ROWS_FETCHED = 8

# The numbers of a call, one int64 array. The first ones are given: the moment, the lifetime, the most payments that are
# added to one profile, and the mirror's transaction that profiles were read in. The others are results.
NOW_MS, LIFE_MS, EVENTS_MAX, SNAPSHOT = range(4)
IS_SURE, FOLDED, LEFT_OUT, BROKEN, ADDED, FULL, UNTIMELY = range(4, 11)
# What a worker keeps from call to call, to know old rows by their numbers: rows up to OVER are older than the lifetime;
# the newest row as the last call saw it; and, for each sixteenth of a lifetime, a moment before which all rows up to a
# number were made. A worker begins with zeros.
OVER, SEEN, SAMPLES_AT, SAMPLES = 11, 12, 13, 32
NUMBER_COUNT = SAMPLES_AT + 2 * SAMPLES
# The sizes of a table, as its owner has checked them: compiled code takes none from memory that others may write.
SHAPE_ENTITIES, SHAPE_WIDTH, SHAPE_ROWS, SHAPE_BUCKETS, SHAPE_MARK_BUCKETS = range(5)
SHAPE_COUNT = 5


class OverlaySlots(NamedTuple):
    """The frame of `fill_bound`, `fill_hashed` and `add_bound`: what `fill_with_pending` takes, and the digests."""

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
    picks: int
    folded: int
    numbers: int
    digests: int


SLOT = positions(OverlaySlots)


@inlined
def row_size(entities: int, width: int) -> int:
    """Returns the number of words of a row: whole lines of the cache."""
    return (ROW_HEAD + 3 * entities + width + 7) // 8 * 8


@inlined
def _row_at(shape: I64, number: int) -> int:
    """Returns where the row with this number stands. Numbers count from 1."""
    place = ((number - 1) & 0x7FFFFFFFFFFFFFFF) % shape[SHAPE_ROWS]
    size_of_row = row_size(shape[SHAPE_ENTITIES], shape[SHAPE_WIDTH])
    return int(HEAD_SIZE + shape[SHAPE_BUCKETS] * BUCKET_SIZE + place * size_of_row)


@inlined
def _bucket_at(shape: I64, mixed: int, choice: int) -> int:
    """Returns where an entity's first or second bucket begins. `mixed` is the entity's hash, mixed."""
    bucket = ((mixed >> 31) * shape[SHAPE_BUCKETS] >> 32) + choice
    if bucket == shape[SHAPE_BUCKETS]:
        bucket = 0
    return int(HEAD_SIZE + bucket * BUCKET_SIZE)


@inlined
def _print_of(mixed: int) -> int:
    """Returns the bits of an entity's hash that its slot holds."""
    return int(mixed & _PRINT_MASK | 1)


@inlined
def _number_of(word: int, next_number: int) -> int:
    """Returns the number of a slot's newest row, from its low bits and a number that is not far from it."""
    return int(next_number + (((word - next_number) << (64 - _NUMBER_BITS)) >> (64 - _NUMBER_BITS)))


@inlined
def _check_of(table: I64, at: int, shape: I64) -> int:
    """Returns a row's check: a hash of all that stays the same once it is written, links apart."""
    entities, width = shape[SHAPE_ENTITIES], shape[SHAPE_WIDTH]
    check = table[at + MOMENT] ^ (table[at + TAG] * 31)
    for entity in range(entities):
        check = (check ^ table[at + ROW_HEAD + entity]) * 0x1F3D5B79
    for column in range(width):
        check = (check ^ table[at + ROW_HEAD + 3 * entities + column]) * 0x1F3D5B79
        check ^= check >> 29
    return int(check)


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
        at = _row_at(shape, number)
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
    number = _number_of(word, next_number)
    # A whole round has passed: whatever the row is now, nobody need look at it.
    if word == 0 or next_number - number >= shape[SHAPE_ROWS]:
        return True
    at = _row_at(shape, number)
    return bool(load_atomic(table, at + STATE) >> 1 != number or _is_over(table, at, now_ms, life_ms))


@compiled()
def _slot_of(table: I64, shape: I64, mixed: int, next_number: int, now_ms: int, life_ms: int) -> int:
    """Returns the slot of an entity, one that is free if it has none; -1 if both of its buckets are full."""
    for choice in range(2):
        bucket = _bucket_at(shape, mixed, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            if load_atomic(table, slot) >> _NUMBER_BITS == _print_of(mixed):
                return slot
    # The first one that says so itself; only then one whose row says so, which is elsewhere in memory.
    for reads_rows in range(2):
        for choice in range(2):
            bucket = _bucket_at(shape, mixed, choice)
            for slot in range(bucket, bucket + BUCKET_SLOTS):
                word = load_atomic(table, slot)
                if word == 0 or next_number - _number_of(word, next_number) >= shape[SHAPE_ROWS]:
                    return slot
                if reads_rows == 1 and _is_free(table, shape, word, next_number, now_ms, life_ms):
                    return slot
    return -1


@compiled()
def _link(table: I64, shape: I64, number: int, entity: int, wanted: int, now_ms: int, life_ms: int) -> bool:
    """Make a row the newest one of an entity. Returns False if there is no room."""
    at = _row_at(shape, number) + ROW_HEAD + shape[SHAPE_ENTITIES] + entity
    mixed = mix(wanted)
    for _ in range(_LINKS_TRIED):
        next_number = load_atomic(table, NEXT_AT)
        slot = _slot_of(table, shape, mixed, next_number, now_ms, life_ms)
        if slot < 0:
            return False
        word = load_atomic(table, slot)
        newest = _number_of(word, next_number)
        if word >> _NUMBER_BITS != _print_of(mixed):
            if not _is_free(table, shape, word, next_number, now_ms, life_ms):
                # Another worker has taken it since.
                continue
            newest = 0
        table[at] = newest
        if swap_atomic(table, slot, word, _print_of(mixed) << _NUMBER_BITS | number & _NUMBER_MASK) == 1:
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
    origin: int,
) -> None:
    """Add payments that are answered, if their times are from `earliest_ms` to `latest_ms`.

    `now_ms`: by the host's own clock. `origin`: OWN or OTHERS.

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
        at = _row_at(shape, number)
        table[at + MOMENT] = now_ms
        table[at + TAG] = tags[payment]
        table[at + ORIGIN] = origin
        for entity in range(entities):
            table[at + ROW_HEAD + entity] = hashes[payment * entities + entity]
            table[at + ROW_HEAD + entities + entity] = 0
            table[at + ROW_HEAD + 2 * entities + entity] = -number
        for column in range(width):
            table[at + ROW_HEAD + 3 * entities + column] = attributes[payment, column]
        table[at + CHECK] = _check_of(table, at, shape)
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
        at = _row_at(shape, place + 1)
        state = load_atomic(table, at + STATE)
        if state & 1 == 0 or table[at + ROW_HEAD + entity] != wanted:
            continue
        if swap_atomic(table, at + STATE, state, state - 1) == 0:
            continue
        table[at + TAG] = 0
        for column in range(width):
            table[at + ROW_HEAD + 3 * entities + column] = 0
        table[at + CHECK] = _check_of(table, at, shape)
        store_atomic(table, at + STATE, state)
        erased += 1
    return erased


@inlined
def _mark_bucket_at(shape: I64, tag: int, choice: int) -> int:
    return int(MARK_HEAD_SIZE + (mix(tag) + choice) % shape[SHAPE_MARK_BUCKETS] * MARK_BUCKET_SIZE)


@compiled()
def mark_all(marks: I64, shape: I64, tags: I64, sources: I64, offsets: I64, now_ms: int, keep_ms: int) -> int:
    """Note where payments stand on Kafka. Returns how many younger marks had to give way: their payments are unsure."""
    lost = 0
    for payment in range(len(tags)):
        tag = tags[payment]
        best, oldest_ms = -1, now_ms + 1
        for choice in range(2):
            bucket = _mark_bucket_at(shape, tag, choice)
            for slot in range(bucket, bucket + BUCKET_SLOTS):
                moment_ms = marks[slot + BUCKET_SLOTS] & _MOMENT_MASK
                if marks[slot] == tag:
                    moment_ms = -1
                elif marks[slot] == 0 or moment_ms > now_ms:
                    moment_ms = 0
                if moment_ms < oldest_ms:
                    best, oldest_ms = slot, moment_ms
        if marks[best] != tag:
            if marks[best] != 0 and now_ms - oldest_ms <= keep_ms:
                lost += 1
            # A reader that sees the tag sees what belongs to it.
            store_atomic(marks, best, 0)
        store_atomic(marks, best + 2 * BUCKET_SLOTS, offsets[payment])
        store_atomic(marks, best + BUCKET_SLOTS, sources[payment] << SOURCE_SHIFT | now_ms)
        store_atomic(marks, best, tag)
    return lost


@inlined
def _contains(plan: I64, entity: int, words: I64, source: int, offset: int) -> bool:
    """Whether a profile contains the event of this source partition at this offset."""
    first = plan[entity_at(plan, entity) + ENTITY.sources_at]
    for at in range(first, first + words[LENGTHS_AT]):
        if words[at] == source:
            return bool(offset <= words[at + SOURCES_MAX])
    return False


@compiled()
def _is_contained(marks: I64, shape: I64, plan: I64, entity: int, words: I64, tag: int) -> bool:
    """Whether a profile contains a payment. Without a mark no profile does."""
    for choice in range(2):
        bucket = _mark_bucket_at(shape, tag, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            if load_atomic(marks, slot) != tag:
                continue
            source, offset = load_atomic(marks, slot + BUCKET_SLOTS), load_atomic(marks, slot + 2 * BUCKET_SLOTS)
            if load_atomic(marks, slot) == tag:
                return _contains(plan, entity, words, source >> SOURCE_SHIFT, offset)
    return False


@inlined
def _link_of(table: I64, at: int, shape: I64, entity: int, wanted: int) -> int:
    """Returns the number of the row after this one, in the rows of an entity."""
    entities, mine = shape[SHAPE_ENTITIES], entity
    if table[at + ROW_HEAD + entity] != wanted:
        # Another entity whose slot looks alike, perhaps one of another kind.
        for other in range(entities):
            if _print_of(mix(table[at + ROW_HEAD + other])) == _print_of(mix(wanted)):
                mine = other
    return int(load_atomic(table, at + ROW_HEAD + entities + mine))


@compiled()
def _pending(
    table: I64,
    marks: I64,
    shape: I64,
    plan: I64,
    entity: int,
    wanted: int,
    own: int,
    words: I64,
    picks: I64,
    numbers: I64,
) -> int:
    """Copy the payments of an entity that its profile does not contain into `picks`; returns how many.

    `own`: the tag of the payment that asks. A payment with several rows counts once, by its first row.
    """
    entities, width, mixed = shape[SHAPE_ENTITIES], shape[SHAPE_WIDTH], mix(wanted)
    found, visits, next_number = 0, 0, load_atomic(table, NEXT_AT)
    for choice in range(2):
        bucket = _bucket_at(shape, mixed, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            word = load_atomic(table, slot)
            if word >> _NUMBER_BITS != _print_of(mixed):
                continue
            number = _number_of(word, next_number)
            # The newest of the rows that are contained up to where the loop is.
            cut_at, cut_number, is_end = 0, 0, False
            while True:
                if number <= 0:
                    is_end = True
                    break
                at = _row_at(shape, number)
                age_ms = numbers[NOW_MS] - load_atomic(table, at + MOMENT)
                following = _link_of(table, at, shape, entity, wanted)
                cut = load_atomic(table, at + ROW_HEAD + 2 * entities + entity)
                state = load_atomic(table, at + STATE)
                # A row that is being erased is no end.
                is_end = state >> 1 != number
                if state != 2 * number + 1:
                    break
                is_mine = table[at + ROW_HEAD + entity] == wanted
                is_cut = is_mine and 0 < cut <= numbers[SNAPSHOT]
                if age_ms > numbers[LIFE_MS] or age_ms < -numbers[LIFE_MS] or is_cut:
                    is_end = True
                    break
                if visits == VISITS_MAX or found == numbers[EVENTS_MAX]:
                    numbers[LEFT_OUT] += 1
                    break
                visits += 1
                tag = table[at + TAG]
                if is_mine and (tag == 0 or _is_contained(marks, shape, plan, entity, words, tag)):
                    if cut_at == 0:
                        cut_at, cut_number = at + ROW_HEAD + 2 * entities + entity, number
                    number = following
                    continue
                cut_at = 0
                if is_mine and tag != own:
                    place = found
                    for earlier in range(found):
                        if picks[earlier, 0] == tag:
                            place = earlier
                    picks[place, 0] = tag
                    for column in range(width):
                        picks[place, 1 + column] = table[at + ROW_HEAD + 3 * entities + column]
                    is_whole = table[at + CHECK] == _check_of(table, at, shape)
                    if load_atomic(table, at + STATE) != 2 * number + 1:
                        break
                    if not is_whole:
                        numbers[BROKEN] += 1
                        break
                    found = max(found, place + 1)
                number = following
            if is_end and cut_at != 0 and numbers[SNAPSHOT] > 0:
                swap_atomic(table, cut_at, -cut_number, numbers[SNAPSHOT])
    return found


@compiled()
def _note_time(table: I64, numbers: I64) -> None:
    """Raise numbers[OVER] to the number of a row that is older than the lifetime, as all rows before it are.

    A row's moment is read before its number is taken. So rows that the last call saw were made before now.
    """
    now_ms, life_ms = numbers[NOW_MS], numbers[LIFE_MS]
    seen = numbers[SEEN]
    numbers[SEEN] = load_atomic(table, NEXT_AT)
    at = SAMPLES_AT + 2 * (now_ms * 16 // life_ms % SAMPLES)
    if now_ms - numbers[at] <= life_ms:
        # The others were looked at when this sample was taken, a sixteenth of a lifetime ago at most.
        return
    for sample in range(SAMPLES):
        other = SAMPLES_AT + 2 * sample
        if now_ms - numbers[other] > life_ms:
            numbers[OVER] = max(numbers[OVER], numbers[other + 1])
    numbers[at], numbers[at + 1] = now_ms, seen


@inlined
def _has_slot(table: I64, shape: I64, mixed: int, next_number: int, over: int) -> bool:
    """Whether a slot of the directory may be an entity's, with a row that is not known to be over."""
    hits = 0
    for choice in range(2):
        bucket = _bucket_at(shape, mixed, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            is_alike = table[slot] >> _NUMBER_BITS == _print_of(mixed)
            hits += is_alike & (_number_of(table[slot], next_number) > over)
    return hits != 0


@inlined
def _hash_of(digest: int) -> int:
    """Returns the hash in a digest's eight bytes, as PaymentTags makes it but for its last bits."""
    found = np.uint64(0)
    for place in range(8):
        found |= ((np.uint64(digest) >> np.uint64(8 * place)) & np.uint64(255)) << np.uint64(56 - 8 * place)
    return int(found >> np.uint64(1))


@inlined
def take_hashes(digests: I64, presence: U8, rows: int, entities: int, hashes: I64, tags: I64) -> None:
    """Make hashes of entities and tags of payments from PaymentTags.digests: of all entities first, then of ids."""
    for item in range(rows * entities):
        hashes[item] = 0 if presence[item] == ABSENT else _hash_of(digests[item]) | 1
    for row in range(rows):
        tags[row] = _hash_of(digests[rows * entities + row]) | TAG_MIN


@compiled(releases_gil=True)
def fill_with_pending(
    plan: I64,
    attributes: I64,
    presence: U8,
    states: U8,
    bounds: I64,
    words: I64,
    values: F64,
    out: F32,
    table: I64,
    marks: I64,
    shape: I64,
    hashes: I64,
    tags: I64,
    picks: I64,
    folded: U8,
    numbers: I64,
) -> int:
    """Do as kernel.fill_vectors, and add to each profile the payments of the table that it does not contain.

    folded[i] is KNOWN if entry i got any, else presence[i]. Without marks of all that the mirror contains no
    profile gets any, and numbers[IS_SURE] is 0.
    """
    entities = plan[HEAD.entity_count]
    numbers[IS_SURE] = 0
    if load_atomic(marks, MARK_SNAPSHOT_AT) >= numbers[SNAPSHOT]:
        numbers[IS_SURE] = 1 if load_atomic(marks, MARK_UNSURE_UNTIL_AT) < numbers[NOW_MS] else 0
    is_sure = numbers[IS_SURE] == 1
    # Each bucket is elsewhere in memory. Reading all of them first lets the cache misses overlap.
    touched = 0
    next_number, over = numbers[SEEN], numbers[OVER]
    if is_sure:
        for item in range(len(attributes) * entities):
            for choice in range(2):
                touched |= table[_bucket_at(shape, mix(hashes[item]), choice)]
    numbers[FOLDED] += touched & 0
    for row in range(len(attributes)):
        for entity in range(entities):
            item = row * entities + entity
            folded[item] = presence[item]
            if presence[item] == ABSENT:
                clear_slots(plan, entity, values)
                continue
            if presence[item] == UNKNOWN:
                clear(plan, entity, words)
            else:
                status = unpack(plan, entity, states, bounds[item], bounds[item + 1], words)
                if status != OK:
                    return int(status * STATUS_UNIT + item)
            if is_sure and hashes[item] != 0 and _has_slot(table, shape, mix(hashes[item]), next_number, over):
                found = _pending(
                    table, marks, shape, plan, entity, hashes[item], tags[row], words, picks, numbers
                )  # fmt: skip
                for pick in range(found):
                    update(plan, entity, words, PAYMENT, picks[pick, 1:], 1)
                if found > 0:
                    folded[item] = KNOWN
                    numbers[FOLDED] += found
            roll_up(plan, entity, words, attributes[row], values)
        assemble(plan, attributes[row], values, out[row])
    return OK


@compiled(makes_arrays=True)
def fill_bound(frame_at: int, rows: int, now_ms: int, snapshot: int) -> int:
    """Run `fill_with_pending` for the first `rows` payments of a frame, whose digests are there."""
    plan = carray(address(frame_at, SLOT.plan), size(frame_at, SLOT.plan), np.int64)
    take_hashes(
        carray(address(frame_at, SLOT.digests), size(frame_at, SLOT.digests), np.int64),
        carray(address(frame_at, SLOT.presence), size(frame_at, SLOT.presence), np.uint8),
        rows,
        plan[HEAD.entity_count],
        carray(address(frame_at, SLOT.hashes), size(frame_at, SLOT.hashes), np.int64),
        carray(address(frame_at, SLOT.tags), size(frame_at, SLOT.tags), np.int64),
    )
    filled: int = fill_hashed(frame_at, rows, now_ms, snapshot)
    return filled


@inlined
def _hash_of_text(hash_at: int, seed: int, text_at: int, length: int, least: int) -> int:
    """Returns a text's hash as PaymentTags makes it. `least`: 1 for an entity's key, TAG_MIN for a payment's id."""
    return int((call_c(hash_at, text_at, length, seed, 0) >> 1) & 0x7FFFFFFFFFFFFFFF | least)


@compiled(makes_arrays=True)
def hash_texts(frame_at: int, rows: int, texts_at: int, ends: I64, hash_at: int, seed: int) -> None:
    """Hash the keys and ids of a frame's first `rows` payments, and let the processor fetch what is asked for next.

    `texts_at`: the address of the texts, one after the other: for each payment the keys of its entities, and its id.
    `ends` has shape (payments, entities + 1). `hash_at`: the address of xxHash's own XXH3_64bits_withSeed.
    """
    entities = ends.shape[1] - 1
    shape = carray(address(frame_at, SLOT.shape), SHAPE_COUNT, np.int64)
    hashes = carray(address(frame_at, SLOT.hashes), size(frame_at, SLOT.hashes), np.int64)
    tags = carray(address(frame_at, SLOT.tags), size(frame_at, SLOT.tags), np.int64)
    table = carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64)
    begin = 0
    for row in range(rows):
        for entity in range(entities):
            item, end = row * entities + entity, ends[row, entity]
            if end == begin:
                hashes[item] = 0
            else:
                hashes[item] = _hash_of_text(hash_at, seed, texts_at + begin, end - begin, 1)
                for choice in range(2):
                    prefetch_element(table, _bucket_at(shape, mix(hashes[item]), choice))
            begin = end
        end = ends[row, entities]
        tags[row] = _hash_of_text(hash_at, seed, texts_at + begin, end - begin, TAG_MIN)
        begin = end
    # Most likely the rows that these payments will have.
    row_words = row_size(shape[SHAPE_ENTITIES], shape[SHAPE_WIDTH])
    number = load_atomic(table, NEXT_AT) + 1
    for row in range(min(rows, _ROWS_FETCHED)):
        at = _row_at(shape, number + row)
        for word in range(0, row_words, BUCKET_SLOTS):
            prefetch_element(table, at + word)


@compiled(makes_arrays=True)
def fill_hashed(frame_at: int, rows: int, now_ms: int, snapshot: int) -> int:
    """Run `fill_with_pending` for the first `rows` payments of a frame, whose hashes and tags are there."""
    plan = carray(address(frame_at, SLOT.plan), size(frame_at, SLOT.plan), np.int64)
    events_and_row = size(frame_at, SLOT.picks)
    width = plan[HEAD.row_width] + 1
    numbers = carray(address(frame_at, SLOT.numbers), size(frame_at, SLOT.numbers), np.int64)
    numbers[NOW_MS], numbers[SNAPSHOT] = now_ms, snapshot
    numbers[FOLDED] = numbers[LEFT_OUT] = numbers[BROKEN] = 0
    table = carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64)
    _note_time(table, numbers)
    return fill_with_pending(
        plan,
        carray(address(frame_at, SLOT.attributes), (rows, plan[HEAD.row_width]), np.int64),
        carray(address(frame_at, SLOT.presence), size(frame_at, SLOT.presence), np.uint8),
        carray(address(frame_at, SLOT.states), size(frame_at, SLOT.states), np.uint8),
        carray(address(frame_at, SLOT.bounds), size(frame_at, SLOT.bounds), np.int64),
        carray(address(frame_at, SLOT.words), size(frame_at, SLOT.words), np.int64),
        carray(address(frame_at, SLOT.values), size(frame_at, SLOT.values), np.float64),
        carray(address(frame_at, SLOT.out), (rows, plan[HEAD.feature_count]), np.float32),
        table,
        carray(address(frame_at, SLOT.marks), size(frame_at, SLOT.marks), np.int64),
        carray(address(frame_at, SLOT.shape), size(frame_at, SLOT.shape), np.int64),
        carray(address(frame_at, SLOT.hashes), size(frame_at, SLOT.hashes), np.int64),
        carray(address(frame_at, SLOT.tags), size(frame_at, SLOT.tags), np.int64),
        carray(address(frame_at, SLOT.picks), (events_and_row // width, width), np.int64),
        carray(address(frame_at, SLOT.folded), size(frame_at, SLOT.folded), np.uint8),
        numbers,
    )


@compiled(makes_arrays=True)
def add_bound(frame_at: int, rows: int, now_ms: int, earliest_ms: int, latest_ms: int) -> int:
    """Run `add_all` for the first `rows` payments of a frame, those of its last `fill_bound` or `fill_hashed`.

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
        OWN,
    )
    return int(rows - numbers[ADDED])


# What a reader of new rows keeps from call to call: the number it goes on with, a row that was being written when it
# looked, the moment when it first saw it so, and how many rows it has missed.
GOES_ON_AT, WRITTEN_AT, WRITTEN_SINCE_AT, MISSED_AT = range(4)
READING_COUNT = 4
# A row that is being written for so long belongs to a worker that was killed.
_WRITING_MS = 1000


@compiled()
def take_new(table: I64, shape: I64, reading: I64, now_ms: int, out: I64) -> int:
    """Copy the host's own payments that were added since the last call, the oldest first. Returns how many.

    `out` has shape (rows, 1 + entities + row width): tag, hashes, attributes. Who falls behind by more than twice as
    many rows misses the older ones: reading[MISSED_AT] counts them. A row of another host, or erased, is passed over.
    """
    entities, width = shape[SHAPE_ENTITIES], shape[SHAPE_WIDTH]
    newest = load_atomic(table, NEXT_AT)
    number, found = reading[GOES_ON_AT], 0
    if newest - number + 1 > 2 * len(out):
        reading[MISSED_AT] += newest + 1 - len(out) - number
        number = newest + 1 - len(out)
    while number <= newest and found < len(out):
        at = _row_at(shape, number)
        state = load_atomic(table, at + STATE)
        if state <= 2 * number:
            # Its worker will finish it soon.
            if reading[WRITTEN_AT] != number:
                reading[WRITTEN_AT], reading[WRITTEN_SINCE_AT] = number, now_ms
            if now_ms - reading[WRITTEN_SINCE_AT] <= _WRITING_MS:
                break
        elif state == 2 * number + 1 and table[at + ORIGIN] == OWN and table[at + TAG] != 0:
            out[found, 0] = table[at + TAG]
            for entity in range(entities):
                out[found, 1 + entity] = table[at + ROW_HEAD + entity]
            for column in range(width):
                out[found, 1 + entities + column] = table[at + ROW_HEAD + 3 * entities + column]
            is_whole = table[at + CHECK] == _check_of(table, at, shape)
            if is_whole and load_atomic(table, at + STATE) == state:
                found += 1
            else:
                reading[MISSED_AT] += 1
        number += 1
    reading[GOES_ON_AT] = number
    return found
