"""Decode the payments of a batch together: the result of `EventDecoder.payment`, in a seventh of the time.

An Avro record holds its fields one after the other. The fields of a payment are numbers and texts, and some may be
missing. A compiled loop reads the usual case only: today's schema, ids and texts in ASCII, all rules of
schemas/payment_fields.py kept.

1. Read every record: the row of attributes, and where its texts lie. `is_usual` says whether the loop could read it.
2. Check the payment's time, convert the amount, and make the store keys.
3. Anything unusual falls back to `EventDecoder.payment`, which decides and words the error.

Tests compare both ways with each other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.kernel.byte_ranges import capital_letters, is_printable, may_be_card_number
from paywarden.features.kernel.crc import crc32_of_text
from paywarden.features.kernel.jit import compiled
from paywarden.features.kernel.layout import OFFSET_ZERO
from paywarden.features.kernel.siphash import identity_of_text
from paywarden.features.kernel.varint import read_varint, unzigzag
from paywarden.features.profiles.keys import SEPARATOR
from paywarden.features.profiles.money import RateTable, is_currency_code
from paywarden.features.profiles.plan import Plan
from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.avro import SchemaIds, fingerprint, topic_schema
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import (
    FIELD,
    TIME_MS_END,
    TIME_MS_MIN,
    UTC_OFFSET_MINUTES_MAX,
    WORD_BYTES_MAX,
    Form,
    TimeBounds,
)
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.events import PaymentEvent, Position, payments_source

# How a field is stored, and the form of its values. The kinds from _TEXT on are texts.
_LONG, _FLAG, _OFFSET, _TEXT, _MCC, _COUNTRY = range(6)
_KIND_OF_FORM = {
    Form.ID: _TEXT,
    Form.CARD_TOKEN: _TEXT,
    Form.WORD: _TEXT,
    # The table of rates checks a currency further.
    Form.CURRENCY: _TEXT,
    Form.MCC: _MCC,
    Form.COUNTRY: _COUNTRY,
    Form.TIME: _LONG,
    Form.AMOUNT: _LONG,
    Form.OFFSET: _OFFSET,
    Form.FLAG: _FLAG,
}
_AVRO_TYPES = {_LONG: "long", _FLAG: "boolean", _OFFSET: "int"}
# Columns of the program: the field's kind, whether it may be null, the columns of its code and its identity in the row
# (-1: none), the smallest number, and the largest number or the most bytes of a text.
_KIND, _NULLABLE, _COLUMN, _IDENTITY, _LEAST, _MOST = range(6)
_WIDTH = 6
_MISSING = -1
_HEADER_BYTES = 5
assert OFFSET_ZERO > UTC_OFFSET_MINUTES_MAX


class FastIntake:
    """Decodes batches of payments."""

    def __init__(self, plan: Plan, rates: RateTable, ids: SchemaIds, times: TimeBounds) -> None:
        warm_up()
        self._rates, self._times, self._key = rates, times, plan.key
        # A table of rates may contain codes of another form.
        self._currencies = frozenset(filter(is_currency_code, rates.currencies))
        schema = topic_schema("payments")
        # The headers of today's schema: its id in the registry, if there is one, and its fingerprint.
        self._headers = tuple(
            {struct.pack(">BI", 0, number) for number in (ids.id_of("payments"), fingerprint(schema))}
        )
        fields = [field["name"] for field in schema["fields"]]
        program = [_instruction(field) for field in schema["fields"]]
        # None: today's schema has a field that the loop cannot read.
        self._program = None if None in program else np.array(program, dtype=np.int64)
        self._payment_id, self._currency = fields.index("payment_id"), fields.index("currency")
        self._entities = [
            (f"{name}:".encode(), [fields.index(key) for key in keys])
            for name, keys in zip(plan.entity_names, plan.entity_keys, strict=True)
        ]

    def payments(
        self, records: Sequence[Record], now_ms: int, slowly: Callable[[Record], PaymentEvent], base: int = 0
    ) -> list[PaymentEvent | InvalidEvent]:
        """Returns each record's payment, or the error. `slowly` decodes one record and raises InvalidEvent.

        `base` is added to the offsets; `slowly` adds it itself.
        """
        values = [
            record.value if record.value is not None and record.value.startswith(self._headers) else b""
            for record in records
        ]
        read = self._read(values, [record.timestamp_ms for record in records], now_ms)
        events: list[PaymentEvent | InvalidEvent] = []
        for number, record in enumerate(records):
            event = read[number]
            if event is None:
                try:
                    events.append(slowly(record))
                except InvalidEvent as error:
                    events.append(error)
            else:
                payment_id, row, keys = event
                position = Position(payments_source(record.partition), base + record.offset)
                events.append(PaymentEvent(position, payment_id, row, keys, record.timestamp_ms))
        return events

    def _read(
        self, values: Sequence[bytes], arrived_ms: Sequence[int], now_ms: int
    ) -> list[tuple[str, list[int], tuple[bytes, ...]] | None]:
        """Returns payment id, row and keys of each value; None if the slow way must decode it."""
        if self._program is None or not values:
            return [None] * len(values)
        count, width = len(values), len(self._program)
        bounds = np.zeros(count + 1, dtype=np.int64)
        np.cumsum([len(value) for value in values], out=bounds[1:])
        rows = np.zeros((count, kernel.ATTRIBUTE_COUNT), dtype=np.int64)
        starts = np.zeros((count, width), dtype=np.int64)
        lengths = np.full((count, width), _MISSING, dtype=np.int64)
        is_usual = np.zeros(count, dtype=np.bool_)
        data = b"".join(values)
        buffer = np.frombuffer(bytearray(data), dtype=np.uint8)
        _read_records(self._program, buffer, bounds, self._key.low, self._key.high, rows, starts, lengths, is_usual)
        times, arrived = rows[:, kernel.TIME_MS], np.array(arrived_ms, dtype=np.int64)
        # A record without a time of arrival goes the slow way. Kafka has set one on every record for many years.
        is_usual &= (arrived > 0) & (times >= arrived - self._times.past_ms_max)
        is_usual &= times <= np.minimum(arrived, now_ms) + self._times.future_ms_max
        id_bytes = lengths[:, self._payment_id]
        self._convert(data, rows, starts[:, self._currency], lengths[:, self._currency], is_usual)
        columns = [self._keys(data, prefix, fields, starts, lengths, is_usual) for prefix, fields in self._entities]
        ids = zip(starts[:, self._payment_id].tolist(), id_bytes.tolist(), strict=True)
        return [
            (data[start : start + length].decode(), row, keys) if usual else None
            for usual, (start, length), row, keys in zip(
                is_usual.tolist(), ids, rows.tolist(), zip(*columns, strict=True), strict=True
            )
        ]

    def _convert(
        self,
        data: bytes,
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        is_usual: NDArray[np.bool_],
    ) -> None:
        """Convert amounts to the reference currency; a currency without a rate is not usual."""
        codes = rows[:, attributes.currency.column]
        for code in np.unique(codes[is_usual]).tolist():
            chosen = np.flatnonzero(is_usual & (codes == code))
            first = int(chosen[0])
            name = data[starts[first] : starts[first] + lengths[first]].decode()
            if name not in self._currencies:
                is_usual[chosen] = False
                continue
            rows[chosen, kernel.AMOUNT] = self._rates.convert_columns(
                rows[chosen, kernel.AMOUNT_MINOR],
                np.zeros(len(chosen), dtype=np.int64),
                [name],
                rows[chosen, kernel.TIME_MS],
            )

    def _keys(
        self,
        data: bytes,
        prefix: bytes,
        fields: Sequence[int],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        is_usual: NDArray[np.bool_],
    ) -> list[bytes]:
        """Returns the store keys of one kind of entity, empty for a payment without it."""
        own = lengths[:, fields]
        is_there = (own != _MISSING).all(axis=1)
        # A digest replaces the ids of a longer combination: the slow way makes it.
        is_usual &= ~is_there | (own.sum(axis=1) <= KEY_BYTES_MAX - len(prefix) - len(fields))
        if len(fields) == 1:
            places = zip(is_there.tolist(), starts[:, fields[0]].tolist(), own[:, 0].tolist(), strict=True)
            return [prefix + data[start : start + length] if there else b"" for there, start, length in places]
        separator = SEPARATOR.encode()
        keys = []
        for number, there in enumerate(is_there.tolist()):
            if not there:
                keys.append(b"")
                continue
            ids = [data[starts[number, f] : starts[number, f] + lengths[number, f]] for f in fields]
            keys.append(prefix + separator.join(ids))
        return keys


def warm_up() -> None:
    """Compile or load the loop, so that no payment waits for it."""
    none = np.zeros((0, _WIDTH), dtype=np.int64)
    _read_records(none, np.zeros(0, np.uint8), none[:, 0].copy(), 0, 0, none, none, none, np.zeros(0, np.bool_))


def _instruction(avro_field: dict[str, Any]) -> tuple[int, ...] | None:
    """Returns the instruction for one field; None for a field or type that the table of fields does not have."""
    avro_type, nullable = avro_field["type"], 0
    if isinstance(avro_type, list):
        if len(avro_type) != 2 or avro_type[0] != "null":
            return None
        avro_type, nullable = avro_type[1], 1
    field = FIELD.get(avro_field["name"])
    if field is None or field.is_required == bool(nullable):
        return None
    kind = _KIND_OF_FORM[field.form]
    if avro_type != _AVRO_TYPES.get(kind, "string"):
        return None
    column = next((attribute.column for attribute in attributes.ATTRIBUTES if attribute.name == field.name), -1)
    keyed = attributes.identity_column(column)
    identity = keyed if keyed != column else -1
    if field.form is Form.TIME:
        return kind, nullable, column, identity, TIME_MS_MIN, TIME_MS_END - 1
    # A code is checked by its own form and is always shorter than that.
    most = (field.size_max or WORD_BYTES_MAX) if field.is_text else field.maximum
    return kind, nullable, column, identity, field.minimum, most


@compiled(makes_arrays=True)
def _read_records(
    program: NDArray[np.int64],
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
    for number in range(len(bounds) - 1):
        at, end = bounds[number] + _HEADER_BYTES, bounds[number + 1]
        good = at <= end
        for field in range(len(program)):
            if not good:
                break
            kind, column = program[field, _KIND], program[field, _COLUMN]
            if program[field, _NULLABLE] == 1:
                if at >= end or (data[at] != 0 and data[at] != 2):
                    good = False
                    break
                at += 1
                if data[at - 1] == 0:
                    continue
            if kind == _FLAG:
                if at >= end or data[at] > 1:
                    good = False
                    break
                rows[number, column] = 1 + data[at]
                at += 1
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
                rows[number, column] = value + OFFSET_ZERO if kind == _OFFSET else value
                continue
            if value <= 0 or value > end - at or value > program[field, _MOST]:
                good = False
                break
            starts[number, field], lengths[number, field] = at, value
            good = is_printable(data, at, at + value)
            if kind == _COUNTRY:
                letters = capital_letters(data, at, value) if value == 2 else -1
                good &= letters >= 0
                rows[number, column] = letters + 1
            elif column >= 0:
                rows[number, column] = crc32_of_text(data, at, at + value) + 1
            if program[field, _IDENTITY] >= 0:
                rows[number, program[field, _IDENTITY]] = identity_of_text(data, at, at + value, key_low, key_high)
            if kind == _MCC:
                good &= value == 4
                for place in range(at, at + value):
                    good &= 48 <= data[place] < 58
            elif kind == _TEXT:
                # The slow way decides whether it is a card number.
                good &= not may_be_card_number(data, at, at + value)
            at += value
        is_usual[number] = good and at == end
