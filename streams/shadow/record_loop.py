"""The compiled half of streams/shadow/fast_records.py: from the records of an outbox to shadow records, as bytes.

    records ─► read_entries ─► vectors, places ─► (the challenger's model) ─► write_records ─► shadow records
                    └─ UNUSUAL: Python reads it, and decides ◄────────────────────┘ a score at or above BELOW

1. `read_entries` finds the parts of each entry (schemas/proto/outbox.proto) and copies its vector. Nothing is decoded
   that a shadow record does not need, but every field must have its usual form, and every text must be ASCII.
2. An entry is usual if its origin (the digests of bundle and policy) is known and none of its flags asks for an action.
   Then the policy approves it if its score is below the threshold.
3. `write_records` writes the usual ones in Avro (schemas/avsc/shadow-decisions.avsc).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import I64, U8
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes, is_ascii, is_same
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.varint import read_varint, write_varint, zigzag
from paywarden.features.kernel.toolkit.words import load_word, store_word
from paywarden.scoring.state.outbox.frame_loop import HEAD_BYTES

# Places in `numbers`. An age above ASKED_ABOVE_MS is a question for the policy.
VECTOR_BYTES, ASKED_ABOVE_MS, ORIGIN_COUNT, NUMBER_COUNT = range(4)
ACTION_COUNT = 3
# The result for an entry. A larger number says why an entry of its origin is left out.
UNUSUAL, USUAL, LEFT_OUT = range(3)
DIGEST_BYTES = 32
# The most bytes of a shadow record beside header, names and ids: sizes of three ids, time, scores, actions, reasons.
OVERHEAD_BYTES = 64
# Columns of `places`: where parts of an entry begin in the records, and how long they are; numbers as they are.
PAYMENT, CARD, DECISION, VECTOR, BUNDLE, POLICY = 0, 2, 4, 6, 8, 10
TIME, SCORE, ACTION, ORIGIN = range(12, 16)
PLACE_COUNT = 16
# Columns of `bounds`: of a shadow record in `out`, and of its payment's id in the records.
BEGIN, END, KEY_BEGIN, KEY_END = range(4)
BOUND_COUNT = 4
# The pieces of `constants`.
HEADER, CATALOGUE, CHALLENGER = range(3)
# The bits of the double 1.0, the largest score.
_ONE = 0x3FF0000000000000
# Wire types.
_VARINT, _EIGHT, _BYTES = range(3)
# The fields by number, as bits: varints, doubles, and those that may be repeated. The others are bytes or texts.
_ENTRY_LAST, _REQUEST_LAST, _RESPONSE_LAST = 16, 12, 8
_ENTRY_VARINTS, _ENTRY_DOUBLES, _ENTRY_ABSENT = 1 << 3 | 1 << 15, 1 << 11, 1 << 13 | 1 << 14
_REQUEST_VARINTS = 1 << 2 | 1 << 7 | 1 << 12
_RESPONSE_VARINTS, _RESPONSE_DOUBLES, _RESPONSE_REPEATED = 1 << 8, 1 << 3, 1 << 5 | 1 << 7
# Numbers of fields.
_REQUEST, _RESPONSE, _DECIDED, _VECTOR, _CATALOGUE, _BUNDLE, _POLICY = 1, 2, 3, 4, 5, 7, 8
_PAYMENT_ID, _CARD_ID = 1, 3
_DECISION_ID, _SCORE, _ACTION, _FLAGS, _AGE = 2, 3, 4, 7, 8
_TRACE = 16


class LoopSlots(NamedTuple):
    """The frame of this file's functions. Unless stated otherwise, an array is int64."""

    numbers: int
    """VECTOR_BYTES to ORIGIN_COUNT."""
    data: int
    """The records with their heads, concatenated, uint8."""
    ends: int
    """Where each record ends in `data`."""
    status: int
    """Filled: UNUSUAL, USUAL, or more, for each entry."""
    places: int
    """Shape (entries, PLACE_COUNT). Filled for usual entries."""
    vectors: int
    """Filled: a row of bytes for each usual entry."""
    scores: int
    """The challenger's scores, float64, one for each usual entry."""
    below: int
    """The score from which on the policy is asked, float64."""
    texts: int
    """The names of the actions, in the order of the schema, and then the flags that ask for nothing, uint8."""
    text_ends: int
    origins: int
    """Shape (origins, 2 * DIGEST_BYTES), uint8: the digests of bundle and policy; zeros for a missing one."""
    origin_sizes: int
    """Shape (origins, 2): the size of each digest."""
    origin_status: int
    """USUAL, or the status of all entries of this origin."""
    names: int
    """The Avro bytes of the names of each origin, concatenated, uint8."""
    name_ends: int
    constants: int
    """HEADER of each record, the CATALOGUE of the vectors, and the Avro bytes of the CHALLENGER's digests, uint8."""
    constant_ends: int
    out: int
    """Filled: the shadow records, concatenated, uint8. It must be large enough."""
    bounds: int
    """Shape (entries, BOUND_COUNT). Filled for usual entries: BEGIN to KEY_END."""


SLOT = positions(LoopSlots)


@compiled()
def _text_number(texts: U8, ends: I64, data: U8, at: int, count: int) -> int:
    """Returns the number of the text that equals `count` bytes of `data`; -1 without one."""
    start = 0
    for number in range(len(ends)):
        if ends[number] - start == count and is_same(data, at, texts, start, count):
            return number
        start = ends[number]
    return -1


@compiled()
def _read_request(data: U8, at: int, end: int, places: I64) -> bool:
    seen = 0
    while at < end:
        tag, at = read_varint(data, at, end)
        if at < 0:
            return False
        field, stored = tag >> 3, tag & 7
        if not 0 < field <= _REQUEST_LAST or seen >> field & 1 == 1:
            return False
        seen |= 1 << field
        value, at = read_varint(data, at, end)
        if at < 0:
            return False
        if _REQUEST_VARINTS >> field & 1 == 1:
            if stored != _VARINT:
                return False
            continue
        if stored != _BYTES or not 0 <= value <= end - at or not is_ascii(data, at, at + value):
            return False
        if field == _PAYMENT_ID:
            places[PAYMENT], places[PAYMENT + 1] = at, value
        elif field == _CARD_ID:
            places[CARD], places[CARD + 1] = at, value
        at += value
    return True


@compiled()
def _read_response(data: U8, at: int, end: int, places: I64, numbers: I64, texts: U8, text_ends: I64) -> bool:
    seen = 0
    while at < end:
        tag, at = read_varint(data, at, end)
        if at < 0:
            return False
        field, stored = tag >> 3, tag & 7
        if not 0 < field <= _RESPONSE_LAST:
            return False
        if _RESPONSE_REPEATED >> field & 1 == 0:
            if seen >> field & 1 == 1:
                return False
            seen |= 1 << field
        if _RESPONSE_DOUBLES >> field & 1 == 1:
            if stored != _EIGHT or at + 8 > end:
                return False
            places[SCORE] = load_word(data, at)
            at += 8
            continue
        value, at = read_varint(data, at, end)
        if at < 0:
            return False
        if _RESPONSE_VARINTS >> field & 1 == 1:
            if stored != _VARINT or value > numbers[ASKED_ABOVE_MS]:
                return False
            continue
        if stored != _BYTES or not 0 <= value <= end - at or not is_ascii(data, at, at + value):
            return False
        if field == _DECISION_ID:
            places[DECISION], places[DECISION + 1] = at, value
        elif field == _ACTION:
            places[ACTION] = _text_number(texts, text_ends, data, at, value)
        elif field == _FLAGS and _text_number(texts, text_ends, data, at, value) < ACTION_COUNT:
            return False
        at += value
    return bool(0 <= places[ACTION] < ACTION_COUNT and 0 <= places[SCORE] <= _ONE)


@compiled()
def _origin_number(data: U8, places: I64, count: int, origins: U8, sizes: I64) -> int:
    for number in range(count):
        if (
            sizes[2 * number] == places[BUNDLE + 1]
            and sizes[2 * number + 1] == places[POLICY + 1]
            and is_same(data, places[BUNDLE], origins, 2 * number * DIGEST_BYTES, places[BUNDLE + 1])
            and is_same(data, places[POLICY], origins, (2 * number + 1) * DIGEST_BYTES, places[POLICY + 1])
        ):
            return number
    return -1


@compiled(makes_arrays=True)
def read_entries(frame_at: int, count: int) -> int:
    """Read the first `count` records. Returns the number of usual records, whose vectors stand one after the other."""
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    data = carray(address(frame_at, SLOT.data), size(frame_at, SLOT.data), np.uint8)
    ends = carray(address(frame_at, SLOT.ends), count, np.int64)
    status = carray(address(frame_at, SLOT.status), count, np.int64)
    places = carray(address(frame_at, SLOT.places), (count, PLACE_COUNT), np.int64)
    vectors = carray(address(frame_at, SLOT.vectors), count * numbers[VECTOR_BYTES], np.uint8)
    texts = carray(address(frame_at, SLOT.texts), size(frame_at, SLOT.texts), np.uint8)
    text_ends = carray(address(frame_at, SLOT.text_ends), size(frame_at, SLOT.text_ends), np.int64)
    origins = carray(address(frame_at, SLOT.origins), size(frame_at, SLOT.origins), np.uint8)
    origin_sizes = carray(address(frame_at, SLOT.origin_sizes), size(frame_at, SLOT.origin_sizes), np.int64)
    origin_status = carray(address(frame_at, SLOT.origin_status), size(frame_at, SLOT.origin_status), np.int64)
    constants = carray(address(frame_at, SLOT.constants), size(frame_at, SLOT.constants), np.uint8)
    constant_ends = carray(address(frame_at, SLOT.constant_ends), size(frame_at, SLOT.constant_ends), np.int64)
    catalogue = constant_ends[HEADER]
    catalogue_size = constant_ends[CATALOGUE] - catalogue
    usual, begun = 0, 0
    for number in range(count):
        at, end, place = begun + HEAD_BYTES, ends[number], places[number]
        begun = end
        status[number] = UNUSUAL
        for column in range(PLACE_COUNT):
            place[column] = 0
        place[ACTION] = -1
        seen, is_usual = 0, True
        while is_usual and at < end:
            tag, at = read_varint(data, at, end)
            field, stored = tag >> 3, tag & 7
            if at < 0 or not 0 < field <= _ENTRY_LAST or (seen | _ENTRY_ABSENT) >> field & 1 == 1:
                is_usual = False
                break
            seen |= 1 << field
            if _ENTRY_DOUBLES >> field & 1 == 1:
                is_usual = stored == _EIGHT and at + 8 <= end
                at += 8
                continue
            value, at = read_varint(data, at, end)
            if at < 0:
                is_usual = False
            elif _ENTRY_VARINTS >> field & 1 == 1:
                is_usual = stored == _VARINT
                if field == _DECIDED:
                    place[TIME] = value
            elif stored != _BYTES or not 0 <= value <= end - at:
                is_usual = False
            else:
                if field == _REQUEST:
                    is_usual = _read_request(data, at, at + value, place)
                elif field == _RESPONSE:
                    is_usual = _read_response(data, at, at + value, place, numbers, texts, text_ends)
                elif field == _VECTOR:
                    place[VECTOR], is_usual = at, value == numbers[VECTOR_BYTES]
                elif field == _CATALOGUE:
                    is_usual = value == catalogue_size and is_same(data, at, constants, catalogue, value)
                elif field == _BUNDLE:
                    place[BUNDLE], place[BUNDLE + 1] = at, value
                elif field == _POLICY:
                    place[POLICY], place[POLICY + 1] = at, value
                elif field != _TRACE:
                    is_usual = is_ascii(data, at, at + value)
                at += value
        needed = 1 << _RESPONSE | 1 << _VECTOR | 1 << _CATALOGUE
        if not is_usual or seen & needed != needed:
            continue
        origin = _origin_number(data, place, numbers[ORIGIN_COUNT], origins, origin_sizes)
        if origin < 0:
            continue
        status[number], place[ORIGIN] = origin_status[origin], origin
        if status[number] == USUAL:
            copy_bytes(data, place[VECTOR], numbers[VECTOR_BYTES], vectors, usual * numbers[VECTOR_BYTES])
            usual += 1
    return usual


@inlined
def _write_text(data: U8, start: int, count: int, out: U8, at: int) -> int:
    return int(copy_bytes(data, start, count, out, write_varint(out, at, zigzag(count))))


@compiled(makes_arrays=True)
def write_records(frame_at: int, count: int) -> int:
    """Write the shadow records of usual entries, and make those UNUSUAL that the policy is asked about.

    Returns the number of bytes written.
    """
    data = carray(address(frame_at, SLOT.data), size(frame_at, SLOT.data), np.uint8)
    status = carray(address(frame_at, SLOT.status), count, np.int64)
    places = carray(address(frame_at, SLOT.places), (count, PLACE_COUNT), np.int64)
    scores = carray(address(frame_at, SLOT.scores), count, np.float64)
    score_words = carray(address(frame_at, SLOT.scores), count, np.int64)
    below = carray(address(frame_at, SLOT.below), 1, np.float64)[0]
    names = carray(address(frame_at, SLOT.names), size(frame_at, SLOT.names), np.uint8)
    name_ends = carray(address(frame_at, SLOT.name_ends), size(frame_at, SLOT.name_ends), np.int64)
    constants = carray(address(frame_at, SLOT.constants), size(frame_at, SLOT.constants), np.uint8)
    constant_ends = carray(address(frame_at, SLOT.constant_ends), size(frame_at, SLOT.constant_ends), np.int64)
    out = carray(address(frame_at, SLOT.out), size(frame_at, SLOT.out), np.uint8)
    bounds = carray(address(frame_at, SLOT.bounds), (count, BOUND_COUNT), np.int64)
    challenger = constant_ends[CATALOGUE]
    challenger_size = constant_ends[CHALLENGER] - challenger
    row, at = 0, 0
    for number in range(count):
        if status[number] != USUAL:
            continue
        score, score_word = scores[row], score_words[row]
        row += 1
        # A score that is no number is not below anything.
        if not score < below:
            status[number] = UNUSUAL
            continue
        place, bound = places[number], bounds[number]
        bound[BEGIN], bound[KEY_BEGIN] = at, place[PAYMENT]
        bound[KEY_END] = place[PAYMENT] + place[PAYMENT + 1]
        at = copy_bytes(constants, 0, constant_ends[HEADER], out, at)
        at = _write_text(data, place[DECISION], place[DECISION + 1], out, at)
        at = _write_text(data, place[PAYMENT], place[PAYMENT + 1], out, at)
        at = _write_text(data, place[CARD], place[CARD + 1], out, at)
        at = write_varint(out, at, zigzag(place[TIME]))
        name = name_ends[place[ORIGIN] - 1] if place[ORIGIN] > 0 else 0
        at = copy_bytes(names, name, name_ends[place[ORIGIN]] - name, out, at)
        store_word(out, at, place[SCORE])
        out[at + 8] = 2 * place[ACTION]
        at = copy_bytes(constants, challenger, challenger_size, out, at + 9)
        store_word(out, at, score_word)
        # The first action, and no reasons.
        out[at + 8], out[at + 9] = 0, 0
        at += 10
        bound[END] = at
    return at
