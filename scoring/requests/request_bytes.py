"""The compiled half of scoring/requests/fast_requests.py: reads protobuf bytes into attributes and entity keys.

A body is a protobuf message: fields in any order. A field is a tag (eight times its number, plus its wire type), and
then a varint, or a length and that many bytes:

    0a 03 70 2d 31   field 1, bytes, length 3: "p-1"          10 80 b0 …   field 2, varint

The *program* names the kind of each field. If anything is not exactly as expected, the body is unusual, and nothing
that was read of it counts. Python then checks the body (decoder.py). If it is right, the loop reads it once more, as
*checked*: its texts may be in UTF-8. The bytes of a usual body go into the outbox as they are. Therefore it holds known
fields only, each once, and every varint in its shortest form: protobuf refuses a length of 6 bytes, even of a small
number.

The fields that a project declares stand behind the others, in the order of their numbers, since these are above 100. A
tag has two bytes there, and a decimal is eight bytes of a double. `read_declared` reads them by a program of its own:

    aa 06 03 63 2d 39   field 101, bytes, length 3: "c-9"     b9 06 cd cc …   field 103, eight bytes: 1.1

Derived fields (an address's network, the domain of an e-mail address) are computed last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.bands import fill_bands
from paywarden.features.kernel.declared_texts import (
    BUFFER_BYTES,
    UNUSUAL_ADDRESS,
    identity_in_small_letters,
    ipv4_address,
    ipv6_address,
    ipv6_network_identity,
    network_identity,
    sign_of_email,
)
from paywarden.features.kernel.layout import (
    ATTRIBUTE_COUNT,
    F64,
    I64,
    NUMBER_ZERO,
    OFFSET_ZERO,
    U8,
    UNKNOWN_AMOUNT,
)
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import (
    capital_letters,
    copy_bytes,
    is_printable,
    may_be_card_number,
)
from paywarden.features.kernel.toolkit.crc import crc32_of_record, crc32_of_text
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.machine_words import load_word
from paywarden.features.kernel.toolkit.siphash import identity_of_text
from paywarden.features.kernel.toolkit.varint import read_varint

# The kinds of fields: an id, a word, three codes of a fixed form, a time, an amount, minutes.
NONE, ID, WORD, CURRENCY, MCC, COUNTRY, TIME, AMOUNT, OFFSET = range(9)
# The kinds of declared fields. First the texts, then the varints, then the doubles.
TEXT, BIN, PLACE, ADDRESS, EMAIL, WHOLE, MONEY, FLAG, DECIMAL = range(1, 10)
# A tag is one byte, so field numbers are below this.
FIELDS_MAX = 16
# The field of the declared number 1 has the number after this one. There are as many numbers as in
# schemas/payment_fields.py, which holds no compiled code.
DECLARED_AFTER, DECLARED_MAX = 100, 64
# Places of texts: those of the fields of every payment by their number, then those of declared fields.
PLACES_MAX = FIELDS_MAX + DECLARED_MAX
# Columns of the declared fields' program, which has a row for each number: the kind; the smallest and the largest
# value, or the largest size; and how many units of its last digit a decimal's 1 has.
DECLARED_KIND, LEAST, MOST, SCALE = range(4)
DECLARED_WIDTH = 4
# Columns of the derived fields' program: the place of the source; the bits of a network of IPv4 addresses, 0 for the
# domain of an e-mail address; those of a network of IPv6 addresses; the column of the row.
SOURCE, BITS, BITS_V6, DERIVED_COLUMN = range(4)
DERIVED_WIDTH = 4
# The number of a key's field that is at least this stands for a keyed hash: the identity in the column of the rest.
HASHED = 1 << 16
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
# The width of a row; the largest number of a declared field; the required ones as bits; whether any is money; how many
# fields are derived.
ROW_WIDTH, DECLARED_COUNT, DECLARED_REQUIRED, HAS_MONEY, DERIVED_COUNT = range(16, 21)
NUMBER_COUNT = 21
# Stand for a code of three letters that is not a currency, and for a currency without a rate.
NO_CURRENCY, NO_RATE = -1, -2
# The same values as in features/profiles/money.py and features/profiles/keys.py, which hold no compiled code.
RATE_SCALE, SEPARATOR = 1_000_000, 0x1F
# Wire types.
_VARINT, _EIGHT, _BYTES = range(3)
# Values of `is_usual`. INCOMPLETE is a checked body without derived columns and keys that only Python can make.
UNUSUAL, USUAL, INCOMPLETE = range(3)
# Rows of `places`: where each text of a body begins, and how long it is.
_START, _SIZE = range(2)


class RequestSlots(NamedTuple):
    """The frame of `read_bodies`."""

    program: int
    """Shape (FIELDS_MAX, PROGRAM_WIDTH), int64: KIND, COLUMN and IDENTITY of each field, by its number."""
    numbers: int
    """Shape (NUMBER_COUNT,), int64: EARLIEST_MS to DERIVED_COUNT."""
    declared: int
    """Shape (DECLARED_COUNT, DECLARED_WIDTH), int64: DECLARED_KIND to SCALE of each number."""
    derived: int
    """Shape (DERIVED_COUNT, DERIVED_WIDTH), int64: SOURCE to DERIVED_COLUMN of each derived field."""
    bands: int
    """The words of bands (features/kernel/bands.py), int64."""
    data: int
    """The bodies, concatenated, uint8."""
    lengths: int
    """Their lengths, int64."""
    rows: int
    """Shape (bodies, ROW_WIDTH), int64. Filled: the attributes of each usual body."""
    currencies: int
    """Shape (26**3,), int64: a currency's number by its code, NO_RATE or NO_CURRENCY."""
    rate_bounds: int
    """Where the rates of each currency begin, and where the last ones end, int64."""
    rate_times: int
    """When each rate begins, epoch milliseconds, int64."""
    rates: int
    """The rates, int64: see RATE_SCALE."""
    entities: int
    """int64. For each entity: the end of its prefix, the number of fields in its key, and the place of each one's text,
    or HASHED and a column."""
    prefixes: int
    """The prefixes of all keys, concatenated, uint8."""
    texts: int
    """uint8. Filled: for each body the keys of its entities and the payment's id, concatenated."""
    ends: int
    """Shape (bodies, entities + 1), int64. Filled: where each key, and the id, ends in `texts`."""
    checked: int
    """Shape (bodies,), uint8: 1 for a body that Python has found right, else 0."""
    is_usual: int
    """Shape (bodies,), uint8. Filled: UNUSUAL, USUAL or INCOMPLETE."""
    kept: int
    """Shape (bodies,), int64. Filled: how many bytes of each usual body stand before its declared fields."""
    places: int
    """Shape (2, PLACES_MAX), int64. Scratch space: where the texts of a body are."""
    scratch: int
    """Shape (BUFFER_BYTES,), uint8. Scratch space: a text in small letters, or a network."""
    word: int
    """Shape (1,), int64. Scratch space: the bytes of a double."""


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
    if first == last:
        return np.int64(UNKNOWN_AMOUNT)
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
    is_checked: bool,
) -> int:
    """Fill `places` and the row, except the amount in the reference currency. Returns -1 for an unusual body.

    Otherwise it returns where the declared fields begin; `end` without any.
    """
    for column in range(numbers[ROW_WIDTH]):
        row[column] = 0
    for field in range(FIELDS_MAX + numbers[DECLARED_COUNT]):
        places[_SIZE, field] = 0
    seen = 0
    while at < end:
        tag = int(data[at])
        if tag > 127:
            break
        field, stored = tag >> 3, tag & 7
        if seen >> field & 1 == 1:
            return -1
        seen |= 1 << field
        kind, column = program[field, KIND], program[field, COLUMN]
        value, at = read_varint(data, at + 1, end)
        if at < 0 or kind == NONE or stored != (_VARINT if kind >= TIME else _BYTES):
            return -1
        if kind == TIME:
            if not numbers[EARLIEST_MS] <= value <= numbers[LATEST_MS]:
                return -1
            row[numbers[TIME_COLUMN]] = value
        elif kind == AMOUNT:
            if not 0 <= value <= numbers[AMOUNT_MAX]:
                return -1
            row[numbers[MINOR_COLUMN]] = value
        elif kind == OFFSET:
            if not -numbers[OFFSET_MAX] <= value <= numbers[OFFSET_MAX]:
                return -1
            if column >= 0:
                row[column] = value + OFFSET_ZERO
        else:
            if not 0 < value <= end - at:
                return -1
            is_good = is_checked or (
                _is_text_good(kind, numbers, data, at, value) and is_printable(data, at, at + value)
            )
            if not is_good:
                return -1
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
    return at if seen & numbers[REQUIRED] == numbers[REQUIRED] else -1


@inlined
def _is_declared_text_good(kind: int, data: U8, at: int, end: int, scratch: U8) -> bool:
    if kind == TEXT:
        return is_printable(data, at, end) and not may_be_card_number(data, at, end)
    if kind == BIN:
        good = end - at >= 6
        for place in range(at, end):
            good &= 48 <= data[place] < 58
        return good
    if kind == PLACE:
        return bool(end - at == 2 and capital_letters(data, at, 2) >= 0)
    if kind == ADDRESS:
        return bool(ipv4_address(data, at, end) >= 0 or ipv6_address(data, at, end, scratch) == 1)
    return bool(sign_of_email(data, at, end) >= 0)


@compiled()
def read_declared(
    declared: I64,
    numbers: I64,
    data: U8,
    at: int,
    end: int,
    row: I64,
    places: I64,
    scratch: U8,
    word: I64,
    double: F64,
    is_checked: bool,
) -> bool:
    """Read the declared fields of a body, which begin at `at`, into the row and `places`.

    `word` and `double` are the same eight bytes. Money is not converted yet. Returns False for an unusual body.
    """
    low, high = numbers[KEY_LOW], numbers[KEY_HIGH]
    seen, number = 0, 0
    while at < end:
        if end - at < 2 or not (data[at] > 127 and 0 < data[at + 1] < 128):
            return False
        tag = int(data[at] & 127) | int(data[at + 1]) << 7
        before, number, stored = number, (tag >> 3) - DECLARED_AFTER, tag & 7
        if not before < number <= numbers[DECLARED_COUNT]:
            return False
        at += 2
        rule = declared[number - 1]
        kind, column = rule[DECLARED_KIND], ATTRIBUTE_COUNT + 2 * (number - 1)
        seen |= 1 << number - 1
        if kind == DECIMAL:
            if stored != _EIGHT or end - at < 8:
                return False
            word[0] = load_word(data, at)
            # A tie goes to the even neighbour, as in PaymentField.scaled. NaN and infinity are out of bounds.
            scaled = np.rint(double[0] * rule[SCALE])
            if not rule[LEAST] <= scaled <= rule[MOST]:
                return False
            row[column] = np.int64(scaled) + NUMBER_ZERO
            at += 8
            continue
        value, at = read_varint(data, at, end)
        if at < 0 or kind == NONE or stored != (_VARINT if kind >= WHOLE else _BYTES):
            return False
        if kind >= WHOLE:
            if not rule[LEAST] <= value <= rule[MOST]:
                return False
            if kind == FLAG:
                row[column] = value + 1
            else:
                row[column + (1 if kind == MONEY else 0)] = value + NUMBER_ZERO
            continue
        stop = at + value
        if not 0 < value <= rule[MOST] or stop > end:
            return False
        if not (is_checked or _is_declared_text_good(kind, data, at, stop, scratch)):
            return False
        places[_START, FIELDS_MAX + number - 1], places[_SIZE, FIELDS_MAX + number - 1] = at, value
        if kind == PLACE:
            row[column] = row[column + 1] = capital_letters(data, at, 2) + 1
        elif kind == EMAIL:
            row[column] = 1
            row[column + 1] = identity_in_small_letters(data, at, stop, low, high, scratch)
        else:
            row[column] = crc32_of_record(data, at, stop) + 1
            row[column + 1] = identity_of_text(data, at, stop, low, high)
        at = stop
    return bool(seen & numbers[DECLARED_REQUIRED] == numbers[DECLARED_REQUIRED])


@compiled()
def derive(derived: I64, numbers: I64, data: U8, row: I64, places: I64, scratch: U8) -> bool:
    """Fill the columns of derived fields. Returns False for an address of an unusual kind, and fills the others."""
    low, high, are_all = numbers[KEY_LOW], numbers[KEY_HIGH], True
    for number in range(numbers[DERIVED_COUNT]):
        source, bits, column = derived[number, SOURCE], derived[number, BITS], derived[number, DERIVED_COLUMN]
        at, end = places[_START, source], places[_START, source] + places[_SIZE, source]
        if places[_SIZE, source] == 0:
            continue
        if bits == 0:
            domain = sign_of_email(data, at, end) + 1
            row[column + 1] = identity_in_small_letters(data, domain, end, low, high, scratch)
        else:
            ipv4 = ipv4_address(data, at, end)
            if ipv4 >= 0:
                row[column + 1] = network_identity(ipv4, bits, low, high, scratch)
            else:
                ipv6 = ipv6_address(data, at, end, scratch)
                if ipv6 == UNUSUAL_ADDRESS:
                    are_all = False
                # `ip` may hold any word.
                if ipv6 != 1:
                    continue
                row[column + 1] = ipv6_network_identity(derived[number, BITS_V6], low, high, scratch)
        row[column] = 1
    return are_all


@inlined
def _convert_money(
    declared: I64, numbers: I64, row: I64, time_ms: np.int64, first: int, last: int, times: I64, rates: I64
) -> None:
    for number in range(numbers[DECLARED_COUNT]):
        column = ATTRIBUTE_COUNT + 2 * number
        if declared[number, DECLARED_KIND] == MONEY and row[column + 1] != 0:
            amount = row[column + 1] - NUMBER_ZERO
            converted = _converted(amount, time_ms, first, last, times, rates)
            # Without a rate it is missing, as a field that was not sent.
            row[column] = 0 if converted == UNKNOWN_AMOUNT else converted + NUMBER_ZERO


@inlined
def _write_hashed(out: U8, at: int, identity: np.int64) -> int:
    """Write an identity as 16 hex digits, as features/profiles/keys.py does; returns the end position."""
    for place in range(16):
        digit = int(identity >> 4 * (15 - place) & 15)
        out[at + place] = 48 + digit if digit < 10 else 87 + digit
    return at + 16


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
    row: I64,
) -> int:
    """Write the key of the entity at `at` of the entities. Returns where the key ends, or -1 if it is too long.

    A payment that lacks one of the key's fields has no such entity, and its key is empty.
    """
    fields = entities[at + 1]
    for field in range(at + 2, at + 2 + fields):
        if entities[field] >= HASHED:
            if row[entities[field] - HASHED] == 0:
                return position
        elif places[_SIZE, entities[field]] == 0:
            return position
    end = copy_bytes(prefixes, prefix, entities[at] - prefix, texts, position)
    for field in range(at + 2, at + 2 + fields):
        if field > at + 2:
            texts[end] = SEPARATOR
            end += 1
        if entities[field] >= HASHED:
            end = _write_hashed(texts, end, row[entities[field] - HASHED])
        else:
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
    declared = carray(address(frame_at, SLOT.declared), (numbers[DECLARED_COUNT], DECLARED_WIDTH), np.int64)
    derived = carray(address(frame_at, SLOT.derived), (numbers[DERIVED_COUNT], DERIVED_WIDTH), np.int64)
    bands = carray(address(frame_at, SLOT.bands), size(frame_at, SLOT.bands), np.int64)
    lengths = carray(address(frame_at, SLOT.lengths), count, np.int64)
    rows = carray(address(frame_at, SLOT.rows), (count, numbers[ROW_WIDTH]), np.int64)
    currencies = carray(address(frame_at, SLOT.currencies), 26**3, np.int64)
    rate_bounds = carray(address(frame_at, SLOT.rate_bounds), size(frame_at, SLOT.rate_bounds), np.int64)
    rate_times = carray(address(frame_at, SLOT.rate_times), size(frame_at, SLOT.rate_times), np.int64)
    rates = carray(address(frame_at, SLOT.rates), size(frame_at, SLOT.rates), np.int64)
    entities = carray(address(frame_at, SLOT.entities), size(frame_at, SLOT.entities), np.int64)
    prefixes = carray(address(frame_at, SLOT.prefixes), size(frame_at, SLOT.prefixes), np.uint8)
    texts = carray(address(frame_at, SLOT.texts), size(frame_at, SLOT.texts), np.uint8)
    pieces = numbers[ENTITY_COUNT] + 1
    ends = carray(address(frame_at, SLOT.ends), (count, pieces), np.int64)
    checked = carray(address(frame_at, SLOT.checked), count, np.uint8)
    is_usual = carray(address(frame_at, SLOT.is_usual), count, np.uint8)
    kept = carray(address(frame_at, SLOT.kept), count, np.int64)
    places = carray(address(frame_at, SLOT.places), (2, PLACES_MAX), np.int64)
    scratch = carray(address(frame_at, SLOT.scratch), BUFFER_BYTES, np.uint8)
    word = carray(address(frame_at, SLOT.word), 1, np.int64)
    double = carray(address(frame_at, SLOT.word), 1, np.float64)
    begun, start = 0, 0
    for number in range(count):
        end, row, is_checked, is_complete = start + lengths[number], rows[number], checked[number] == 1, True
        declared_at = _read_body(program, numbers, data, start, end, row, places, is_checked)
        good = declared_at >= 0
        kept[number] = declared_at - start
        if good and declared_at < end:
            good = read_declared(
                declared, numbers, data, declared_at, end, row, places, scratch, word, double, is_checked
            )
        elif good:
            good = numbers[DECLARED_REQUIRED] == 0
        if good and numbers[DERIVED_COUNT] > 0:
            is_complete = derive(derived, numbers, data, row, places, scratch)
            good = is_complete or is_checked
        if good and len(bands) > 0:
            fill_bands(bands, row)
        currency = NO_CURRENCY
        if good:
            code = capital_letters(data, places[_START, numbers[CURRENCY_FIELD]], 3)
            currency = NO_CURRENCY if code < 0 else int(currencies[code])
            good = currency != NO_CURRENCY
        position, at, prefix = begun, 0, 0
        if good:
            time_ms, minor = row[numbers[TIME_COLUMN]], row[numbers[MINOR_COLUMN]]
            first = last = 0
            if currency != NO_RATE:
                first, last = rate_bounds[currency], rate_bounds[currency + 1]
            row[numbers[AMOUNT_COLUMN]] = _converted(minor, time_ms, first, last, rate_times, rates)
            if numbers[HAS_MONEY] == 1:
                _convert_money(declared, numbers, row, time_ms, first, last, rate_times, rates)
            for entity in range(pieces - 1):
                key_end = _write_key(
                    data, places, entities, at, prefixes, prefix, texts, position, numbers[KEY_BYTES_MAX], row
                )
                if key_end < 0:
                    is_complete = False
                    good = is_checked
                    if not good:
                        break
                else:
                    position = key_end
                ends[number, entity] = position
                prefix, at = entities[at], at + 2 + entities[at + 1]
        if good:
            payment_id = numbers[PAYMENT_ID]
            begun = copy_bytes(data, places[_START, payment_id], places[_SIZE, payment_id], texts, position)
            ends[number, pieces - 1] = begun
        else:
            for piece in range(pieces):
                ends[number, piece] = begun
        is_usual[number] = UNUSUAL if not good else USUAL if is_complete else INCOMPLETE
        start = end
    return begun
