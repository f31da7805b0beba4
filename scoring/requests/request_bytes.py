"""The compiled half of scoring/requests/fast_requests.py: reads protobuf bytes into attributes and entity keys.

A body is a protobuf message: fields in any order. A field is a tag (eight times its number, plus its wire type), and
then a varint, or a length and that many bytes:

    0a 03 70 2d 31   field 1, bytes, length 3: "p-1"          10 80 b0 …   field 2, varint

The *program* says of which kind each field is. If anything is not exactly as expected, the body is unusual, and nothing
that was read of it counts. The bytes of a usual body go into the outbox as they are. Therefore it holds known fields
only, each once, and every varint in its shortest form: protobuf refuses a length of 6 bytes, whatever number it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.byte_ranges import (
    capital_letters,
    copy_bytes,
    is_printable,
    may_be_card_number,
)
from paywarden.features.kernel.crc import crc32_of_text
from paywarden.features.kernel.frame import address, size
from paywarden.features.kernel.jit import compiled, inlined
from paywarden.features.kernel.layout import ATTRIBUTE_COUNT, I64, OFFSET_ZERO, U8
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.siphash import identity_of_text
from paywarden.features.kernel.varint import read_varint

# The kinds of fields: an id, a word, three codes of a fixed form, a time, an amount, minutes.
NONE, ID, WORD, CURRENCY, MCC, COUNTRY, TIME, AMOUNT, OFFSET = range(9)
# A tag is one byte, so field numbers are below this.
FIELDS_MAX = 16
# Columns of the program, which has a row for each field number: the field's kind, and the columns of its code and its
# identity in the row of attributes, or -1.
KIND, COLUMN, IDENTITY = range(3)
PROGRAM_WIDTH = 3
# Places in `numbers`: settings of the worker, and the bounds of the time, which change with every call.
EARLIEST_MS, LATEST_MS, ID_BYTES_MAX, WORD_BYTES_MAX, AMOUNT_MAX, OFFSET_MAX, KEY_BYTES_MAX = range(7)
# More places in `numbers`: the required fields as bits, field numbers, columns of attributes.
REQUIRED, PAYMENT_ID, CURRENCY_FIELD, TIME_COLUMN, MINOR_COLUMN, AMOUNT_COLUMN, ENTITY_COUNT = range(7, 14)
# The halves of the key of identities.
KEY_LOW, KEY_HIGH = 14, 15
NUMBER_COUNT = 16
# Stands for a code of three letters that is not a currency.
NO_CURRENCY = -1
# The same values as in features/profiles/money.py and features/profiles/keys.py, which hold no compiled code.
RATE_SCALE, SEPARATOR = 1_000_000, 0x1F
# Wire types.
_VARINT, _BYTES = 0, 2
# Rows of `places`: where each text of a body begins, and how long it is.
_START, _SIZE = range(2)


class RequestSlots(NamedTuple):
    """The frame of `read_bodies`."""

    program: int
    """Shape (FIELDS_MAX, PROGRAM_WIDTH), int64: KIND, COLUMN and IDENTITY of each field, by its number."""
    numbers: int
    """Shape (NUMBER_COUNT,), int64: EARLIEST_MS to KEY_HIGH."""
    data: int
    """The bodies, concatenated, uint8."""
    lengths: int
    """Their lengths, int64."""
    rows: int
    """Shape (bodies, ATTRIBUTE_COUNT), int64. Filled: the attributes of each usual body."""
    currencies: int
    """Shape (26**3,), int64: a currency's number by its code, or NO_CURRENCY."""
    rate_bounds: int
    """Where the rates of each currency begin, and where the last ones end, int64."""
    rate_times: int
    """When each rate begins, epoch milliseconds, int64."""
    rates: int
    """The rates, int64: see RATE_SCALE."""
    entities: int
    """int64. For each entity: the end of its prefix, the number of fields in its key, and their numbers."""
    prefixes: int
    """The prefixes of all keys, concatenated, uint8."""
    texts: int
    """uint8. Filled: for each body the keys of its entities and the payment's id, concatenated."""
    ends: int
    """Shape (bodies, entities + 1), int64. Filled: where each key, and the id, ends in `texts`."""
    is_usual: int
    """Shape (bodies,), uint8. Filled: 1 or 0."""
    places: int
    """Shape (2, FIELDS_MAX), int64. Scratch space: where the texts of a body are."""


SLOT = positions(RequestSlots)


@inlined
def _is_text_good(kind: int, numbers: I64, data: U8, at: int, size: int) -> bool:
    if kind in (ID, WORD):
        size_max = numbers[ID_BYTES_MAX] if kind == ID else numbers[WORD_BYTES_MAX]
        return bool(size <= size_max) and not may_be_card_number(data, at, at + size)
    if kind == MCC:
        good = size == 4
        for place in range(at, at + size):
            good &= 48 <= data[place] < 58
        return good
    if kind == COUNTRY:
        return bool(size == 2 and capital_letters(data, at, 2) >= 0)
    return kind == CURRENCY and size == 3


@inlined
def _converted(amount: np.int64, time_ms: np.int64, first: int, last: int, times: I64, rates: I64) -> np.int64:
    """Convert an amount at the last rate not after the payment, or at the first rate if all are after it."""
    chosen = first
    for place in range(first + 1, last):
        if times[place] <= time_ms:
            chosen = place
    return np.int64((amount * rates[chosen] + RATE_SCALE // 2) // RATE_SCALE)


@inlined
def _read_body(
    program: I64,
    numbers: I64,
    data: U8,
    at: int,
    end: int,
    row: I64,
    places: I64,
) -> bool:
    """Fill `places` and the row, except the amount in the reference currency. Returns False for an unusual body."""
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
        value, at = read_varint(data, at + 1, end)
        if at < 0 or kind == NONE or stored != (_VARINT if kind >= TIME else _BYTES):
            return False
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
            if not is_printable(data, at, at + value):
                return False
            places[_START, field], places[_SIZE, field] = at, value
            if column >= 0:
                if kind == COUNTRY:
                    row[column] = capital_letters(data, at, 2) + 1
                else:
                    row[column] = crc32_of_text(data, at, at + value) + 1
            if program[field, IDENTITY] >= 0:
                row[program[field, IDENTITY]] = identity_of_text(
                    data, at, at + value, numbers[KEY_LOW], numbers[KEY_HIGH]
                )
            at += value
    return bool(seen & numbers[REQUIRED] == numbers[REQUIRED])


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
    """Write the key of the entity at `at` of the entities. Returns where the key ends, or -1 if it is too long.

    A payment that lacks one of the key's fields has no such entity, and its key is empty.
    """
    fields = entities[at + 1]
    for field in range(at + 2, at + 2 + fields):
        if places[_SIZE, entities[field]] == 0:
            return position
    end = copy_bytes(prefixes, prefix, entities[at] - prefix, texts, position)
    for field in range(at + 2, at + 2 + fields):
        if field > at + 2:
            texts[end] = SEPARATOR
            end += 1
        end = copy_bytes(data, places[_START, entities[field]], places[_SIZE, entities[field]], texts, end)
    return end if end - position <= key_bytes_max else -1


@compiled(makes_arrays=True)
def read_bodies(frame_at: int, count: int) -> int:
    """Read the first `count` bodies. Returns the number of bytes in `texts`.

    The frame at `frame_at` holds the arrays of SLOT. An unusual body has empty keys and an empty id.
    """
    program = carray(address(frame_at, SLOT.program), (FIELDS_MAX, PROGRAM_WIDTH), np.int64)
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    data = carray(address(frame_at, SLOT.data), size(frame_at, SLOT.data), np.uint8)
    lengths = carray(address(frame_at, SLOT.lengths), count, np.int64)
    rows = carray(address(frame_at, SLOT.rows), (count, ATTRIBUTE_COUNT), np.int64)
    currencies = carray(address(frame_at, SLOT.currencies), 26**3, np.int64)
    rate_bounds = carray(address(frame_at, SLOT.rate_bounds), size(frame_at, SLOT.rate_bounds), np.int64)
    rate_times = carray(address(frame_at, SLOT.rate_times), size(frame_at, SLOT.rate_times), np.int64)
    rates = carray(address(frame_at, SLOT.rates), size(frame_at, SLOT.rates), np.int64)
    entities = carray(address(frame_at, SLOT.entities), size(frame_at, SLOT.entities), np.int64)
    prefixes = carray(address(frame_at, SLOT.prefixes), size(frame_at, SLOT.prefixes), np.uint8)
    texts = carray(address(frame_at, SLOT.texts), size(frame_at, SLOT.texts), np.uint8)
    pieces = numbers[ENTITY_COUNT] + 1
    ends = carray(address(frame_at, SLOT.ends), (count, pieces), np.int64)
    is_usual = carray(address(frame_at, SLOT.is_usual), count, np.uint8)
    places = carray(address(frame_at, SLOT.places), (2, FIELDS_MAX), np.int64)
    begun, start = 0, 0
    for number in range(count):
        end, row = start + lengths[number], rows[number]
        good = _read_body(program, numbers, data, start, end, row, places)
        currency = NO_CURRENCY
        if good:
            code = capital_letters(data, places[_START, numbers[CURRENCY_FIELD]], 3)
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
            begun = copy_bytes(data, places[_START, payment_id], places[_SIZE, payment_id], texts, position)
            ends[number, pieces - 1] = begun
        else:
            for piece in range(pieces):
                ends[number, piece] = begun
        is_usual[number] = 1 if good else 0
        start = end
    return begun
