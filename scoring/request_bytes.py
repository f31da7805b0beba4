"""The compiled half of scoring/fast_requests.py: bytes of requests to rows of attributes and keys of entities.

A body is a protobuf message: fields in any order, each a tag (its number times eight, and how it is stored) and a
varint, or a length and so many bytes. For each field the program says what kind of text or number it is. Anything that
is not just as expected makes the body one that is not usual, and then nothing that was read of it counts.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from features.kernel import pointer
from scoring.compiled import inlined

# Every number the compiled code depends on stands in this file: numba's cache looks at no other.

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

# Kinds of fields: an id, a word, a code of a form of its own, a time, an amount, minutes.
NONE, ID, WORD, CURRENCY, MCC, COUNTRY, TIME, AMOUNT, OFFSET = range(9)
# A tag is one byte, so this is beyond the last field's number.
FIELDS_MAX = 16
# Columns of the program, which has a row for each field's number: its kind, and its column in the row of attributes
# or -1.
KIND, COLUMN = range(2)
# What differs from one worker to another, and by the hour: places in the numbers.
EARLIEST_MS, LATEST_MS, ID_BYTES_MAX, WORD_BYTES_MAX, AMOUNT_MAX, OFFSET_MAX, KEY_BYTES_MAX = range(7)
# The fields that must be there, as bits; numbers of fields; columns of attributes.
REQUIRED, PAYMENT_ID, CARD_ID, CURRENCY_FIELD, TIME_COLUMN, MINOR_COLUMN, AMOUNT_COLUMN, ENTITY_COUNT = range(7, 15)
NUMBER_COUNT = 15
# What stands for a code of three letters that is no currency.
NO_CURRENCY = -1
ATTRIBUTE_COUNT, OFFSET_ZERO, RATE_SCALE, SEPARATOR = 13, 1440, 1_000_000, 0x1F
# Of a card's number.
DIGITS_MIN, DIGITS_MAX = 13, 19
# How a field is stored.
_VARINT, _BYTES = 0, 2
# Rows of the places of a body's texts: where each begins, and how long it is.
_START, _SIZE = range(2)
# In the order of the frame.
ARRAYS = (
    *("program", "numbers", "crc_table", "data", "lengths", "rows", "currencies", "rate_bounds", "rate_times"),
    *("rates", "entities", "prefixes", "texts", "ends", "is_usual", "places", "varint"),
)
# No array is longer; the true lengths are the caller's.
_ANY = 1 << 40


@inlined
def _read_varint(data: U8, at: int, end: int, result: I64) -> int:
    """The number that begins at `at`, into result[0]; returns where it ends, -1 where it is none."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(64):
        byte = data[at]
        if shift == np.uint64(63) and byte > 1:
            return -1
        value |= np.uint64(byte & 127) << shift
        at += 1
        if byte < 128:
            result[0] = np.int64(value)
            return at
        shift += np.uint64(7)
    return -1


@inlined
def _is_printable(data: U8, at: int, end: int) -> bool:
    """Whether all is ASCII, and nothing a control character."""
    good = True
    for place in range(at, end):
        good &= 32 <= data[place] < 127
    return good


@inlined
def _may_be_card_number(data: U8, at: int, end: int) -> bool:
    """Digits, as many as a card's number has, grouped or not: whether it is one, `wire.RequestRules` says."""
    digits = 0
    for place in range(at, end):
        byte = data[place]
        if 48 <= byte < 58:
            digits += 1
        elif byte not in (32, 45):
            return False
    return DIGITS_MIN <= digits <= DIGITS_MAX


@inlined
def _letters(data: U8, at: int, count: int) -> int:
    """So many capital letters as a number of base 26; -1 where there is anything else."""
    code = 0
    for place in range(at, at + count):
        letter = int(data[place]) - 65
        if not 0 <= letter < 26:
            return -1
        code = 26 * code + letter
    return code


@inlined
def _is_text_good(kind: int, numbers: I64, data: U8, at: int, size: int) -> bool:
    if kind == ID:
        return bool(size <= numbers[ID_BYTES_MAX])
    if kind == WORD:
        return bool(size <= numbers[WORD_BYTES_MAX])
    if kind == MCC:
        good = size == 4
        for place in range(at, at + size):
            good &= 48 <= data[place] < 58
        return good
    if kind == COUNTRY:
        return bool(size == 2 and _letters(data, at, 2) >= 0)
    return kind == CURRENCY and size == 3


@inlined
def _checksum(crc_table: I64, data: U8, at: int, end: int) -> np.int64:
    """CRC-32, as zlib has it."""
    crc = np.int64(0xFFFFFFFF)
    for place in range(at, end):
        crc = crc_table[(crc ^ data[place]) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@inlined
def _converted(amount: np.int64, time_ms: np.int64, first: int, last: int, times: I64, rates: I64) -> np.int64:
    """An amount in the reference currency at the last rate that is not after the payment, or else the first."""
    chosen = first
    for place in range(first + 1, last):
        if times[place] <= time_ms:
            chosen = place
    return np.int64((amount * rates[chosen] + RATE_SCALE // 2) // RATE_SCALE)


@inlined
def _read_body(
    program: I64,
    numbers: I64,
    crc_table: I64,
    data: U8,
    at: int,
    end: int,
    row: I64,
    places: I64,
    varint: I64,
) -> bool:
    """Fill the row, but for the amount in the reference currency, and the places of texts. False: not usual."""
    for column in range(ATTRIBUTE_COUNT):
        row[column] = 0
    for field in range(FIELDS_MAX):
        places[_SIZE, field] = 0
    seen = 0
    while at < end:
        tag = int(data[at])
        field, stored = tag >> 3, tag & 7
        if tag > 127 or seen >> field & 1 == 1:
            return False
        seen |= 1 << field
        kind, column = program[field, KIND], program[field, COLUMN]
        at = _read_varint(data, at + 1, end, varint)
        if at < 0 or kind == NONE or stored != (_VARINT if kind >= TIME else _BYTES):
            return False
        value = int(varint[0])
        if kind == TIME:
            if not numbers[EARLIEST_MS] <= value <= numbers[LATEST_MS]:
                return False
            row[numbers[TIME_COLUMN]] = value
        elif kind == AMOUNT:
            if not 0 <= value <= numbers[AMOUNT_MAX]:
                return False
            row[numbers[MINOR_COLUMN]] = value
        elif kind == OFFSET:
            if not -numbers[OFFSET_MAX] <= value <= numbers[OFFSET_MAX]:
                return False
            if column >= 0:
                row[column] = value + OFFSET_ZERO
        else:
            if not 0 < value <= end - at or not _is_text_good(kind, numbers, data, at, value):
                return False
            if not _is_printable(data, at, at + value):
                return False
            places[_START, field], places[_SIZE, field] = at, value
            if column >= 0:
                if kind == COUNTRY:
                    row[column] = _letters(data, at, 2) + 1
                else:
                    row[column] = _checksum(crc_table, data, at, at + value) + 1
            at += value
    card = numbers[CARD_ID]
    return seen & numbers[REQUIRED] == numbers[REQUIRED] and not _may_be_card_number(
        data, places[_START, card], places[_START, card] + places[_SIZE, card]
    )


@inlined
def _copy(data: U8, start: int, size: int, texts: U8, position: int) -> int:
    for offset in range(size):
        texts[position + offset] = data[start + offset]
    return position + size


@inlined
def _write_key(
    data: U8,
    places: I64,
    entities: I64,
    at: int,
    prefixes: U8,
    prefix: int,
    texts: U8,
    position: int,
    key_bytes_max: int,
) -> int:
    """Write the key of the entity that begins at `at`; returns where it ends, -1 where it is not usual.

    A payment that lacks one of the key's fields has no such entity, and the key is empty.
    """
    fields = entities[at + 1]
    for field in range(at + 2, at + 2 + fields):
        if places[_SIZE, entities[field]] == 0:
            return position
    end = _copy(prefixes, prefix, entities[at] - prefix, texts, position)
    for field in range(at + 2, at + 2 + fields):
        if field > at + 2:
            texts[end] = SEPARATOR
            end += 1
        end = _copy(data, places[_START, entities[field]], places[_SIZE, entities[field]], texts, end)
    return end if end - position <= key_bytes_max else -1


# With reference counting: without it numba makes no arrays, and these have nothing to count.
@njit(cache=True)
def read_bodies(frame_at: int, count: int) -> int:
    """Read the first `count` bodies; returns how many bytes of texts there are.

    The frame holds the addresses of ARRAYS: numba takes 0.1 µs to look at each array it is called with, and these are
    always the same. `data` holds the bodies one behind the other, `lengths` their lengths. For each body `rows` gets
    its attributes, `is_usual` 1 or 0, and `ends` where in `texts` the key of each entity ends, and then the payment's
    id: all empty where it is not usual.
    """
    frame = carray(pointer(frame_at), 17, np.int64)
    program = carray(pointer(frame[0]), (FIELDS_MAX, 2), np.int64)
    numbers = carray(pointer(frame[1]), NUMBER_COUNT, np.int64)
    crc_table = carray(pointer(frame[2]), 256, np.int64)
    data = carray(pointer(frame[3]), _ANY, np.uint8)
    lengths = carray(pointer(frame[4]), count, np.int64)
    rows = carray(pointer(frame[5]), (count, ATTRIBUTE_COUNT), np.int64)
    currencies = carray(pointer(frame[6]), 26**3, np.int64)
    rate_bounds = carray(pointer(frame[7]), _ANY, np.int64)
    rate_times = carray(pointer(frame[8]), _ANY, np.int64)
    rates = carray(pointer(frame[9]), _ANY, np.int64)
    entities = carray(pointer(frame[10]), _ANY, np.int64)
    prefixes = carray(pointer(frame[11]), _ANY, np.uint8)
    texts = carray(pointer(frame[12]), _ANY, np.uint8)
    pieces = numbers[ENTITY_COUNT] + 1
    ends = carray(pointer(frame[13]), (count, pieces), np.int64)
    is_usual = carray(pointer(frame[14]), count, np.uint8)
    places = carray(pointer(frame[15]), (2, FIELDS_MAX), np.int64)
    varint = carray(pointer(frame[16]), 1, np.int64)
    begun, start = 0, 0
    for number in range(count):
        end, row = start + lengths[number], rows[number]
        good = _read_body(program, numbers, crc_table, data, start, end, row, places, varint)
        currency = NO_CURRENCY
        if good:
            code = _letters(data, places[_START, numbers[CURRENCY_FIELD]], 3)
            currency = NO_CURRENCY if code < 0 else int(currencies[code])
            good = currency != NO_CURRENCY
        position, at, prefix = begun, 0, 0
        if good:
            time_ms, minor = row[numbers[TIME_COLUMN]], row[numbers[MINOR_COLUMN]]
            first, last = rate_bounds[currency], rate_bounds[currency + 1]
            row[numbers[AMOUNT_COLUMN]] = _converted(minor, time_ms, first, last, rate_times, rates)
            for entity in range(pieces - 1):
                position = _write_key(
                    data, places, entities, at, prefixes, prefix, texts, position, numbers[KEY_BYTES_MAX]
                )
                if position < 0:
                    good = False
                    break
                ends[number, entity] = position
                prefix, at = entities[at], at + 2 + entities[at + 1]
        if good:
            payment_id = numbers[PAYMENT_ID]
            begun = _copy(data, places[_START, payment_id], places[_SIZE, payment_id], texts, position)
            ends[number, pieces - 1] = begun
        else:
            for piece in range(pieces):
                ends[number, piece] = begun
        is_usual[number] = 1 if good else 0
        start = end
    return begun
