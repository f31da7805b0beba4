"""The compiled half of scoring/engine/scorer.py: everything between the bytes of a chunk and its records.

    bodies ─► read ─► claim ─► look up, vectors ─► margins ─► tails ─► records, positions of claims
                │        │           │                │         │
             UNUSUAL  CLAIMED_    NO_PROFILES     NO_SCORES  WANTS_POLICY
                      BEFORE      to NO_VECTORS

1. Each step is a compiled function with a frame of its own. This file hands the results of one step to the next.
2. If a step needs Python, the call ends and returns why. The results of earlier steps hold. Python does that step for
   the payments in question, and calls again from the following step on.
3. A step counts what it did only once it has succeeded, so nothing counts twice.
4. `write_chunk` ends with the claims' positions. Python appends the records, and calls `settle_chunk`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.batches import fill_bound_vectors
from paywarden.features.kernel.layout import ABSENT, I64, KNOWN, OK
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes
from paywarden.features.kernel.toolkit.frame import address, address_number, size
from paywarden.features.kernel.toolkit.intrinsics import call_c, pointer, put_word_at, word_at
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.scoring.engine import record_bytes as records
from paywarden.scoring.engine.record_bytes import write_records
from paywarden.scoring.idempotency import claim_table as claims
from paywarden.scoring.idempotency.claim_table import claim_bound, place_bound, settle_bound
from paywarden.scoring.requests import request_bytes as requests
from paywarden.scoring.requests.request_bytes import read_bodies
from paywarden.scoring.state import mirror_form as forms
from paywarden.scoring.state import mirror_look_up as mirror
from paywarden.scoring.state.mirror_look_up import look_up_bound
from paywarden.scoring.state.neighbours.hop_call import fill_bound_hops
from paywarden.scoring.state.overlay import overlay_table as overlays
from paywarden.scoring.state.overlay.overlay_reader import fill_hashed, hash_texts
from paywarden.scoring.state.overlay.overlay_table import add_bound

# Results of `decide_chunk`: DONE, or why it ended. FILLED is no trouble: the vectors are there, and STOPS is set.
DONE, UNUSUAL, CLAIMED_BEFORE, NO_PROFILES, NO_HOPS, NO_VECTORS, FILLED, NO_SCORES, WANTS_POLICY = range(9)
# Where `decide_chunk` begins.
FROM_READ, FROM_CLAIM, FROM_LOOK_UP, FROM_VECTORS, FROM_SCORE, FROM_TAILS = range(6)
# Places in `frames`.
READ, CLAIM, LOOK_UP, FILL, RECORD, OVERLAY, HOPS = range(7)
FRAME_COUNT = 7
# Places in `numbers`. First the constants, then the inputs that Python sets for each chunk, then the results that it
# reads.
ENTITIES, HASH, CLOCK, HAS_CLAIMS, OWNER, WINDOW_S, MARGINS, STALE_AFTER_MS, VECTOR_BYTES = range(9)
NOW_MS, DECISION, OUTBOX_POSITION, IS_TIMED, HAS_ARRIVALS, NOT_APPROVED = range(9, 15)
SIZE, AGE_MS = 15, 16
# For the overlay: xxHash's seeded function and its seed; whether the call reads the host's own clock; and if it does
# not, the chunk's time by that clock in milliseconds.
SEEDED_HASH, SEED, HAS_HOST_CLOCK, OVERLAY_NOW_MS = range(17, 21)
# The time of the chunk's claims, in seconds since the boot.
CLAIM_S = 21
# Inputs: whether the call ends after the vectors; whether an overlay that should be there has no table; whether Python
# makes the payments' flags. A result: whether the payments were scored without an overlay that should be there.
STOPS, LOST, IS_FLAGGED, IS_UNSURE = range(22, 26)
# A result: which profile cannot be read, and why, as `fill_bound_vectors` says it (features/kernel/batches.py).
STATUS = 26
NUMBER_COUNT = 27
# Places in `calibration`: a score is 1 / (1 + exp(-(SLOPE * margin + INTERCEPT))); at or above BELOW, or below it, the
# kept tails hold.
SLOPE, INTERCEPT, BELOW = range(3)
CALIBRATION_SIZE = 3
# The kept tail of a payment that Python asks the policy about.
NO_TAIL = -1
# Places in `laps`: nanoseconds at which each step ended, by the clock of arrivals.
PARSED, CLAIMED, LOOKED_UP, FILLED_AT, SCORED, DECIDED = range(6)
LAP_COUNT = 6
# Places in `counters`. Three for each entity come first: hits, misses, and the flag of unknown ones.
STALE_FLAG, APPROVED, SCORED_BY_MODEL, AGE_GAUGE, SCORE_BUCKETS, SCORE_SUM, RATE_FLAG = range(7)
# Those of the overlay; addresses of 0 without one.
ABSENT_FLAG, UNSURE, IS_USED, FOLDED, LEFT_OUT, ADDED, FULL, UNTIMELY = range(7, 15)
COUNTER_COUNT = 15
_MONOTONIC = 1
_SEPARATOR = 0


class ChunkSlots(NamedTuple):
    """The frame of this file's functions. Unless stated otherwise, an array is int64."""

    frames: int
    """The addresses of the steps' own frames, READ to HOPS. LOOK_UP is 0 without a mirror. OVERLAY is 0 without an
    overlay, and FILL is not used with one. HOPS is 0 where no feature looks at neighbours."""
    numbers: int
    """ENTITIES to STATUS."""
    calibration: int
    """SLOPE, INTERCEPT and BELOW, float64."""
    kept_tails: int
    """Shape (2, 2, 3**entities): the number of an approval's tail, or NO_TAIL. The first index is 1 without an overlay
    that should be there, the second for stale profiles. The last one has a digit for each entity: ABSENT, UNKNOWN or
    KNOWN."""
    margins: int
    """float64, one for each payment."""
    key: int
    """A caller's name with a payment's id, uint8. Scratch space."""
    time: int
    """Seconds and nanoseconds. Scratch space."""
    laps: int
    """PARSED to DECIDED; filled if IS_TIMED."""
    counters: int
    """The addresses of the metrics' slots."""
    score_bounds: int
    """The bounds of the scores' histogram, float64."""
    score_unit: int
    """How many units of its sum a score of 1 has, float64."""


SLOT = positions(ChunkSlots)


@inlined
def _now_ns(clock: int, time_at: int) -> int:
    """Returns the time of the clock of arrivals (time.perf_counter) in nanoseconds."""
    call_c(clock, _MONOTONIC, time_at, 0, 0)
    return int(word_at(time_at)) * 1_000_000_000 + int(word_at(time_at + 8))


@inlined
def _note_lap(frame_at: int, lap: int) -> None:
    """Note the time at which a step ended."""
    clock = word_at(address_number(frame_at, SLOT.numbers) + 8 * CLOCK)
    put_word_at(address_number(frame_at, SLOT.laps) + 8 * lap, _now_ns(clock, address_number(frame_at, SLOT.time)))


@inlined
def _presence_at(frames: I64) -> Any:
    """Returns the address of what is known of each payment's entities: one with a pending payment counts as known."""
    if frames[OVERLAY] != 0:
        return address(frames[OVERLAY], overlays.SLOT.folded)
    return address(frames[LOOK_UP], mirror.SLOT.presence)


@inlined
def _count(counters: I64, place: int, number: int) -> None:
    if number != 0:
        put_word_at(counters[place], word_at(counters[place]) + number)


@compiled(makes_arrays=True)
def _claim(frame_at: int, claim_at: int, read_at: int, record_at: int, count: int) -> bool:
    """Claim the ids that were read. Returns whether all were won."""
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    scratch = carray(address(frame_at, SLOT.key), size(frame_at, SLOT.key), np.uint8)
    pieces = numbers[ENTITIES] + 1
    texts = carray(address(read_at, requests.SLOT.texts), size(read_at, requests.SLOT.texts), np.uint8)
    ends = carray(address(read_at, requests.SLOT.ends), (count, pieces), np.int64)
    tags = carray(address(claim_at, claims.SLOT.tags), count, np.int64)
    callers = carray(address(record_at, records.SLOT.callers), size(record_at, records.SLOT.callers), np.uint8)
    caller_sizes = carray(address(record_at, records.SLOT.caller_sizes), count, np.int64)
    texts_at, scratch_at, caller = address_number(read_at, requests.SLOT.texts), address_number(frame_at, SLOT.key), 0
    for number in range(count):
        start, end = ends[number, pieces - 2], ends[number, pieces - 1]
        if caller_sizes[number] == 0:
            tag = call_c(numbers[HASH], texts_at + start, end - start, 0, 0)
        else:
            at = copy_bytes(callers, caller, caller_sizes[number], scratch, 0)
            scratch[at] = _SEPARATOR
            at = copy_bytes(texts, start, end - start, scratch, at + 1)
            tag = call_c(numbers[HASH], scratch_at, at, 0, 0)
            caller += caller_sizes[number]
        tags[number] = tag if tag != 0 else 1
    now_s = numbers[CLAIM_S]
    won = claim_bound(claim_at, count, numbers[OWNER] | now_s, now_s, numbers[WINDOW_S])
    return bool(won == count)


@compiled(makes_arrays=True)
def _look_up(look_up_at: int, read_at: int, count: int, entities: int) -> int:
    """Look up the keys that were read. Returns OK to BUSY of scoring/state/mirror_form.py."""
    ends = carray(address(read_at, requests.SLOT.ends), (count, entities + 1), np.int64)
    starts = carray(address(look_up_at, mirror.SLOT.key_starts), count * entities, np.int64)
    sizes = carray(address(look_up_at, mirror.SLOT.key_sizes), count * entities, np.int64)
    at = 0
    for number in range(count):
        for entity in range(entities):
            starts[number * entities + entity] = at
            sizes[number * entities + entity] = ends[number, entity] - at
            at = ends[number, entity]
        at = ends[number, entities]
    found: int = look_up_bound(look_up_at, count * entities)
    return found


@compiled(makes_arrays=True)
def _hash_for_overlay(frame_at: int, overlay_at: int, read_at: int, count: int) -> None:
    """Hash the keys and ids that were read, and note the chunk's time for the overlay."""
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    ends = carray(address(read_at, requests.SLOT.ends), (count, numbers[ENTITIES] + 1), np.int64)
    texts_at = address_number(read_at, requests.SLOT.texts)
    hash_texts(overlay_at, count, texts_at, ends, numbers[SEEDED_HASH], numbers[SEED])
    if numbers[HAS_HOST_CLOCK] == 1:
        numbers[OVERLAY_NOW_MS] = _now_ns(numbers[CLOCK], address_number(frame_at, SLOT.time)) // 1_000_000


@inlined
def _is_without_rate(read_at: int, number: int) -> bool:
    """Whether the amount of a payment is not known in the reference currency."""
    numbers_at = address_number(read_at, requests.SLOT.numbers)
    place = number * word_at(numbers_at + 8 * requests.ROW_WIDTH) + word_at(numbers_at + 8 * requests.AMOUNT_COLUMN)
    return bool(word_at(address_number(read_at, requests.SLOT.rows) + 8 * place) < 0)


@compiled(makes_arrays=True)
def _count_filled(overlay_at: int, counters: I64, first: int, count: int) -> bool:
    """Count payments that the overlay added. Returns whether it was used. `first`: the counters' first place."""
    seen = carray(address(overlay_at, overlays.SLOT.numbers), overlays.NUMBER_COUNT, np.int64)
    is_used = seen[overlays.IS_SURE] == 1
    put_word_at(counters[first + IS_USED], 1 if is_used else 0)
    if not is_used:
        _count(counters, first + UNSURE, count)
        return False
    if seen[overlays.FOLDED] != 0:
        _count(counters, first + FOLDED, seen[overlays.FOLDED])
        _count(counters, first + LEFT_OUT, seen[overlays.LEFT_OUT])
    return True


@compiled(makes_arrays=True)
def _add_pending(overlay_at: int, counters: I64, first: int, count: int, numbers: I64) -> None:
    """Make the payments of a chunk pending, whose vectors were filled with the overlay, and count them."""
    seen = carray(address(overlay_at, overlays.SLOT.numbers), overlays.NUMBER_COUNT, np.int64)
    now_ms, life_ms = numbers[NOW_MS], seen[overlays.LIFE_MS]
    add_bound(overlay_at, count, numbers[OVERLAY_NOW_MS], now_ms - life_ms, now_ms + life_ms)
    _count(counters, first + ADDED, seen[overlays.ADDED])
    _count(counters, first + FULL, seen[overlays.FULL])
    _count(counters, first + UNTIMELY, seen[overlays.UNTIMELY])


@compiled(makes_arrays=True)
def _score(frame_at: int, record_at: int, count: int) -> bool:
    """Score the vectors. Returns False if the model gives no number for one of them."""
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    calibration = carray(address(frame_at, SLOT.calibration), CALIBRATION_SIZE, np.float64)
    margins = carray(address(frame_at, SLOT.margins), count, np.float64)
    scores = carray(address(record_at, records.SLOT.scores), count, np.float64)
    call_c(
        numbers[MARGINS],
        address_number(record_at, records.SLOT.vectors),
        count,
        address_number(frame_at, SLOT.margins),
        0,
    )
    total = 0.0
    for number in range(count):
        total += margins[number]
    if not math.isfinite(total):
        return False
    for number in range(count):
        value = calibration[SLOPE] * margins[number] + calibration[INTERCEPT]
        scores[number] = 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0
    counters = carray(address(frame_at, SLOT.counters), size(frame_at, SLOT.counters), np.int64)
    _count(counters, 3 * numbers[ENTITIES] + SCORED_BY_MODEL, count)
    return True


@compiled(makes_arrays=True)
def _find(frame_at: int, count: int) -> int:
    """Look up the profiles of payments and of their neighbours, and count them. Returns DONE, or why it ended."""
    frames = carray(address(frame_at, SLOT.frames), FRAME_COUNT, np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    counters = carray(address(frame_at, SLOT.counters), size(frame_at, SLOT.counters), np.int64)
    look_up_at, entities = frames[LOOK_UP], numbers[ENTITIES]
    if frames[OVERLAY] != 0:
        _hash_for_overlay(frame_at, frames[OVERLAY], frames[READ], count)
    if look_up_at == 0 or _look_up(look_up_at, frames[READ], count, entities) != 0:
        return NO_PROFILES
    found = carray(address(look_up_at, mirror.SLOT.numbers), forms.NUMBER_COUNT, np.int64)
    complete_to_ms = found[forms.COMPLETE_TO_MS]
    numbers[AGE_MS] = max(0, numbers[NOW_MS] - complete_to_ms) if complete_to_ms > 0 else -1
    if numbers[AGE_MS] >= 0:
        put_word_at(counters[3 * entities + AGE_GAUGE], numbers[AGE_MS])
    presence = carray(address(look_up_at, mirror.SLOT.presence), (count, entities), np.uint8)
    for number in range(count):
        for entity in range(entities):
            if presence[number, entity] != ABSENT:
                _count(counters, 3 * entity + (0 if presence[number, entity] == KNOWN else 1), 1)
    if numbers[IS_TIMED] == 1:
        _note_lap(frame_at, LOOKED_UP)
    return NO_HOPS if frames[HOPS] != 0 and not fill_bound_hops(frames[HOPS], count) else DONE


@compiled(makes_arrays=True)
def _fill(frame_at: int, count: int) -> bool:
    """Fill the vectors from the profiles that were found. Returns False if a profile cannot be read: see STATUS."""
    frames = carray(address(frame_at, SLOT.frames), FRAME_COUNT, np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    counters = carray(address(frame_at, SLOT.counters), size(frame_at, SLOT.counters), np.int64)
    overlay_at, entities = frames[OVERLAY], numbers[ENTITIES]
    if overlay_at != 0:
        found = carray(address(frames[LOOK_UP], mirror.SLOT.numbers), forms.NUMBER_COUNT, np.int64)
        numbers[STATUS] = fill_hashed(overlay_at, count, numbers[OVERLAY_NOW_MS], found[forms.SNAPSHOT])
    else:
        numbers[STATUS] = fill_bound_vectors(frames[FILL], count)
    if numbers[STATUS] != OK:
        return False
    numbers[IS_UNSURE] = numbers[LOST]
    if overlay_at != 0:
        numbers[IS_UNSURE] = 0 if _count_filled(overlay_at, counters, 3 * entities, count) else 1
    elif numbers[LOST] == 1:
        put_word_at(counters[3 * entities + IS_USED], 0)
        _count(counters, 3 * entities + UNSURE, count)
    return True


@compiled(makes_arrays=True)
def _choose_tails(frame_at: int, count: int) -> int:
    """Choose the kept tails. Returns how many payments have no tail: all of them, if Python makes their flags."""
    frames = carray(address(frame_at, SLOT.frames), FRAME_COUNT, np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    tails = carray(address(frames[RECORD], records.SLOT.tail_numbers), count, np.int64)
    if numbers[IS_FLAGGED] == 1:
        for number in range(count):
            tails[number] = NO_TAIL
        return count
    calibration = carray(address(frame_at, SLOT.calibration), CALIBRATION_SIZE, np.float64)
    kept = carray(address(frame_at, SLOT.kept_tails), size(frame_at, SLOT.kept_tails), np.int64)
    entities = numbers[ENTITIES]
    known = carray(_presence_at(frames), (count, entities), np.uint8)
    scores = carray(address(frames[RECORD], records.SLOT.scores), count, np.float64)
    first = len(kept) // 4 if numbers[AGE_MS] > numbers[STALE_AFTER_MS] else 0
    if numbers[IS_UNSURE] == 1:
        first += len(kept) // 2
    missing = 0
    for number in range(count):
        pattern = 0
        for entity in range(entities):
            pattern = 3 * pattern + known[number, entity]
        is_usual = scores[number] < calibration[BELOW] and not _is_without_rate(frames[READ], number)
        tails[number] = kept[first + pattern] if is_usual else NO_TAIL
        missing += 1 if tails[number] == NO_TAIL else 0
    return missing


@compiled(makes_arrays=True)
def _hand_on_texts(read_at: int, record_at: int, count: int, entities: int) -> None:
    """Copy the bodies, as far as they are kept, and the ids to where the records are made."""
    data = carray(address(read_at, requests.SLOT.data), size(read_at, requests.SLOT.data), np.uint8)
    lengths = carray(address(read_at, requests.SLOT.lengths), count, np.int64)
    kept = carray(address(read_at, requests.SLOT.kept), count, np.int64)
    texts = carray(address(read_at, requests.SLOT.texts), size(read_at, requests.SLOT.texts), np.uint8)
    ends = carray(address(read_at, requests.SLOT.ends), (count, entities + 1), np.int64)
    bodies = carray(address(record_at, records.SLOT.bodies), size(record_at, records.SLOT.bodies), np.uint8)
    body_sizes = carray(address(record_at, records.SLOT.body_sizes), count, np.int64)
    ids = carray(address(record_at, records.SLOT.ids), size(record_at, records.SLOT.ids), np.uint8)
    id_sizes = carray(address(record_at, records.SLOT.id_sizes), count, np.int64)
    begun, body, identity = 0, 0, 0
    for number in range(count):
        body_sizes[number] = kept[number]
        body = copy_bytes(data, begun, kept[number], bodies, body)
        begun += lengths[number]
        start = ends[number, entities - 1]
        id_sizes[number] = ends[number, entities] - start
        identity = copy_bytes(texts, start, id_sizes[number], ids, identity)


@compiled(makes_arrays=True)
def decide_chunk(frame_at: int, count: int, step: int) -> int:
    """Decide about the first `count` bodies of the reader's frame, from a step on. Returns DONE, or why it ended.

    After DONE the records are written and the claims know where each will begin: see `write_chunk`.
    """
    frames = carray(address(frame_at, SLOT.frames), FRAME_COUNT, np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    is_timed = numbers[IS_TIMED] == 1
    if step == FROM_READ:
        read_bodies(frames[READ], count)
        is_usual = carray(address(frames[READ], requests.SLOT.is_usual), count, np.uint8)
        for number in range(count):
            if is_usual[number] == 0:
                return UNUSUAL
    if step <= FROM_CLAIM:
        if is_timed:
            _note_lap(frame_at, PARSED)
        if numbers[HAS_CLAIMS] == 1 and not _claim(frame_at, frames[CLAIM], frames[READ], frames[RECORD], count):
            return CLAIMED_BEFORE
    if step <= FROM_LOOK_UP:
        if is_timed and numbers[HAS_CLAIMS] == 1:
            _note_lap(frame_at, CLAIMED)
        ended = _find(frame_at, count)
        if ended != DONE:
            return ended
    if step <= FROM_VECTORS:
        if not _fill(frame_at, count):
            return NO_VECTORS
        if numbers[STOPS] == 1:
            return FILLED
    if step <= FROM_SCORE:
        if is_timed:
            _note_lap(frame_at, FILLED_AT)
        if numbers[MARGINS] == 0 or not _score(frame_at, frames[RECORD], count):
            return NO_SCORES
    if is_timed:
        _note_lap(frame_at, SCORED)
    if _choose_tails(frame_at, count) > 0:
        return WANTS_POLICY
    write_chunk(frame_at, count)
    return DONE


@compiled(makes_arrays=True)
def write_chunk(frame_at: int, count: int) -> None:
    """Write the records, SIZE bytes, and note in the claims where each will begin behind OUTBOX_POSITION."""
    frames = carray(address(frame_at, SLOT.frames), FRAME_COUNT, np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    time_at = address_number(frame_at, SLOT.time)
    _hand_on_texts(frames[READ], frames[RECORD], count, numbers[ENTITIES])
    decided_s = _now_ns(numbers[CLOCK], time_at) * 1e-9 if numbers[HAS_ARRIVALS] == 1 else np.nan
    numbers[SIZE] = write_records(
        frames[RECORD], count, numbers[VECTOR_BYTES], numbers[DECISION], numbers[AGE_MS], numbers[NOW_MS], decided_s
    )
    if numbers[HAS_CLAIMS] == 1:
        bounds = carray(address(frames[RECORD], records.SLOT.bounds), (count, 3), np.int64)
        begins = carray(address(frames[CLAIM], claims.SLOT.positions), count, np.int64)
        for number in range(count):
            begins[number] = numbers[OUTBOX_POSITION] + bounds[number, records.FRAME]
        place_bound(frames[CLAIM], count)
    if numbers[IS_TIMED] == 1:
        _note_lap(frame_at, DECIDED)


@compiled(makes_arrays=True)
def settle_chunk(frame_at: int, count: int) -> None:
    """Settle the claims of a chunk whose records are appended, count its decisions, and make its payments pending.

    Python counts the NOT_APPROVED decisions, which are no approvals, and the flags that Python has made.
    """
    frames = carray(address(frame_at, SLOT.frames), FRAME_COUNT, np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    if numbers[HAS_CLAIMS] == 1:
        settle_bound(frames[CLAIM], count, numbers[OWNER])
    counters = carray(address(frame_at, SLOT.counters), size(frame_at, SLOT.counters), np.int64)
    bounds = carray(address(frame_at, SLOT.score_bounds), size(frame_at, SLOT.score_bounds), np.float64)
    unit = carray(address(frame_at, SLOT.score_unit), 1, np.float64)[0]
    scores = carray(address(frames[RECORD], records.SLOT.scores), count, np.float64)
    entities, overlay_at = numbers[ENTITIES], frames[OVERLAY]
    buckets = carray(pointer(counters[3 * entities + SCORE_BUCKETS]), len(bounds) + 1, np.int64)
    total = 0.0
    for number in range(count):
        # A payment that no model scored has NaN.
        if scores[number] == scores[number]:
            bucket = 0
            while bucket < len(bounds) and bounds[bucket] < scores[number]:
                bucket += 1
            buckets[bucket] += 1
            total += scores[number]
    _count(counters, 3 * entities + SCORE_SUM, int(total * unit))
    _count(counters, 3 * entities + APPROVED, count - numbers[NOT_APPROVED])
    if numbers[IS_FLAGGED] == 0:
        presence = carray(_presence_at(frames), (count, entities), np.uint8)
        for number in range(count):
            for entity in range(entities):
                if presence[number, entity] != ABSENT and presence[number, entity] != KNOWN:
                    _count(counters, 3 * entity + 2, 1)
            if _is_without_rate(frames[READ], number):
                _count(counters, 3 * entities + RATE_FLAG, 1)
        if numbers[AGE_MS] > numbers[STALE_AFTER_MS]:
            _count(counters, 3 * entities + STALE_FLAG, count)
        if numbers[IS_UNSURE] == 1:
            _count(counters, 3 * entities + ABSENT_FLAG, count)
    if overlay_at != 0:
        _add_pending(overlay_at, counters, 3 * entities, count, numbers)
