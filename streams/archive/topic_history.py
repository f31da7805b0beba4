"""Make a history from the rows of an archive or of Kafka itself (streams/kafka/topic_rows.py).

    1. leave out   records that do not decode, and payments that the stream would refuse
    2. cut         payments outside the wanted days
    3. sort        by the event's own time; equal times by partition, then by offset
    4. drop        a repeated payment with the same fields; a repeated id with other fields is an error. If records
                   differ in `declined` alone, the payment was declined when one of them says so, as in the stream
    5. join        outcomes to their payments; drop outcomes without a payment, and those older than their payment

The same records give the same history, whether they come from an archive or from Kafka. `LeftOut` counts every record
that is left out, with a reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.history.history import (
    OUTCOME_COLUMNS,
    History,
    absent_columns,
    history_of_tables,
    payment_columns,
)
from paywarden.features.history.payment_columns import (
    plain_texts,
    scaled_decimals,
    wrong_decimals,
    wrong_numbers,
    wrong_texts,
)
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import TABLE_ALONE, Form, PaymentField, PaymentFields, TimeBounds
from paywarden.streams.archive.files import read_archive
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, TIMESTAMP, TopicRows, hashed_fields, rows_schema
from paywarden.streams.profiles.decoder import TIMES


@dataclass(frozen=True)
class PaymentTimes:
    """Selects payments from `first_ms` to `last_ms`, both included, by their own time; None: no bound."""

    first_ms: int | None = None
    last_ms: int | None = None


@dataclass
class LeftOut:
    """The records that are not in the history: their number for each reason, and the place of the first."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, count: int, example: str) -> None:
        """Add `count` records."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples.setdefault(reason, example)

    def lines(self) -> list[str]:
        """Returns one line for each reason."""
        return [f"left out: {count} {reason} ({self.examples[reason]})" for reason, count in self.counts.items()]


def archived_rows(
    archive: Path,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    days: PaymentTimes | None = None,
    fields: PaymentFields = TABLE_ALONE,
    key: IdentityKey = LAPTOP_KEY,
) -> tuple[TopicRows, TopicRows]:
    """Returns payments and outcomes of an archive that reached Kafka in a range of time; skips files of other days.

    `fields` are those of a payment. `key` must have made the hashes of e-mail addresses in the files.

    Raises the errors of `read_archive`.
    """
    days = days or PaymentTimes()
    payments = read_archive(
        archive,
        "payments",
        rows_schema("payments", fields),
        since_ms=since_ms,
        until_ms=until_ms,
        times_ms=(days.first_ms, days.last_ms),
        optional=(*absent_columns(fields), *(field.name for field in fields.declared)),
        key_digest=key.digest if hashed_fields(fields) else "",
    )
    # No outcome is older than its payment.
    times = (days.first_ms, None)
    outcomes = read_archive(
        archive, "outcomes", rows_schema("outcomes"), since_ms=since_ms, until_ms=until_ms, times_ms=times
    )
    return payments, outcomes


def history_of_rows(
    payments: TopicRows,
    outcomes: TopicRows,
    *,
    times: TimeBounds = TIMES,
    days: PaymentTimes | None = None,
    fields: PaymentFields = TABLE_ALONE,
) -> tuple[History, LeftOut]:
    """Returns the history and the records left out. `times`: the stream's bounds for a payment's own time.

    `fields` are those of a payment; the rows have their columns.

    Raises Misconfigured if two payments have one id and differ.
    """
    left_out = LeftOut()
    for topic, rows in (("payments", payments), ("outcomes", outcomes)):
        if rows.undecoded:
            left_out.add(f"records of {topic} that do not decode", len(rows.undecoded), str(min(rows.undecoded)))
    rules = _Rules(times, fields)
    used_payments = _payments(payments.table, rules, days or PaymentTimes(), left_out)
    used_outcomes = _outcomes(outcomes.table, used_payments, days or PaymentTimes(), left_out)
    columns = [name for name in payment_columns(fields) if name in used_payments.column_names]
    history = history_of_tables(used_payments.select(columns), used_outcomes.select(list(OUTCOME_COLUMNS)), fields)
    return history, left_out


# Payments


@dataclass(frozen=True)
class _Rules:
    """The rules of the stream's decoder: its bounds of time, and the fields of a payment."""

    times: TimeBounds
    fields: PaymentFields


def _payments(table: pa.Table, rules: _Rules, days: PaymentTimes, left_out: LeftOut) -> pa.Table:
    table = _cut(table, "event_time_ms", days)
    is_usable = np.ones(len(table), dtype=np.bool_)
    for rule, is_wrong in _broken(table, rules):
        # A payment that breaks several rules counts for the first one.
        _count(left_out, f"payments that the stream refuses: {rule}", table, is_wrong & is_usable)
        is_usable &= ~is_wrong
    sorted_table = _sorted(table.filter(pa.array(is_usable)), "event_time_ms")
    return _without_repeated(sorted_table, left_out, payment_columns(rules.fields))


def _broken(table: pa.Table, rules: _Rules) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yields each rule of streams/profiles/decoder.py, in its order, with the rows that break it."""
    for line in rules.fields.all:
        column = table[line.name]
        rule = f"{line.name} must be {line.wanted}"
        if line.number and line.is_required:
            yield f"{line.name} is missing", _is(pc.is_null(column))
        if line.form is Form.EMAIL:
            # No address is left that could be looked at.
            yield rule, _is(pc.equal(column, 0))
        elif line.is_text:
            yield rule, _wrong_texts(line, column)
        elif line.is_number:
            numbers = np.asarray(column.fill_null(line.minimum).to_numpy(), dtype=np.int64)
            yield rule, wrong_numbers(line, numbers)
        elif line.is_decimal:
            least = line.minimum / 10**line.decimals
            yield rule, wrong_decimals(line, scaled_decimals(line, column.fill_null(least).to_numpy()))
        if line.form is Form.TIME:
            yield (
                f"{line.name} must be near the record's arrival",
                _far_from_arrival(_numbers(table, line.name), table, rules.times),
            )


def _wrong_texts(line: PaymentField, column: pa.ChunkedArray) -> NDArray[np.bool_]:
    encoded = plain_texts(column).dictionary_encode()
    # Code -1 stands for a missing text and selects the last element.
    wrong = np.append(wrong_texts(line, encoded.dictionary), False)
    chosen: NDArray[np.bool_] = wrong[encoded.indices.fill_null(-1).to_numpy()]
    return chosen


def _far_from_arrival(time_ms: NDArray[np.int64], table: pa.Table, times: TimeBounds) -> NDArray[np.bool_]:
    """Compares with the time of arrival alone: a later reader of the topic has no other clock."""
    arrived_ms = _numbers(table, TIMESTAMP)
    is_far = (time_ms < arrived_ms - times.past_ms_max) | (time_ms > arrived_ms + times.future_ms_max)
    return np.asarray((arrived_ms > 0) & is_far, dtype=np.bool_)


def _without_repeated(table: pa.Table, left_out: LeftOut, columns: Collection[str]) -> pa.Table:
    """Returns the table without repeated payments. The first copy stays, with `declined` from all copies."""
    ids = table["payment_id"].combine_chunks()
    first = np.asarray(pc.index_in(ids, value_set=ids).to_numpy(zero_copy_only=False), dtype=np.int64)
    repeated = np.flatnonzero(first != np.arange(len(first)))
    if len(repeated) == 0:
        return table
    fields = [name for name in columns if name != "declined" and name in table.column_names]
    again, before = (table.select(fields).take(pa.array(rows)) for rows in (repeated, first[repeated]))
    if not again.equals(before):
        place = next(row for row in range(len(again)) if not again.slice(row, 1).equals(before.slice(row, 1)))
        places = [_place(table, int(row)) for row in (first[repeated[place]], repeated[place])]
        raise Misconfigured(f"topic payments holds two payments of one payment_id that differ: {' and '.join(places)}")
    codes = _declined_codes(table)
    differs = codes[repeated] != codes[first[repeated]]
    for what, rows in (("the same", repeated[~differs]), ("but for declined the same", repeated[differs])):
        if len(rows):
            left_out.add(f"payments that came before, field by field {what}", len(rows), _place(table, int(rows[0])))
    # The largest code of all copies: streams/profiles/events.py keeps the same one.
    np.maximum.at(codes, first[repeated], codes[repeated])
    declined = pa.array([None, False, True]).take(pa.array(codes))
    table = table.set_column(table.column_names.index("declined"), "declined", declined)
    is_kept = np.ones(len(table), dtype=np.bool_)
    is_kept[repeated] = False
    return table.filter(pa.array(is_kept))


def _declined_codes(table: pa.Table) -> NDArray[np.int64]:
    """Returns 0 where a payment does not say whether it was declined, else 1 for no and 2 for yes."""
    said = pc.add(pc.cast(table["declined"], pa.int64()), 1)
    return np.array(pc.fill_null(said, 0).to_numpy(), dtype=np.int64)


# Outcomes


def _outcomes(table: pa.Table, payments: pa.Table, days: PaymentTimes, left_out: LeftOut) -> pa.Table:
    # Outcomes before the first day are cut with their payments and not counted. `archived_rows` skips their files.
    table = _sorted(_cut(table, "outcome_time_ms", PaymentTimes(days.first_ms)), "outcome_time_ms")
    row = pc.index_in(table["payment_id"], value_set=payments["payment_id"].combine_chunks())
    is_lost = _is(pc.is_null(row))
    payment_row = np.asarray(row.fill_null(0).to_numpy(), dtype=np.int64)
    payment_time_ms = np.append(_numbers(payments, "event_time_ms"), 0)[np.where(is_lost, len(payments), payment_row)]
    is_early = ~is_lost & (_numbers(table, "outcome_time_ms") < payment_time_ms)
    _count(left_out, "outcomes of payments that are not among those read", table, is_lost)
    _count(left_out, "outcomes that are older than their payments", table, is_early)
    return table.filter(pa.array(~is_lost & ~is_early))


# Columns


def _cut(table: pa.Table, column: str, days: PaymentTimes) -> pa.Table:
    if days.first_ms is not None:
        table = table.filter(pc.greater_equal(table[column], days.first_ms))
    if days.last_ms is not None:
        table = table.filter(pc.less_equal(table[column], days.last_ms))
    return table


def _sorted(table: pa.Table, column: str) -> pa.Table:
    keys: Sequence[tuple[str, str]] = [(name, "ascending") for name in (column, PARTITION, OFFSET)]
    return table.sort_by(keys)


def _count(left_out: LeftOut, what: str, table: pa.Table, is_left_out: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(is_left_out)
    if len(rows):
        left_out.add(what, len(rows), _place(table, int(rows[0])))


def _place(table: pa.Table, row: int) -> str:
    return f"partition {table[PARTITION][row].as_py()}, offset {table[OFFSET][row].as_py()}"


def _numbers(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(table[name].to_numpy(), dtype=np.int64)


def _is(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(column, False).to_numpy(), dtype=np.bool_)
