"""The compiled reader of the overlay: adds to each profile the payments of the table that it does not contain.

    card C1 ─► row 907 ─► row 311 ─► row 12, which the profile contains, as all before it
               pending    pending    the end of the walk, noted in row 12 as its cut

1. `hash_texts` hashes the keys and ids of a chunk's payments.
2. Most entities have nothing pending, which one look at their buckets says.
3. The reader walks along the rows of the others, the newest first, up to a cut, an expired row, or the first row of the
   entity.
4. It adds rows that the profile does not contain to it, between unpack and roll-up: at most EVENTS_MAX, the newest.

overlay_table.py has the layout of rows, slots and marks, and their writers.
"""

from __future__ import annotations

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.assembly import assemble
from paywarden.features.kernel.batches import take_hops
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
    U8,
    UNKNOWN,
)
from paywarden.features.kernel.pending import pending_from_ms
from paywarden.features.kernel.plan_schema import ENTITY, HEAD, entity_at
from paywarden.features.kernel.rollup import clear_slots, roll_up
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.intrinsics import call_c, fence, load_atomic, prefetch_element, swap_atomic
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.update import mix, update
from paywarden.scoring.state.overlay.overlay_table import (
    BUCKET_SLOTS,
    EVENTS_MAX,
    FOLDED,
    IS_SURE,
    LEFT_OUT,
    LIFE_MS,
    MARK_SNAPSHOT_AT,
    MARK_UNSURE_UNTIL_AT,
    MOMENT,
    NEXT_AT,
    NOW_MS,
    NUMBER_BITS,
    OVER,
    PENDING_FROM_MS,
    ROW_HEAD,
    SAMPLES,
    SAMPLES_AT,
    SEEN,
    SHAPE_COUNT,
    SHAPE_ENTITIES,
    SHAPE_WIDTH,
    SLOT,
    SNAPSHOT,
    SOURCE_SHIFT,
    STATE,
    TAG,
    VISITED,
    bucket_at,
    mark_bucket_at,
    number_of,
    print_of,
    row_at,
    row_size,
)

# A payment looks at this many rows of one entity beyond those that it adds: contained and expired ones.
VISITS_BEYOND = 64
# New rows that the processor fetches while a chunk is scored.
_ROWS_FETCHED = 8


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
        at = mark_bucket_at(shape, tag, choice)
        for slot in range(at, at + BUCKET_SLOTS):
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
            if print_of(mix(table[at + ROW_HEAD + other])) == print_of(mix(wanted)):
                mine = other
    return int(load_atomic(table, at + ROW_HEAD + entities + mine))


@compiled()
def _walk(
    table: I64,
    marks: I64,
    shape: I64,
    plan: I64,
    entity: int,
    wanted: int,
    own: int,
    words: I64,
    chain: I64,
    found: int,
    number: int,
    numbers: I64,
) -> tuple[int, bool]:
    """Collect the rows of an entity that its profile does not contain, from row `number` on, the newest first.

    Their numbers and tags go to chain[found:]. A payment has one place there, with its first row. The walk passes over
    rows of the payment that asks, whose tag is `own`. Returns how many rows are in `chain` now, and whether the walk
    came to the end of what is pending.
    """
    entities, limit = shape[SHAPE_ENTITIES], numbers[EVENTS_MAX]
    visits, latest_ms = limit + VISITS_BEYOND, numbers[NOW_MS] + numbers[LIFE_MS]
    # The newest of the rows that are contained up to where the loop is.
    cut_at, cut_number = 0, 0
    while number > 0:
        at = row_at(shape, number)
        moment_ms = load_atomic(table, at + MOMENT)
        following = _link_of(table, at, shape, entity, wanted)
        cut = load_atomic(table, at + ROW_HEAD + 2 * entities + entity)
        state = load_atomic(table, at + STATE)
        if state >> 1 == number and state & 1 == 0:
            # A row that is being erased is no end.
            return found, False
        is_mine = table[at + ROW_HEAD + entity] == wanted
        is_cut = is_mine and 0 < cut <= numbers[SNAPSHOT]
        is_over = moment_ms < numbers[PENDING_FROM_MS] or moment_ms > latest_ms
        if state != 2 * number + 1 or is_over or is_cut:
            break
        if visits == 0 or found == limit:
            return found, False
        visits -= 1
        numbers[VISITED] += 1
        tag = table[at + TAG]
        if is_mine and (tag == 0 or _is_contained(marks, shape, plan, entity, words, tag)):
            if cut_at == 0:
                cut_at, cut_number = at + ROW_HEAD + 2 * entities + entity, number
        else:
            cut_at = 0
            if is_mine and tag != own:
                place = found
                for newer in range(found):
                    if chain[newer, 1] == tag:
                        place = newer
                chain[place, 0], chain[place, 1] = number, tag
                found = max(found, place + 1)
        number = following
    if cut_at != 0 and numbers[SNAPSHOT] > 0:
        swap_atomic(table, cut_at, -cut_number, numbers[SNAPSHOT])
    return found, True


@compiled()
def _has_copied(table: I64, shape: I64, number: int, row: I64) -> bool:
    """Copy a row of the table. Returns False if it is another one by now, or erased."""
    at = row_at(shape, number)
    for word in range(len(row)):
        row[word] = table[at + word]
    # The copy ends before the state is looked at.
    fence()
    return bool(load_atomic(table, at + STATE) == 2 * number + 1 and row[TAG] != 0)


@compiled()
def _add_pending(
    table: I64,
    marks: I64,
    shape: I64,
    plan: I64,
    entity: int,
    wanted: int,
    own: int,
    words: I64,
    chain: I64,
    row: I64,
    numbers: I64,
) -> None:
    """Add the newest payments of an entity that its profile, `words`, does not contain.

    `chain` and `row` are scratch. An entity has several slots if workers added its first payments at one time.
    """
    mixed, next_number = mix(wanted), load_atomic(table, NEXT_AT)
    found, is_all = 0, True
    for choice in range(2):
        bucket = bucket_at(shape, mixed, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            word = load_atomic(table, slot)
            if word >> NUMBER_BITS == print_of(mixed):
                newest = number_of(word, next_number)
                found, is_end = _walk(
                    table, marks, shape, plan, entity, wanted, own, words, chain, found, newest, numbers
                )
                is_all &= is_end
    numbers[LEFT_OUT] += 0 if is_all else 1
    attributes = row[ROW_HEAD + 3 * shape[SHAPE_ENTITIES] :]
    for item in range(found):
        if _has_copied(table, shape, chain[item, 0], row):
            update(plan, entity, words, PAYMENT, attributes, 1)
            numbers[FOLDED] += 1


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
        bucket = bucket_at(shape, mixed, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            is_alike = table[slot] >> NUMBER_BITS == print_of(mixed)
            hits += is_alike & (number_of(table[slot], next_number) > over)
    return hits != 0


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
    chain: I64,
    row_now: I64,
    folded: U8,
    numbers: I64,
    hops: F64,
) -> int:
    """Do as kernel.fill_vectors, and add to each profile the payments of the table that it does not contain.

    folded[i] is KNOWN if entry i got any, else presence[i]. Without marks of all that the mirror contains no
    profile gets any, and numbers[IS_SURE] is 0. `chain` has room for numbers[EVENTS_MAX] rows, and `row_now` for a row
    of the table: scratch.
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
                touched |= table[bucket_at(shape, mix(hashes[item]), choice)]
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
            before = numbers[FOLDED]
            if is_sure and hashes[item] != 0 and _has_slot(table, shape, mix(hashes[item]), next_number, over):
                _add_pending(table, marks, shape, plan, entity, hashes[item], tags[row], words, chain, row_now, numbers)
            if numbers[FOLDED] != before:
                folded[item] = KNOWN
            roll_up(plan, entity, words, attributes[row], values)
        take_hops(plan, hops, row, values)
        assemble(plan, attributes[row], values, out[row])
    return OK


@inlined
def _hash_of_text(hash_at: int, seed: int, text_at: int, length: int, least: int) -> int:
    """Returns a text's hash as PaymentTags makes it. `least`: 1 for an entity's key, TAG_MIN for a payment's id."""
    return int((call_c(hash_at, text_at, length, seed, 0) >> 1) & 0x7FFFFFFFFFFFFFFF | least)


@compiled(makes_arrays=True)
def hash_texts(frame_at: int, rows: int, texts_at: int, ends: I64, hash_at: int, seed: int) -> None:
    """Hash the keys and ids of a frame's first `rows` payments, and prefetch the memory that is read next.

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
                    prefetch_element(table, bucket_at(shape, mix(hashes[item]), choice))
            begin = end
        end = ends[row, entities]
        tags[row] = _hash_of_text(hash_at, seed, texts_at + begin, end - begin, TAG_MIN)
        begin = end
    # Most likely the rows that these payments will have.
    row_words = row_size(shape[SHAPE_ENTITIES], shape[SHAPE_WIDTH])
    number = load_atomic(table, NEXT_AT) + 1
    for row in range(min(rows, _ROWS_FETCHED)):
        at = row_at(shape, number + row)
        for word in range(0, row_words, BUCKET_SLOTS):
            prefetch_element(table, at + word)


@compiled(makes_arrays=True)
def fill_hashed(frame_at: int, rows: int, now_ms: int, snapshot: int) -> int:
    """Run `fill_with_pending` for the first `rows` payments of a frame, whose hashes and tags are there."""
    plan = carray(address(frame_at, SLOT.plan), size(frame_at, SLOT.plan), np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), size(frame_at, SLOT.numbers), np.int64)
    numbers[NOW_MS], numbers[SNAPSHOT] = now_ms, snapshot
    numbers[PENDING_FROM_MS] = pending_from_ms(now_ms, numbers[LIFE_MS])
    numbers[FOLDED] = numbers[LEFT_OUT] = numbers[VISITED] = 0
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
        carray(address(frame_at, SLOT.chain), (size(frame_at, SLOT.chain) // 2, 2), np.int64),
        carray(address(frame_at, SLOT.row), size(frame_at, SLOT.row), np.int64),
        carray(address(frame_at, SLOT.folded), size(frame_at, SLOT.folded), np.uint8),
        numbers,
        carray(address(frame_at, SLOT.hops), (rows, plan[HEAD.hop_slot_count]), np.float64),
    )
