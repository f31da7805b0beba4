"""Decode the payments of a batch together: the result of `EventDecoder.payment`, in a seventh of the time.

An Avro record holds its fields one after the other. The fields of a payment are numbers and texts, and some may be
missing. A compiled loop reads the usual case only: today's schema, ids and texts in ASCII, IPv4 addresses in declared
fields, all rules of schemas/payment_fields.py kept.

1. Read every record: the row of attributes, and where its texts lie. `is_usual` says whether the loop could read it.
2. Check the payment's time, convert the amounts, and make the store keys.
3. Anything unusual falls back to `EventDecoder.payment`, which decides and words the error.

Tests compare both ways with each other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.kernel.bands import fill_bands_of_rows
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
from paywarden.features.kernel.layout import NUMBER_ZERO, OFFSET_ZERO
from paywarden.features.kernel.toolkit.byte_ranges import capital_letters, is_printable, may_be_card_number
from paywarden.features.kernel.toolkit.crc import crc32_of_text
from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.features.kernel.toolkit.machine_words import load_word
from paywarden.features.kernel.toolkit.siphash import identity_of_text
from paywarden.features.kernel.toolkit.varint import read_varint, unzigzag
from paywarden.features.profiles.band_program import band_program
from paywarden.features.profiles.keys import SEPARATOR, field_named, has_hashed_key, hashed_id
from paywarden.features.profiles.money import RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.avro import SchemaIds, fingerprint
from paywarden.schemas.currencies import MINOR_DIGITS
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import (
    DECIMALS_MAX,
    TIME_MS_END,
    TIME_MS_MIN,
    UTC_OFFSET_MINUTES_MAX,
    WORD_BYTES_MAX,
    Form,
    NetworkPrefix,
    PaymentField,
    PaymentFields,
    TimeBounds,
)
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles import payment_columns
from paywarden.streams.profiles.events import payments_source
from paywarden.streams.profiles.payment_columns import RECORD_PREFIX, PaymentColumns, PaymentEvent

# How a field is stored, and the form of its values. The kinds from _TEXT on are texts.
_LONG, _FLAG, _OFFSET, _NUMBER, _MONEY, _DECIMAL, _TEXT, _MCC, _COUNTRY, _BIN, _EMAIL, _ADDRESS = range(12)
_KIND_OF_FORM = {
    Form.ID: _TEXT,
    Form.CARD_TOKEN: _TEXT,
    Form.WORD: _TEXT,
    # `_convert` checks a currency further.
    Form.CURRENCY: _TEXT,
    Form.MCC: _MCC,
    Form.COUNTRY: _COUNTRY,
    Form.TIME: _LONG,
    Form.AMOUNT: _LONG,
    Form.OFFSET: _OFFSET,
    Form.FLAG: _FLAG,
    Form.INTEGER: _NUMBER,
    Form.INSTANT: _NUMBER,
    Form.MONEY: _MONEY,
    Form.DECIMAL: _DECIMAL,
    Form.BIN: _BIN,
    Form.EMAIL: _EMAIL,
    Form.ADDRESS: _ADDRESS,
}
_AVRO_TYPES = {
    _LONG: "long",
    _FLAG: "boolean",
    _OFFSET: "int",
    _NUMBER: "long",
    _MONEY: "long",
    _DECIMAL: "double",
}
# Columns of the program: the field's kind, the meaning of a null, the columns of its code and its identity in the row
# (-1: none), the smallest number, the largest number or the most bytes of a text, and the digits after the point.
_KIND, _NULLABLE, _COLUMN, _IDENTITY, _LEAST, _MOST, _DECIMALS = range(7)
_WIDTH = 7
# The field cannot be null, may be null, or must not be null although its type has null.
_NO_NULL, _MAY_BE_NULL, _NULL_IS_REFUSED = range(3)
# Columns of the program of derived fields: the source's number in the program, the column, and the bits of a network of
# IPv4 and of IPv6 addresses. A domain has none.
_SOURCE, _DERIVED_COLUMN, _BITS, _BITS_V6 = range(4)
_DERIVED_WIDTH = 4
# The digest of compiled code does not cover schemas/payment_fields.py: its number stands here once more.
_POWERS = 10.0 ** np.arange(10)
assert [float(power) for power in _POWERS] == [10.0**digits for digits in range(DECIMALS_MAX + 1)]
_MISSING = -1
_HEADER_BYTES = 5
assert OFFSET_ZERO > UTC_OFFSET_MINUTES_MAX


class FastIntake:
    """Decodes batches of payments into columns (streams/profiles/payment_columns.py)."""

    def __init__(self, plan: Plan, rates: RateTable, ids: SchemaIds, times: TimeBounds) -> None:
        warm_up()
        self._rates, self._times, self._key = rates, times, plan.key
        self._row_width = plan.row_width
        schema = ids.current_schema("payments")
        # The headers of today's schema: its id in the registry, if there is one, and its fingerprint.
        self._headers = tuple(
            {struct.pack(">BI", 0, number) for number in (ids.id_of("payments"), fingerprint(schema))}
        )
        names = [field["name"] for field in schema["fields"]]
        program = [_instruction(field, plan.fields) for field in schema["fields"]]
        # None: today's schema has a field that the loop cannot read, or lacks a declared one.
        is_readable = None not in program and names[len(names) - len(plan.fields.declared) :] == _names(plan.fields)
        self._program = np.array(program, dtype=np.int64) if is_readable else None
        self._derived = _derived_program(plan.fields, names)
        self._bands = band_program(plan.fields, plan.key)
        self._money = [attributes.declared_column(f.number) for f in plan.fields.declared if f.form is Form.MONEY]
        self._payment_id, self._currency = names.index("payment_id"), names.index("currency")
        self._entities = [
            (f"{name}:".encode(), [_key_part(key, plan.fields, names) for key in keys])
            for name, keys in zip(plan.entity_names, plan.entity_keys, strict=True)
        ]

    def payments(
        self, records: Sequence[Record], now_ms: int, slowly: Callable[[Record], PaymentEvent], base: int = 0
    ) -> list[PaymentEvent | InvalidEvent]:
        """Returns each record's payment, or the error: the result of `columns` one by one."""
        columns, refused = self.columns(records, now_ms, slowly, base)
        payments = iter(columns)
        return [refused[number] if number in refused else next(payments) for number in range(len(records))]

    def columns(
        self, records: Sequence[Record], now_ms: int, slowly: Callable[[Record], PaymentEvent], base: int = 0
    ) -> tuple[PaymentColumns, dict[int, InvalidEvent]]:
        """Returns the payments in these records, and by a record's number the error of one that has none.

        `slowly` decodes one record and raises InvalidEvent. `base` is added to the offsets; `slowly` adds it itself.
        """
        payments, is_usual = self._read(records, now_ms, base)
        refused: dict[int, InvalidEvent] = {}
        for number in np.flatnonzero(~is_usual).tolist():
            try:
                event = slowly(records[number])
            except InvalidEvent as error:
                refused[number] = error
                continue
            payments.record_keys[number] = RECORD_PREFIX + event.payment_id.encode()
            payments.rows[number] = event.attributes
            for column, key in zip(payments.keys, event.keys, strict=True):
                column[number] = key
        if not refused:
            return payments, refused
        good = np.ones(len(records), dtype=np.bool_)
        good[list(refused)] = False
        return payments.chosen(good), refused

    def _read(self, records: Sequence[Record], now_ms: int, base: int) -> tuple[PaymentColumns, NDArray[np.bool_]]:
        """Returns the payments, and which of them are usual. The slow way must decode the others."""
        count, width = len(records), 0 if self._program is None else len(self._program)
        headers = self._headers
        values = [
            record.value if record.value is not None and record.value.startswith(headers) else b"" for record in records
        ]
        arrived = np.array([record.timestamp_ms for record in records], dtype=np.int64)
        sources = np.array([payments_source(record.partition) for record in records], dtype=np.int64)
        offsets = np.array([record.offset for record in records], dtype=np.int64) + base
        rows = np.zeros((count, self._row_width), dtype=np.int64)
        is_usual = np.zeros(count, dtype=np.bool_)
        if self._program is None or not count:
            unread: list[list[bytes]] = [[b""] * count for _ in self._entities]
            return PaymentColumns([b""] * count, sources, offsets, arrived, rows, unread), is_usual
        bounds = np.zeros(count + 1, dtype=np.int64)
        np.cumsum([len(value) for value in values], out=bounds[1:])
        starts = np.zeros((count, width), dtype=np.int64)
        lengths = np.full((count, width), _MISSING, dtype=np.int64)
        data = b"".join(values)
        buffer = np.frombuffer(bytearray(data), dtype=np.uint8)
        _read_records(
            self._program, self._derived, buffer, bounds, self._key.low, self._key.high, rows, starts, lengths, is_usual
        )
        fill_bands_of_rows(self._bands, rows)
        times = rows[:, kernel.TIME_MS]
        # A record without a time of arrival goes the slow way. Kafka has set one on every record for many years.
        is_usual &= (arrived > 0) & (times >= arrived - self._times.past_ms_max)
        is_usual &= times <= np.minimum(arrived, now_ms) + self._times.future_ms_max
        self._convert(data, rows, starts[:, self._currency], lengths[:, self._currency], is_usual)
        keys = [self._keys(data, prefix, parts, rows, starts, lengths, is_usual) for prefix, parts in self._entities]
        begins, sizes = starts[:, self._payment_id], np.maximum(lengths[:, self._payment_id], 0)
        ids = zip(begins.tolist(), (begins + sizes).tolist(), strict=True)
        record_keys = [RECORD_PREFIX + data[begin:end] for begin, end in ids]
        return PaymentColumns(record_keys, sources, offsets, arrived, rows, keys), is_usual

    def _convert(
        self,
        data: bytes,
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        is_usual: NDArray[np.bool_],
    ) -> None:
        """Convert amounts to the reference currency; a code that is no currency is not usual."""
        codes = rows[:, attributes.currency.column]
        for code in np.unique(codes[is_usual]).tolist():
            chosen = np.flatnonzero(is_usual & (codes == code))
            first = int(chosen[0])
            name = data[starts[first] : starts[first] + lengths[first]].decode()
            if name not in MINOR_DIGITS:
                is_usual[chosen] = False
                continue
            rows[chosen, kernel.AMOUNT] = self._rates.convert_columns(
                rows[chosen, kernel.AMOUNT_MINOR],
                np.zeros(len(chosen), dtype=np.int64),
                [name],
                rows[chosen, kernel.TIME_MS],
            )
            for column in self._money:
                self._convert_money(rows, chosen, column, name)

    def _convert_money(self, rows: NDArray[np.int64], chosen: NDArray[np.intp], column: int, currency: str) -> None:
        """Fill the column of a declared amount from the next one, which has the amount in the payment's currency."""
        there = chosen[rows[chosen, column + 1] != 0]
        no_codes = np.zeros(len(there), dtype=np.int64)
        own, times = rows[there, column + 1] - NUMBER_ZERO, rows[there, kernel.TIME_MS]
        converted = self._rates.convert_columns(own, no_codes, [currency], times)
        rows[there, column] = np.where(converted >= 0, converted + NUMBER_ZERO, 0)

    def _keys(
        self,
        data: bytes,
        prefix: bytes,
        parts: Sequence[_KeyPart],
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        is_usual: NDArray[np.bool_],
    ) -> list[bytes]:
        """Returns the store keys of one kind of entity, empty for a payment without it."""
        if any(part.field == _MISSING for part in parts):
            return self._hashed_keys(data, prefix, parts, rows, starts, lengths, is_usual)
        fields = [part.field for part in parts]
        own = lengths[:, fields]
        is_there = (own != _MISSING).all(axis=1)
        # A digest replaces the ids of a longer combination: the slow way makes it.
        is_usual &= ~is_there | (own.sum(axis=1) <= KEY_BYTES_MAX - len(prefix) - len(fields))
        if len(fields) == 1:
            begins = starts[:, fields[0]]
            places = zip(is_there.tolist(), begins.tolist(), (begins + own[:, 0]).tolist(), strict=True)
            return [prefix + data[begin:end] if there else b"" for there, begin, end in places]
        separator = SEPARATOR.encode()
        keys = []
        for number, there in enumerate(is_there.tolist()):
            if not there:
                keys.append(b"")
                continue
            ids = [data[starts[number, f] : starts[number, f] + lengths[number, f]] for f in fields]
            keys.append(prefix + separator.join(ids))
        return keys

    def _hashed_keys(
        self,
        data: bytes,
        prefix: bytes,
        parts: Sequence[_KeyPart],
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        is_usual: NDArray[np.bool_],
    ) -> list[bytes]:
        """Returns keys that hold an identity in place of a text."""
        is_there = np.ones(len(rows), dtype=np.bool_)
        sizes = np.zeros(len(rows), dtype=np.int64)
        ids: list[list[bytes]] = []
        for part in parts:
            if part.field == _MISSING:
                identities = rows[:, part.identity]
                is_there &= identities != 0
                sizes += _HASHED_ID_BYTES
                ids.append([hashed_id(identity).encode() for identity in identities.tolist()])
            else:
                own = lengths[:, part.field]
                is_there &= own != _MISSING
                sizes += own
                places = zip(starts[:, part.field].tolist(), own.tolist(), strict=True)
                ids.append([data[start : start + max(0, length)] for start, length in places])
        is_usual &= ~is_there | (sizes <= KEY_BYTES_MAX - len(prefix) - len(parts))
        separator = SEPARATOR.encode()
        return [
            prefix + separator.join(of_payment) if there else b""
            for there, of_payment in zip(is_there.tolist(), zip(*ids, strict=True), strict=True)
        ]


class _KeyPart(NamedTuple):
    """A part of a key: the text of a field of the program, or the identity in a column of the row."""

    field: int
    identity: int


_HASHED_ID_BYTES = len(hashed_id(0))


def _key_part(name: str, fields: PaymentFields, names: Sequence[str]) -> _KeyPart:
    field = field_named(name, fields)
    if has_hashed_key(field):
        return _KeyPart(_MISSING, attributes.declared_column(field.number) + 1)
    return _KeyPart(names.index(name), _MISSING)


def _names(fields: PaymentFields) -> list[str]:
    """Returns the names of declared fields in the order of the schema."""
    return [field.name for field in sorted(fields.declared, key=lambda field: field.number)]


def _derived_program(fields: PaymentFields, names: Sequence[str]) -> NDArray[np.int64]:
    program = [
        (
            names.index(derived.of),
            attributes.declared_column(derived.number),
            *((derived.bits, derived.bits_v6) if isinstance(derived, NetworkPrefix) else (0, 0)),
        )
        for derived in fields.derived
        if derived.of in names
    ]
    return np.array(program, dtype=np.int64).reshape(-1, _DERIVED_WIDTH)


def warm_up() -> None:
    """Compile or load the loops of a payment's way into the store, so that no payment waits for them."""
    payment_columns.warm_up()
    none = np.zeros((0, _WIDTH), dtype=np.int64)
    fill_bands_of_rows(none[:, 0].copy(), none)
    _read_records(none, none, np.zeros(0, np.uint8), none[:, 0].copy(), 0, 0, none, none, none, np.zeros(0, np.bool_))


def _instruction(avro_field: dict[str, Any], fields: PaymentFields) -> tuple[int, ...] | None:
    """Returns the instruction for one field; None for a field or type that the table of fields does not have."""
    avro_type, null = avro_field["type"], _NO_NULL
    if isinstance(avro_type, list):
        if len(avro_type) != 2 or avro_type[0] != "null":
            return None
        avro_type, null = avro_type[1], _MAY_BE_NULL
    field = fields.by_name.get(avro_field["name"])
    if field is None or (field.number == 0 and field.is_required == (null == _MAY_BE_NULL)):
        return None
    kind = _KIND_OF_FORM[field.form]
    if avro_type != _AVRO_TYPES.get(kind, "string"):
        return None
    if field.is_required and null == _MAY_BE_NULL:
        null = _NULL_IS_REFUSED
    column, identity = _columns(field)
    if field.form is Form.TIME:
        return kind, null, column, identity, TIME_MS_MIN, TIME_MS_END - 1, 0
    # A code is checked by its own form and is always shorter than that.
    most = (field.size_max or WORD_BYTES_MAX) if field.is_text else field.maximum
    return kind, null, column, identity, field.minimum, most, field.decimals


def _columns(field: PaymentField) -> tuple[int, int]:
    """Returns the columns of a field's code and of its identity; -1 for none."""
    if field.number:
        column = attributes.declared_column(field.number)
        return column, column + 1 if field.is_text else -1
    column = next((attribute.column for attribute in attributes.ATTRIBUTES if attribute.name == field.name), -1)
    keyed = attributes.identity_column(column)
    return column, keyed if keyed != column else -1


@compiled(makes_arrays=True)
def _read_records(
    program: NDArray[np.int64],
    derived: NDArray[np.int64],
    data: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    key_low: int,
    key_high: int,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    is_usual: NDArray[np.bool_],
) -> None:
    """Fill the arrays for each record; `is_usual` is True if the record could be read to its end.

    Record i is data[bounds[i] : bounds[i + 1]], with its header.
    """
    buffer = np.empty(BUFFER_BYTES, dtype=np.uint8)
    word = np.empty(1, dtype=np.int64)
    double = word.view(np.float64)
    for number in range(len(bounds) - 1):
        at, end = bounds[number] + _HEADER_BYTES, bounds[number + 1]
        good = at <= end
        for field in range(len(program)):
            if not good:
                break
            kind, column = program[field, _KIND], program[field, _COLUMN]
            if program[field, _NULLABLE] != _NO_NULL:
                if at >= end or (data[at] != 0 and data[at] != 2):
                    good = False
                    break
                at += 1
                if data[at - 1] == 0:
                    good = program[field, _NULLABLE] == _MAY_BE_NULL
                    continue
            if kind == _FLAG:
                if at >= end or data[at] > 1:
                    good = False
                    break
                rows[number, column] = 1 + data[at]
                at += 1
                continue
            if kind == _DECIMAL:
                if at + 8 > end:
                    good = False
                    break
                word[0] = load_word(data, at)
                scaled = np.rint(double[0] * _POWERS[program[field, _DECIMALS]])
                # Not a number is not within bounds.
                good = program[field, _LEAST] <= scaled <= program[field, _MOST]
                rows[number, column] = (np.int64(scaled) if good else 0) + NUMBER_ZERO
                at += 8
                continue
            coded, at = read_varint(data, at, end)
            if at < 0:
                good = False
                break
            value = unzigzag(coded)
            if kind < _TEXT:
                if value < program[field, _LEAST] or value > program[field, _MOST]:
                    good = False
                    break
                if kind == _NUMBER:
                    rows[number, column] = value + NUMBER_ZERO
                elif kind == _MONEY:
                    rows[number, column + 1] = value + NUMBER_ZERO
                else:
                    rows[number, column] = value + OFFSET_ZERO if kind == _OFFSET else value
                continue
            if value <= 0 or value > end - at or value > program[field, _MOST]:
                good = False
                break
            starts[number, field], lengths[number, field] = at, value
            good = is_printable(data, at, at + value)
            identity = program[field, _IDENTITY]
            if kind == _COUNTRY:
                letters = capital_letters(data, at, value) if value == 2 else -1
                good &= letters >= 0
                rows[number, column] = letters + 1
                if identity >= 0:
                    rows[number, identity] = letters + 1
            elif kind == _EMAIL:
                good &= sign_of_email(data, at, at + value) >= 0
                rows[number, column] = 1
                if good:
                    rows[number, identity] = identity_in_small_letters(data, at, at + value, key_low, key_high, buffer)
            else:
                if column >= 0:
                    rows[number, column] = crc32_of_text(data, at, at + value) + 1
                if identity >= 0:
                    rows[number, identity] = identity_of_text(data, at, at + value, key_low, key_high)
            if kind in (_MCC, _BIN):
                good &= value == 4 if kind == _MCC else 6 <= value <= 8
                for place in range(at, at + value):
                    good &= 48 <= data[place] < 58
            elif kind == _TEXT:
                # The slow way decides whether it is a card number.
                good &= not may_be_card_number(data, at, at + value)
            elif kind == _ADDRESS and ipv4_address(data, at, at + value) < 0:
                # The slow way reads other addresses.
                good &= ipv6_address(data, at, at + value, buffer) == 1
            at += value
        good = good and at == end
        for line in range(len(derived) if good else 0):
            field, column = derived[line, _SOURCE], derived[line, _DERIVED_COLUMN]
            start, stop = starts[number, field], starts[number, field] + lengths[number, field]
            if stop < start:
                continue
            if derived[line, _BITS] == 0:
                sign = sign_of_email(data, start, stop)
                rows[number, column] = 1
                rows[number, column + 1] = identity_in_small_letters(data, sign + 1, stop, key_low, key_high, buffer)
                continue
            address = ipv4_address(data, start, stop)
            if address >= 0:
                rows[number, column] = 1
                rows[number, column + 1] = network_identity(address, derived[line, _BITS], key_low, key_high, buffer)
                continue
            ipv6 = ipv6_address(data, start, stop, buffer)
            if ipv6 == 1:
                rows[number, column] = 1
                rows[number, column + 1] = ipv6_network_identity(derived[line, _BITS_V6], key_low, key_high, buffer)
            # Any other text has no network, unless the slow way finds one.
            good &= ipv6 != UNUSUAL_ADDRESS
        is_usual[number] = good
