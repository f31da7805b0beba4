"""The compiled half of scoring/idempotency/decision_cache.py: claims payment ids with compare-and-swap, without a lock.

The table is one array of int64 in shared memory: a head, then buckets of 8 slots. Each column of a bucket is one cache
line. A payment's tag (a hash of its id, never 0) selects two buckets, and may be in any slot of them.

    head      the boot of the machine; one entry for each worker: incarnation, pid, when that process started, unused
    bucket    8 tags │ 8 claim words │ 8 positions, each plus one (0: no position)
    word      2 bits state │ 8 bits worker │ 21 bits incarnation │ 32 bits seconds since the boot; 0 is a free slot

    free ─► WRITING (tag not set yet) ─► TENTATIVE ─► CLAIMED ─► SETTLED          any of them ─► free

Only the claimant moves a slot forward, always by compare-and-swap of the word. A claim takes four steps:

1. Look for the tag in both buckets. If there is a live claim that is CLAIMED or SETTLED, the result is FOUND.
2. Otherwise take a free slot: swap its word to WRITING, set position and tag, swap the word to TENTATIVE.
3. Look through both buckets again. If another slot with the tag is CLAIMED or SETTLED, free our slot: FOUND. If another
   slot is TENTATIVE, the lower of the two slots stays: either swap the other's word to 0, or free our slot.
4. Swap our word from TENTATIVE to CLAIMED: won. If another worker has swapped it to 0 meanwhile, begin again.

Two workers can never both win. All accesses are in one total order, so of two claims that are TENTATIVE for one tag,
the later one's second look (step 3) sees the earlier slot. It then gives way, finds the other CLAIMED, or frees the
other's slot before it is CLAIMED. Without the swap in step 4, the later one could hold the lower slot and both would
stay.

Whether a slot can be reused follows from its word and the head. A claim has *ended* when its incarnation is no longer
its worker's, and has *expired* when it is older than the window. Times are of CLOCK_BOOTTIME: nobody sets that clock.

- WRITING and TENTATIVE end with the incarnation.
- CLAIMED does not expire while its incarnation lasts, because a stopped process may continue.
- CLAIMED and ended counts as FOUND: the caller looks for the record.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import I64
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.intrinsics import load_atomic, store_atomic, swap_atomic
from paywarden.features.kernel.toolkit.jit import compiled, inlined

WORKERS_MAX = 256
# The head's first words describe the file: its magic number, how many buckets it has, and a hash of the boot's id.
# Compiled code counts buckets by the size of the array: bytes that other processes write into the file are no bound.
MAGIC_AT, BUCKET_COUNT_AT, BOOT_AT, WORKERS_AT = 0, 1, 2, 8
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

# The result for a tag when no slot was won.
FULL = -1  # both buckets hold only live claims
BUSY = -2  # another worker is claiming the tag at this moment
_LOST = -3  # another worker freed our slot
# A flag: a live claim was found, and its slot is in the lower bits.
FOUND = 1 << 48
# How many contests a claim may lose before it returns BUSY. With each of them another worker's claim advances.
_TRIES = 16


class ClaimSlots(NamedTuple):
    """The frame of one worker. All arrays are int64."""

    table: int
    tags: int
    """The tags of the payments of a chunk."""
    slots: int
    """The slot of each payment. A number below 0 is no slot and is skipped."""
    positions: int
    """The outbox position at which each record will begin."""


SLOT = positions(ClaimSlots)


@compiled()
def load(table: I64, position: int) -> int:
    """Read one word atomically."""
    found: int = load_atomic(table, position)
    return found


@compiled()
def store(table: I64, position: int, value: int) -> None:
    """Write one word atomically."""
    store_atomic(table, position, value)


@compiled()
def swap(table: I64, position: int, expected: int, value: int) -> int:
    """Compare-and-swap: write one word if it is `expected`. Returns 1 if it was, else 0."""
    swapped: int = swap_atomic(table, position, expected, value)
    return swapped


@inlined
def _bucket_count(table: I64) -> int:
    return (len(table) - BUCKETS_AT) // BUCKET_SIZE


@inlined
def _bucket(tag: int, bucket_count: int, choice: int) -> int:
    """Returns the index at which the tag's first or second bucket begins."""
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
    """Whether a slot with this word can be taken."""
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
    """Returns the slot (the index of its tag) of a live claim on the tag, other than `but`; -1 when there is none.

    A claim that is CLAIMED or SETTLED comes before a TENTATIVE one. A slot that is WRITING has no tag yet.
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
    """Returns a slot that can be taken, in the bucket that has more of them; -1 when there is none."""
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
    """Steps 3 and 4 for our TENTATIVE slot. Returns the slot, FOUND with another slot, BUSY, or _LOST: begin again."""
    bucket_count = _bucket_count(table)
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
    """Returns the slot that was won, FOUND with the slot of another claim, FULL or BUSY."""
    bucket_count = _bucket_count(table)
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
        # Since `_free_slot` looked, another worker may have taken the slot.
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
    """Claim the first `count` tags for `owner` (a word of state 0, with its time). Returns how many were won.

    `results` gets for each tag the slot, FOUND with the slot of a live claim, FULL or BUSY. Slots index `table`.
    """
    # Each bucket is elsewhere in memory. Reading all of them first lets the cache misses overlap.
    touched, bucket_count = 0, _bucket_count(table)
    for index in range(count):
        for choice in range(2):
            bucket = _bucket(tags[index], bucket_count, choice)
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
    """Claim a slot whose claim, with this word, has no record. Returns as `_claim` does, but never FULL."""
    tag = load_atomic(table, slot + TAGS)
    if swap_atomic(table, slot + WORDS, word, owner | (TENTATIVE << STATE_SHIFT)) == 0:
        return BUSY
    store_atomic(table, slot + POSITIONS, 0)
    result: int = _contest(table, slot, tag, owner, now_s, window_s)
    return BUSY if result == _LOST else result


@compiled()
def free_all(table: I64, slots: I64, count: int, owner: int) -> None:
    """Free slots that the owner won and still holds."""
    for index in range(count):
        if slots[index] >= 0:
            word = load_atomic(table, slots[index] + WORDS)
            if _is_claim_of(word, owner):
                swap_atomic(table, slots[index] + WORDS, word, 0)


# The calls of a worker, whose arrays stay in its frame.


@compiled(makes_arrays=True)
def claim_bound(frame_at: int, count: int, owner: int, now_s: int, window_s: int) -> int:
    """Claim the frame's first `count` tags; its slots get the results of `claim_all`."""
    table = carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64)
    tags = carray(address(frame_at, SLOT.tags), count, np.int64)
    slots = carray(address(frame_at, SLOT.slots), count, np.int64)
    won: int = claim_all(table, tags, count, owner, now_s, window_s, slots)
    return won


@compiled(makes_arrays=True)
def place_bound(frame_at: int, count: int) -> None:
    """Note in each slot where its record will begin. Slots below 0 are skipped."""
    table = carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64)
    slots = carray(address(frame_at, SLOT.slots), count, np.int64)
    begins = carray(address(frame_at, SLOT.positions), count, np.int64)
    for index in range(count):
        if slots[index] >= 0:
            store_atomic(table, slots[index] + POSITIONS, begins[index] + 1)


@compiled(makes_arrays=True)
def settle_bound(frame_at: int, count: int, owner: int) -> None:
    """Settle the slots that the owner won and still holds: their records are appended."""
    table = carray(address(frame_at, SLOT.table), size(frame_at, SLOT.table), np.int64)
    slots = carray(address(frame_at, SLOT.slots), count, np.int64)
    for index in range(count):
        if slots[index] >= 0:
            word = load_atomic(table, slots[index] + WORDS)
            if _is_claim_of(word, owner):
                swap_atomic(table, slots[index] + WORDS, word, word & _OWNER_MASK)
