"""Payments of a batch decoded together: what `Intake.payment` does for one, in a seventh of the time.

An Avro record of our own schema is its fields one after the other, and a payment's are numbers and texts, some of
which may be missing. So a compiled loop reads them all, and of each only what the stream needs: where its texts lie and
the row of attributes. It takes the usual case and nothing else: records of today's schema, ids and texts in ASCII, all
checks passed. Whatever is unusual, wrong or damaged it leaves to the slow way, which has the last word and the error
messages; tests hold the two against each other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import attributes, kernel
from features.kernel.byte_ranges import capital_letters, is_ascii
from features.kernel.crc import crc32_of_text
from features.kernel.jit import compiled
from features.kernel.layout import COUNTRY_CODES, OFFSET_ZERO, UTC_OFFSET_MINUTES_MAX
from features.kernel.varint import read_varint, unzigzag
from features.keys import SEPARATOR
from features.money import AMOUNT_MINOR_MAX, RateTable
from features.plan import Plan
from features.store import KEY_BYTES_MAX
from schemas.avro import SchemaIds, fingerprint, topic_schema
from schemas.errors import InvalidEvent
from streams.batch import PaymentEvent, Position, payments_source, record_key
from streams.kafka import Record

# How a field is stored, and what becomes of it.
_TEXT, _COUNTRY, _LONG, _FLAG, _OFFSET, _PLAIN_TEXT = range(6)
# Columns of the program: how it is stored, whether it may be null, and its column in the row (-1: none).
_KIND, _NULLABLE, _COLUMN = range(3)
_MISSING = -1
_HEADER_BYTES = 5
# An int has 32 bits; more is not of the type that the schema has.
_INT_MAX = 2**31 - 1


class FastIntake:
    """Decodes batches of payments."""

    def __init__(self, plan: Plan, rates: RateTable, ids: SchemaIds, *, future_ms_max: int) -> None:
        warm_up()
        self._rates, self._future_ms_max = rates, future_ms_max
        schema = topic_schema("payments")
        # Today's schema under its id in the registry, where there is one, and under its fingerprint.
        self._headers = tuple(
            {struct.pack(">BI", 0, number) for number in (ids.id_of("payments"), fingerprint(schema))}
        )
        fields = [field["name"] for field in schema["fields"]]
        program = [_instruction(field) for field in schema["fields"]]
        # None: today's schema has what this does not read.
        self._program = None if None in program else np.array(program, dtype=np.int64)
        self._payment_id, self._currency = fields.index("payment_id"), fields.index("currency")
        self._entities = [
            (f"{name}:".encode(), [fields.index(key) for key in keys])
            for name, keys in zip(plan.entity_names, plan.entity_keys, strict=True)
        ]

    def payments(
        self, records: Sequence[Record], now_ms: int, slowly: Callable[[Record], PaymentEvent]
    ) -> list[PaymentEvent | InvalidEvent]:
        """Each record's payment, or why it is none. `slowly` decodes one, and raises InvalidEvent."""
        values = [
            record.value if record.value is not None and record.value.startswith(self._headers) else b""
            for record in records
        ]
        read = self._read(values, now_ms)
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
                position = Position(payments_source(record.partition), record.offset)
                events.append(PaymentEvent(position, payment_id, row, keys, record.timestamp_ms))
        return events

    def _read(self, values: Sequence[bytes], now_ms: int) -> list[tuple[str, list[int], tuple[bytes, ...]] | None]:
        """Payment id, row and keys of each value; None where the slow way must look."""
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
        _read_records(self._program, buffer, bounds, rows, starts, lengths, is_usual)
        times, minor = rows[:, kernel.TIME_MS], rows[:, kernel.AMOUNT_MINOR]
        is_usual &= (times > 0) & (times <= now_ms + self._future_ms_max) & (minor >= 0) & (minor <= AMOUNT_MINOR_MAX)
        id_bytes = lengths[:, self._payment_id]
        is_usual &= (id_bytes > 0) & (id_bytes <= KEY_BYTES_MAX - len(record_key("")))
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
        """Amounts in the reference currency; a currency that has no rate is not usual."""
        codes = rows[:, attributes.currency.column]
        for code in np.unique(codes[is_usual]).tolist():
            chosen = np.flatnonzero(is_usual & (codes == code))
            first = int(chosen[0])
            name = data[starts[first] : starts[first] + lengths[first]].decode()
            if name not in self._rates.currencies:
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
        """Store keys of one kind of entity, empty where there is none."""
        own = lengths[:, fields]
        is_there = (own != _MISSING).all(axis=1)
        is_usual &= ~is_there | ((own > 0).all(axis=1) & (own.sum(axis=1) <= KEY_BYTES_MAX - len(prefix) - len(fields)))
        # An empty id is wrong where all are there, and there is no entity where one is missing: the slow way knows.
        is_usual &= is_there | (own != 0).all(axis=1)
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
            if any(separator in identity for identity in ids):
                is_usual[number] = False
            keys.append(prefix + separator.join(ids))
        return keys


def warm_up() -> None:
    """Load or compile the loop, so that no payment waits for it."""
    none = np.zeros((0, 3), dtype=np.int64)
    _read_records(none, np.zeros(0, np.uint8), none[:, 0].copy(), none, none, none, np.zeros(0, np.bool_))


def _instruction(field: dict[str, Any]) -> tuple[int, int, int] | None:
    """How one field is read; None for a type that no payment has had so far."""
    kind, nullable = field["type"], 0
    if isinstance(kind, list):
        if len(kind) != 2 or kind[0] != "null":
            return None
        kind, nullable = kind[1], 1
    columns = {attribute.name: (attribute.kind, attribute.column) for attribute in attributes.ATTRIBUTES}
    meaning, column = columns.get(field["name"], (None, -1))
    if field["name"] == "amount_minor" or field["name"] == "event_time_ms":
        how = _LONG if kind == "long" else None
    elif kind == "string":
        how = {attributes.Kind.TEXT: _TEXT, attributes.Kind.COUNTRY: _COUNTRY, None: _PLAIN_TEXT}.get(meaning)
    elif kind == "boolean" and meaning is attributes.Kind.FLAG:
        how = _FLAG
    elif kind == "int" and meaning is attributes.Kind.OFFSET:
        how = _OFFSET
    else:
        how = None
    return None if how is None else (how, nullable, column)


@compiled(makes_arrays=True)
def _read_records(
    program: NDArray[np.int64],
    data: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    is_usual: NDArray[np.bool_],
) -> None:
    """Fill what is known of each record; `is_usual` where it could be read to its end.

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
            if kind == _LONG:
                rows[number, column] = value
                continue
            if kind == _OFFSET:
                if not -_INT_MAX <= value <= _INT_MAX:
                    good = False
                    break
                is_offset = -UTC_OFFSET_MINUTES_MAX <= value <= UTC_OFFSET_MINUTES_MAX
                rows[number, column] = value + OFFSET_ZERO if is_offset else 0
                continue
            if value < 0 or value > end - at:
                good = False
                break
            starts[number, field], lengths[number, field] = at, value
            good = is_ascii(data, at, at + value)
            if kind == _TEXT:
                rows[number, column] = crc32_of_text(data, at, at + value) + 1
            elif kind == _COUNTRY:
                letters = capital_letters(data, at, value) if value == 2 else -1
                if letters >= 0:
                    rows[number, column] = letters + 1
                else:
                    rows[number, column] = crc32_of_text(data, at, at + value) + 1 + COUNTRY_CODES
            at += value
        is_usual[number] = good and at == end
