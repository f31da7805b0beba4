"""The compiled half of the table of answered payments (scoring/idempotency/decision_cache.py): claims, by
compare-and-swap alone.

The table is one array of int64 in shared memory: a head, then buckets of 8 slots, each column of a bucket in one
cache line. A payment's tag (a hash of its id, never 0) belongs into two buckets and may be in any slot of them.

    head      one entry for each worker: incarnation, pid, when that process started, unused
    bucket    8 tags │ 8 claim words │ 8 positions, plus one (0: none)
    word      2 bits state │ 8 bits worker │ 21 bits incarnation │ 32 bits time in seconds; 0 is a free slot

A slot goes from free over WRITING (the tag is not there yet), TENTATIVE and CLAIMED to SETTLED, and from any of them
back to free. Only its claimant moves it forward, always by compare-and-swap of the word.

1. Look for the tag in both buckets. A live claim that is CLAIMED or SETTLED is the answer: found.
2. Else take a free slot: swap its word to WRITING, set position and tag, swap to TENTATIVE.
3. Look over both buckets again. Another slot with the tag that is CLAIMED or SETTLED: give ours back, found. One that
   is TENTATIVE: of the two the lower slot stays, so either swap the other's word to 0, or give ours back.
4. Swap ours from TENTATIVE to CLAIMED: won. If another one has swapped it to 0 meanwhile, begin again.

Two can never both win: of two that are TENTATIVE for one tag, the later one's second look sees the earlier one's slot
(all accesses are in one total order), and then gives way, finds the other CLAIMED, or takes its word from it before it
is CLAIMED. Without the swap in step 4 the later one could hold the lower slot and both would stay.

What a slot is worth follows from its word and the head: an *ended* claim's incarnation is not its worker's any more, an
*expired* one is older than the window. WRITING and TENTATIVE end with the incarnation. CLAIMED does not expire while
its incarnation lasts: a stopped process may go on. CLAIMED and ended is found: the caller looks up what came of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.frame import address, size
from paywarden.features.kernel.intrinsics import load_atomic, store_atomic, swap_atomic
from paywarden.features.kernel.jit import compiled, inlined
from paywarden.features.kernel.layout import I64
from paywarden.features.kernel.plan_schema import positions

WORKERS_MAX = 256
# The head's first words are the file's own: what it is, and how many buckets it has.
MAGIC_AT, BUCKET_COUNT_AT, WORKERS_AT = 0, 1, 8
INCARNATION, PID, STARTED = range(3)
WORKER_SIZE = 4
BUCKETS_AT = WORKERS_AT + WORKERS_MAX * WORKER_SIZE
BUCKET_SLOTS = 8
# Columns of a bucket.
TAGS, WORDS, POSITIONS = 0, BUCKET_SLOTS, 2 * BUCKET_SLOTS
BUCKET_SIZE = 3 * BUCKET_SLOTS

SETTLED, WRITING, TENTATIVE, CLAIMED = range(4)
STATE_SHIFT, WORKER_SHIFT, INCARNATION_SHIFT = 61, 53, 32
INCARNATIONS = 1 << (WORKER_SHIFT - INCARNATION_SHIFT)
TIME_MASK = (1 << INCARNATION_SHIFT) - 1
_OWNER_MASK = (1 << STATE_SHIFT) - 1

# What is said of a tag, instead of the slot that was won.
FULL = -1  # both buckets hold live claims only
BUSY = -2  # another one is claiming it at this moment
_LOST = -3  # ours was cancelled by another one
# A live claim was found; the slot is in the lower bits.
FOUND = 1 << 48
# Contests lost to others before a claim says BUSY. Each has somebody else's claim go on.
_TRIES = 16


class ClaimSlots(NamedTuple):
    """The frame of a worker; its arrays are int64."""

    table: int
    tags: int
    """Of the payments of a chunk."""
    slots: int
    """The slot of each that was won; what is below 0 is passed over."""
    positions: int
    """Where the record of each will begin."""


SLOT = positions(ClaimSlots)


@compiled()
def load(table: I64, position: int) -> int:
    """One word, atomically."""
    found: int = load_atomic(table, position)
    return found


@compiled()
def store(table: I64, position: int, value: int) -> None:
    """Set one word, atomically."""
    store_atomic(table, position, value)


@compiled()
def swap(table: I64, position: int, expected: int, value: int) -> int:
    """Set one word if it is `expected`; returns 1 if it was."""
    swapped: int = swap_atomic(table, position, expected, value)
    return swapped


@inlined
def _bucket(tag: int, bucket_count: int, choice: int) -> int:
    """Where the tag's first or second bucket begins."""
    mixed = tag if choice == 0 else (tag ^ (tag >> 29)) * 0x3F58476D1CE4E5B9
    number = (mixed & 0x7FFFFFFFFFFFFFFF) % bucket_count
    if choice == 1 and bucket_count > 1 and number == (tag & 0x7FFFFFFFFFFFFFFF) % bucket_count:
        number = (number + 1) % bucket_count
    return BUCKETS_AT + number * BUCKET_SIZE


@inlined
def _is_ended(table: I64, word: int) -> bool:
    worker = (word >> WORKER_SHIFT) & (WORKERS_MAX - 1)
    incarnation = (word >> INCARNATION_SHIFT) & (INCARNATIONS - 1)
    current: int = load_atomic(table, WORKERS_AT + worker * WORKER_SIZE + INCARNATION)
    return incarnation != current & (INCARNATIONS - 1)


@inlined
def _is_free(table: I64, word: int, now_s: int, window_s: int) -> bool:
    """Whether the slot of a claim with this word can be had."""
    if word == 0:
        return True
    state = word >> STATE_SHIFT
    if state == SETTLED:
        return now_s - (word & TIME_MASK) > window_s
    if not _is_ended(table, word):
        return False
    return state != CLAIMED or now_s - (word & TIME_MASK) > window_s


@inlined
def _is_claim_of(word: int, owner: int) -> bool:
    return word >> STATE_SHIFT == CLAIMED and (word & _OWNER_MASK) >> INCARNATION_SHIFT == owner >> INCARNATION_SHIFT


@compiled()
def _look(table: I64, first: int, second: int, tag: int, but: int, now_s: int, window_s: int) -> int:
    """The slot (the place of its tag) of a live claim of the tag, not `but`; -1 when there is none.

    One that is CLAIMED or SETTLED comes before any that is TENTATIVE; WRITING has no tag yet.
    """
    tentative = -1
    for choice in range(2):
        bucket = first if choice == 0 else second
        if choice == 1 and second == first:
            break
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            if slot != but and load_atomic(table, slot) == tag:
                word = load_atomic(table, slot + WORDS)
                state = word >> STATE_SHIFT
                if word != 0 and state != WRITING and not _is_free(table, word, now_s, window_s):
                    if state != TENTATIVE:
                        return slot
                    if tentative < 0:
                        tentative = slot
    return tentative


@compiled()
def _free_slot(table: I64, first: int, second: int, now_s: int, window_s: int) -> int:
    """A slot that can be had, in the bucket that has more of them; -1 when there is none."""
    best, most = -1, 0
    for choice in range(2):
        bucket = first if choice == 0 else second
        if choice == 1 and second == first:
            break
        found, count = -1, 0
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            if _is_free(table, load_atomic(table, slot + WORDS), now_s, window_s):
                count += 1
                if found < 0:
                    found = slot
        if count > most:
            best, most = found, count
    return best


@compiled()
def _contest(table: I64, mine: int, tag: int, owner: int, now_s: int, window_s: int) -> int:
    """Steps 3 and 4 for our TENTATIVE slot: the slot, FOUND and another's slot, BUSY, or _LOST: begin again."""
    bucket_count = table[BUCKET_COUNT_AT]
    first, second = _bucket(tag, bucket_count, 0), _bucket(tag, bucket_count, 1)
    tentative = owner | (TENTATIVE << STATE_SHIFT)
    while True:
        other = _look(table, first, second, tag, mine, now_s, window_s)
        if other < 0:
            break
        word = load_atomic(table, other + WORDS)
        state = word >> STATE_SHIFT
        if word == 0 or state == WRITING:
            continue
        if state != TENTATIVE:
            swap_atomic(table, mine + WORDS, tentative, 0)
            return FOUND | other
        if other < mine:
            swap_atomic(table, mine + WORDS, tentative, 0)
            return BUSY
        swap_atomic(table, other + WORDS, word, 0)
    if swap_atomic(table, mine + WORDS, tentative, owner | (CLAIMED << STATE_SHIFT)) == 1:
        return mine
    return _LOST


@compiled()
def _claim(table: I64, tag: int, owner: int, now_s: int, window_s: int) -> int:
    """The slot that was won, FOUND and the slot of another claim, FULL or BUSY."""
    bucket_count = table[BUCKET_COUNT_AT]
    first, second = _bucket(tag, bucket_count, 0), _bucket(tag, bucket_count, 1)
    for _ in range(_TRIES):
        other = _look(table, first, second, tag, -1, now_s, window_s)
        if other >= 0 and load_atomic(table, other + WORDS) >> STATE_SHIFT != TENTATIVE:
            return FOUND | other
        mine = _free_slot(table, first, second, now_s, window_s)
        if mine < 0:
            return FULL
        word = load_atomic(table, mine + WORDS)
        writing = owner | (WRITING << STATE_SHIFT)
        # Taken by another one, or not free any more, since it was looked at.
        if not _is_free(table, word, now_s, window_s) or swap_atomic(table, mine + WORDS, word, writing) == 0:
            continue
        store_atomic(table, mine + POSITIONS, 0)
        store_atomic(table, mine + TAGS, tag)
        if swap_atomic(table, mine + WORDS, writing, owner | (TENTATIVE << STATE_SHIFT)) == 0:
            continue
        result = _contest(table, mine, tag, owner, now_s, window_s)
        if result != _LOST:
            return result
    return BUSY


@compiled()
def claim_all(table: I64, tags: I64, count: int, owner: int, now_s: int, window_s: int, results: I64) -> int:
    """Claim the first `count` tags for `owner` (a word of state 0, with its time); returns how many were won.

    `results` gets for each tag the slot, FOUND and the slot of a live claim, FULL or BUSY. Slots are places in `table`.
    """
    # Each bucket is somewhere else in memory. Read first without waiting for one another, they come together.
    touched = 0
    for index in range(count):
        for choice in range(2):
            bucket = _bucket(tags[index], table[BUCKET_COUNT_AT], choice)
            touched += table[bucket] + table[bucket + WORDS] + table[bucket + POSITIONS]
        results[index] = touched
    won = 0
    for index in range(count):
        result = _claim(table, tags[index], owner, now_s, window_s)
        results[index] = result
        if 0 <= result < FOUND:
            won += 1
    return won


@compiled()
def take_over(table: I64, slot: int, word: int, owner: int, now_s: int, window_s: int) -> int:
    """Claim a slot whose claim, with this word, has come to nothing. As `_claim`, but never FULL."""
    tag = load_atomic(table, slot + TAGS)
    if swap_atomic(table, slot + WORDS, word, owner | (TENTATIVE << STATE_SHIFT)) == 0:
        return BUSY
    store_atomic(table, slot + POSITIONS, 0)
    result: int = _contest(table, slot, tag, owner, now_s, window_s)
    return BUSY if result == _LOST else result


@compiled()
def free_all(table: I64, slots: I64, count: int, owner: int) -> None:
    """Give slots back that were won and are the owner's still: nothing came of their claims."""
    for index in range(count):
        if slots[index] >= 0:
            word = load_atomic(table, slots[index] + WORDS)
            if _is_claim_of(word, owner):
                swap_atomic(table, slots[index] + WORDS, word, 0)


# For a worker, whose arrays stay in its frame.


@compiled(makes_arrays=True)
def claim_bound(frame_at: int, count: int, owner: int, now_s: int, window_s: int) -> int:
    """`claim_all` of the tags; the slots get the results."""
    table = carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64)
    tags = carray(address(frame_at, SLOT.tags), count, np.int64)
    slots = carray(address(frame_at, SLOT.slots), count, np.int64)
    won: int = claim_all(table, tags, count, owner, now_s, window_s, slots)
    return won


@compiled(makes_arrays=True)
def place_bound(frame_at: int, count: int) -> None:
    """Say of slots that were won where their records will begin; slots below 0 are passed over."""
    table = carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64)
    slots = carray(address(frame_at, SLOT.slots), count, np.int64)
    begins = carray(address(frame_at, SLOT.positions), count, np.int64)
    for index in range(count):
        if slots[index] >= 0:
            store_atomic(table, slots[index] + POSITIONS, begins[index] + 1)


@compiled(makes_arrays=True)
def settle_bound(frame_at: int, count: int, owner: int) -> None:
    """The records are there, of slots that were won and are the owner's still."""
    table = carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64)
    slots = carray(address(frame_at, SLOT.slots), count, np.int64)
    for index in range(count):
        if slots[index] >= 0:
            word = load_atomic(table, slots[index] + WORDS)
            if _is_claim_of(word, owner):
                swap_atomic(table, slots[index] + WORDS, word, word & _OWNER_MASK)
