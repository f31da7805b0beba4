"""The compiled reader of the overlay: adds to each profile the payments of the table that it does not contain.

1. The keys and ids of a chunk's payments are hashed: `take_hashes` from digests, `hash_texts` from the texts.
2. Most entities have nothing pending, which one look at their buckets says.
3. The rows of the others are read, the newest first, up to a cut, an expired row, or the first row of the entity.
4. Rows that the profile does not contain are added to it, between unpack and roll-up (scoring/state/overlay_folds.py).
   Those of a hot entity stay added, in a fold, which takes the place of the profile.

scoring/state/overlay_table.py has the layout of rows, slots and marks, and their writers.
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
    OK,
    STATUS_UNIT,
    TAG_MIN,
    U8,
    UNKNOWN,
)
from paywarden.features.kernel.pending import pending_from_ms
from paywarden.features.kernel.plan_schema import HEAD
from paywarden.features.kernel.rollup import clear_slots, roll_up
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.intrinsics import call_c, load_atomic, prefetch_element
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.update import mix
from paywarden.scoring.state.overlay_folds import FOLDS, KEYS_AT, WORDS_SIZE, add_pending, use_fold
from paywarden.scoring.state.overlay_table import (
    BROKEN,
    BUCKET_SLOTS,
    FOLDED,
    IS_SURE,
    LEFT_OUT,
    LIFE_MS,
    MARK_SNAPSHOT_AT,
    MARK_UNSURE_UNTIL_AT,
    NEXT_AT,
    NOW_MS,
    NUMBER_BITS,
    NUMBER_COUNT,
    OVER,
    PENDING_FROM_MS,
    REFOLDED,
    SAMPLES,
    SAMPLES_AT,
    SEEN,
    SHAPE_COUNT,
    SHAPE_ENTITIES,
    SHAPE_WIDTH,
    SLOT,
    SNAPSHOT,
    VISITED,
    bucket_at,
    number_of,
    print_of,
    row_at,
    row_size,
)

# New rows that the processor fetches while a chunk is scored.
_ROWS_FETCHED = 8


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
def _forget_rows(folds: I64, numbers: I64) -> None:
    """Forget which rows are old, and which ones folds have: a damaged number of the newest row was mended."""
    for place in range(OVER, NUMBER_COUNT):
        numbers[place] = 0
    for place in range(KEYS_AT, KEYS_AT + FOLDS):
        folds[place] = 0


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
    chain: I64,
    row_now: I64,
    folds: I64,
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
            begin, end = bounds[item], bounds[item + 1] if presence[item] == KNOWN else bounds[item]
            has_slot = False
            if is_sure and hashes[item] != 0:
                has_slot = _has_slot(table, shape, mix(hashes[item]), next_number, over)
            before, words_at = numbers[FOLDED], 0
            if has_slot:
                words_at = use_fold(
                    table, marks, shape, plan, entity, hashes[item], tags[row], states, begin, end,
                    chain, row_now, folds, numbers,
                )  # fmt: skip
            if words_at == 0:
                if presence[item] == UNKNOWN:
                    clear(plan, entity, words)
                else:
                    status = unpack(plan, entity, states, begin, end, words)
                    if status != OK:
                        return int(status * STATUS_UNIT + item)
                if has_slot:
                    words_at = add_pending(
                        table, marks, shape, plan, entity, hashes[item], tags[row], states, begin, end, words,
                        chain, row_now, folds, numbers,
                    )  # fmt: skip
            if numbers[FOLDED] != before:
                folded[item] = KNOWN
            seen = words
            if words_at > 0:
                seen = folds[words_at : words_at + folds[WORDS_SIZE]]
            roll_up(plan, entity, seen, attributes[row], values)
        take_hops(plan, hops, row, values)
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
    numbers[FOLDED] = numbers[LEFT_OUT] = numbers[BROKEN] = numbers[VISITED] = numbers[REFOLDED] = 0
    table = carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64)
    folds = carray(address(frame_at, SLOT.folds), size(frame_at, SLOT.folds), np.int64)
    if load_atomic(table, NEXT_AT) < numbers[SEEN]:
        _forget_rows(folds, numbers)
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
        folds,
        carray(address(frame_at, SLOT.folded), size(frame_at, SLOT.folded), np.uint8),
        numbers,
        carray(address(frame_at, SLOT.hops), (rows, plan[HEAD.hop_slot_count]), np.float64),
    )
