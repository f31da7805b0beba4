"""The compiled half of scoring/requests/fast_requests.py: bytes of requests to rows of attributes and keys of entities.

A body is a protobuf message: fields in any order, each a tag (its number times eight, and how it is stored) and a
varint, or a length and so many bytes. For each field the program says what kind of text or number it is. Anything that
is not just as expected makes the body one that is not usual, and then nothing that was read of it counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.byte_ranges import capital_letters, copy_bytes, is_printable
from paywarden.features.kernel.crc import crc32_of_text
from paywarden.features.kernel.frame import address, size
from paywarden.features.kernel.jit import compiled, inlined
from paywarden.features.kernel.layout import ATTRIBUTE_COUNT, I64, OFFSET_ZERO, U8
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.varint import read_varint

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
# As features/profiles/money.py and features/profiles/keys.py have them; those files hold no compiled code.
RATE_SCALE, SEPARATOR = 1_000_000, 0x1F
# Of a card's number.
DIGITS_MIN, DIGITS_MAX = 13, 19
# How a field is stored.
_VARINT, _BYTES = 0, 2
# Rows of the places of a body's texts: where each begins, and how long it is.
_START, _SIZE = range(2)


class RequestSlots(NamedTuple):
    """The frame of `read_bodies`."""

    program: int
    """Shape (FIELDS_MAX, 2), int64: KIND and COLUMN of each field, by its number."""
    numbers: int
    """Shape (NUMBER_COUNT,), int64: LATEST_MS to ENTITY_COUNT."""
    data: int
    """The bodies, one behind the other, uint8."""
    lengths: int
    """Their lengths, int64."""
    rows: int
    """Shape (bodies, ATTRIBUTE_COUNT), int64. Filled: the attributes of each usual body."""
    currencies: int
    """Shape (26**3,), int64: a currency's number by its code, or NO_CURRENCY."""
    rate_bounds: int
    """Where the rates of each currency begin, int64, and where the last ones end."""
    rate_times: int
    """When each rate begins, epoch milliseconds, int64."""
    rates: int
    """The rates, int64: see RATE_SCALE."""
    entities: int
    """int64, for each entity: where its prefix ends, how many fields its key has, and their numbers."""
    prefixes: int
    """The prefixes of all keys, one behind the other, uint8."""
    texts: int
    """uint8. Filled: keys of entities and payment ids, one behind the other."""
    ends: int
    """Shape (bodies, entities + 1), int64. Filled: where each key ends in the texts, and the id."""
    is_usual: int
    """Shape (bodies,), uint8. Filled: 1 or 0."""
    places: int
    """Shape (2, FIELDS_MAX), int64. Scratch: where the texts of a body are."""


SLOT = positions(RequestSlots)


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
        return bool(size == 2 and capital_letters(data, at, 2) >= 0)
    return kind == CURRENCY and size == 3


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
    data: U8,
    at: int,
    end: int,
    row: I64,
    places: I64,
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
            at += value
    card = numbers[CARD_ID]
    return seen & numbers[REQUIRED] == numbers[REQUIRED] and not _may_be_card_number(
        data, places[_START, card], places[_START, card] + places[_SIZE, card]
    )


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
    end = copy_bytes(prefixes, prefix, entities[at] - prefix, texts, position)
    for field in range(at + 2, at + 2 + fields):
        if field > at + 2:
            texts[end] = SEPARATOR
            end += 1
        end = copy_bytes(data, places[_START, entities[field]], places[_SIZE, entities[field]], texts, end)
    return end if end - position <= key_bytes_max else -1


@compiled(makes_arrays=True)
def read_bodies(frame_at: int, count: int) -> int:
    """Read the first `count` bodies; returns how many bytes of texts there are.

    The frame holds the arrays of SLOT. Keys and id of a body that is not usual are empty.
    """
    program = carray(address(frame_at, SLOT.program), (FIELDS_MAX, 2), np.int64)
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
