"""From files to events in one order: payments, joined with their outcomes by id.

    payments ─ CheckedPayments ─┐
    outcomes ─ CheckedOutcomes ─┴► exchange by payment_id ─ JoinedOutcomes ─► sort ─ Numbered ─► events, in Parquet

An event is a payment, or an outcome together with the columns of its payment. The order is that of a replay on one
machine: the time at which an event became known, payments before outcomes, then the rows of the files, and for tables
the ids. Each event gets the number of payments before it; its *place* follows from that number:

    payment number r        2 r + 1
    outcome                 twice the number of the first payment behind it

Everything after the sort goes by places. A read of a neighbour's profile that payment r makes stands at 2 r + 1, too,
before the payment itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.dataflow.dataflow_engine import (
    BUCKET,
    FILE,
    ROW,
    Batches,
    buckets_of,
    group_starts,
    joined,
    values_of,
)
from paywarden.features.history.history import (
    ABOUT_LABELS,
    OUTCOME_COLUMNS,
    OUTCOMES_FILE,
    PAYMENTS_FILE,
    UNKNOWN,
    absent_columns,
    check_columns,
    fraud_flags,
    payments_alone,
    read_columns,
    sorted_times,
)
from paywarden.features.kernel.layout import DAY_MS, FIRST_LABEL
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import PaymentFields

# No declared field begins with a line.
KIND, KNOWN_MS, SEQUENCE, WEIGHT, LABEL = "_kind", "_known_ms", "_sequence", "_weight", "_label"
PART, NUMBER, OUTCOME_NUMBER = "_part", "_number", "_outcome_number"
OUTCOMES = "_outcomes"
"""A payment's outcomes as they became known, 8 bytes each: twice the time in ms, and 1 more for a fraud."""
PAYMENT, OUTCOME = 0, 1
EVENT_ORDER = (KNOWN_MS, KIND, SEQUENCE, "payment_id")
JOIN_ORDER = ("payment_id", KIND, KNOWN_MS, SEQUENCE)

# Below the day of any payment.
_NO_DAY = -1
# A row's sequence number: that of its file, and its own. Files have at most 2**40 rows.
_ROW_BITS = 40
_OUTCOME_SCHEMA = pa.schema([("payment_id", pa.string()), ("outcome_time_ms", pa.int64()), ("label", pa.string())])
_JOIN_COLUMNS = [(KIND, pa.int8()), (KNOWN_MS, pa.int64()), (SEQUENCE, pa.int64()), (LABEL, pa.int8())]


def canonical(payments: pa.Schema, fields: PaymentFields) -> pa.Schema:
    """Returns the columns of payments that stages carry, each of one type however the files encode it.

    Raises Misconfigured if a column is missing or has a wrong type.
    """
    absent = (*absent_columns(fields), *ABOUT_LABELS)
    check_columns(PAYMENTS_FILE, payments.empty_table(), read_columns(fields), absent)
    present = [(name, payments.field(name).type) for name in read_columns(fields) if name in payments.names]
    return pa.schema([(name, _plain_type(kind)) for name, kind in present if not pa.types.is_null(kind)])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_integer(kind):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(kind) else pa.string()


@dataclass(frozen=True)
class CheckedPayments:
    """Checks payments as they come from files, and gives each the bucket of its id."""

    columns: pa.Schema
    fields: PaymentFields
    files: tuple[str, ...]
    partitions: int

    @property
    def schema(self) -> pa.Schema:
        return join_schema(self.columns)

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in batches:
            with _rows_named(batch, self.files, PAYMENTS_FILE):
                payments = _cast(batch, self.columns)
                known_ms = payments_alone(payments, self.fields).event_time_ms
            yield _for_join(self, payments, PAYMENT, known_ms, np.full(len(known_ms), UNKNOWN), batch)


@dataclass(frozen=True)
class CheckedOutcomes:
    """Checks outcomes as they come from files, and gives each the bucket of its payment's id."""

    columns: pa.Schema
    files: tuple[str, ...]
    partitions: int

    @property
    def schema(self) -> pa.Schema:
        return join_schema(self.columns)

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in batches:
            with _rows_named(batch, self.files, OUTCOMES_FILE):
                outcomes = _cast(batch, _OUTCOME_SCHEMA)
                check_columns(OUTCOMES_FILE, outcomes, {name: OUTCOME_COLUMNS[name] for name in _OUTCOME_SCHEMA.names})
                known_ms = sorted_times(OUTCOMES_FILE, outcomes, "outcome_time_ms")
                fraud = fraud_flags(outcomes["label"])
            yield _for_join(self, outcomes, OUTCOME, known_ms, fraud, batch)


def join_schema(columns: pa.Schema) -> pa.Schema:
    """Returns the columns of payments and outcomes on their way to each other. An outcome has the id alone."""
    return pa.schema([*((field.name, field.type) for field in columns), *_JOIN_COLUMNS, (BUCKET, pa.int32())])


def _for_join(
    work: CheckedPayments | CheckedOutcomes,
    rows: pa.Table,
    kind: int,
    known_ms: NDArray[np.int64],
    label: NDArray[np.generic],
    batch: pa.RecordBatch,
) -> pa.RecordBatch:
    ids = _array(rows["payment_id"])
    arrays = {
        KIND: pa.array(np.full(len(rows), kind, dtype=np.int8)),
        KNOWN_MS: pa.array(known_ms),
        SEQUENCE: pa.array(_sequence(batch, work.files)),
        LABEL: pa.array(label.astype(np.int8)),
        BUCKET: buckets_of(ids, work.partitions),
    }
    for field in work.columns:
        is_there = field.name in rows.column_names and (kind == PAYMENT or field.name == "payment_id")
        arrays[field.name] = _array(rows[field.name]) if is_there else pa.nulls(len(rows), field.type)
    return pa.record_batch([arrays[name] for name in work.schema.names], schema=work.schema)


def _sequence(batch: pa.RecordBatch, files: Sequence[str]) -> NDArray[np.int64]:
    if not files:
        return np.zeros(len(batch), dtype=np.int64)
    numbers: NDArray[np.int64] = (_file_numbers(batch, files) << _ROW_BITS) + batch[ROW].to_numpy()
    return numbers


def _file_numbers(batch: pa.RecordBatch, files: Sequence[str]) -> NDArray[np.int64]:
    return np.asarray(pc.index_in(batch[FILE], value_set=pa.array(files, pa.string())).to_numpy(), dtype=np.int64)


def row_named(sequence: int, files: Sequence[str]) -> str:
    """Returns the words for the row with a sequence number: `payments-2.parquet, row 17`."""
    name = files[sequence >> _ROW_BITS].rsplit("/", 1)[-1]
    return f"{name}, row {sequence & (1 << _ROW_BITS) - 1}"


@contextmanager
def _rows_named(batch: pa.RecordBatch, files: Sequence[str], name: str) -> Iterator[None]:
    """Make errors about a row of a batch name its file and its row there."""
    try:
        yield
    except Misconfigured as error:
        text = str(error)
        if files and len(batch):
            found = re.search(r"\brow (\d+)", text)
            row = int(found[1]) if found else 0
            file = files[int(_file_numbers(batch, files)[row])].rsplit("/", 1)[-1]
            text = text.replace(name, file, 1)
            if found:
                text = text.replace(found[0], f"row {batch[ROW][row].as_py()}", 1)
        raise Misconfigured(text) from None


def _cast(batch: pa.RecordBatch, columns: pa.Schema) -> pa.Table:
    """Returns columns of a batch in the types of a schema. Raises Misconfigured that names the column."""
    arrays = []
    for field in columns:
        try:
            arrays.append(batch[field.name].cast(field.type))
        except KeyError:
            raise Misconfigured(f"{PAYMENTS_FILE}: column {field.name} is missing") from None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            kind = batch[field.name].type
            raise Misconfigured(
                f"{PAYMENTS_FILE}: column {field.name} has another type, {kind}, in some files"
            ) from None
    return pa.table(arrays, schema=columns)


def _array(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


@dataclass(frozen=True)
class JoinedOutcomes:
    """Makes events of payments and outcomes in order of id: the payment first, then its outcomes as they became known.

    The label of a payment is that of its last outcome. The weight of an outcome is +1 for a fraud, -1 for a fraud taken
    back, and 0 if it changes nothing. With `counts_labels`, FIRST_LABEL is added to that of the first outcome.
    """

    columns: pa.Schema
    payment_files: tuple[str, ...]
    outcome_files: tuple[str, ...]
    counts_labels: bool = False

    @property
    def schema(self) -> pa.Schema:
        added = [*_JOIN_COLUMNS, (WEIGHT, pa.int8()), (OUTCOMES, pa.binary())]
        return pa.schema([*((field.name, field.type) for field in self.columns), *added])

    def run(self, batches: Batches, _: int) -> Batches:
        rest: list[pa.RecordBatch] = []
        for batch in batches:
            ids = batch["payment_id"]
            # A payment's outcomes may go on in the next batch: its rows wait for another id.
            is_last = pc.equal(ids, ids[-1]).to_numpy(zero_copy_only=False)
            cut = int(np.argmax(is_last))
            if cut > 0:
                yield self._events([*rest, batch.slice(0, cut)])
                rest = [batch.slice(cut)]
            elif not rest or rest[-1]["payment_id"][-1] == ids[0]:
                rest.append(batch)
            else:
                yield self._events(rest)
                rest = [batch]
        if rest:
            yield self._events(rest)

    def _events(self, parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        rows = joined(parts)
        kind, known_ms, sequence, label = (rows[name].to_numpy() for name in (KIND, KNOWN_MS, SEQUENCE, LABEL))
        starts = group_starts(rows["payment_id"])
        payment = np.repeat(starts, np.diff(np.append(starts, len(rows))))
        self._refuse(kind, known_ms, sequence, payment)
        is_outcome = kind == OUTCOME
        before = np.zeros(len(rows), dtype=np.int8)
        before[1:] = np.where(is_outcome[:-1], label[:-1], 0)
        before[starts] = 0
        weight = np.where(is_outcome, label - before, 1).astype(np.int8)
        if self.counts_labels:
            is_first = is_outcome & (payment == np.arange(len(rows)) - 1)
            weight += (FIRST_LABEL * is_first).astype(np.int8)
        last = label.copy()
        # The last row of each payment: its last outcome, or itself.
        last[starts] = label[np.append(starts[1:], len(rows)) - 1]
        taken = rows.select([field.name for field in self.columns]).take(pa.array(payment))
        arrays = [*taken.columns, rows[KIND], rows[KNOWN_MS], rows[SEQUENCE], pa.array(last), pa.array(weight)]
        size = np.zeros(len(rows) + 1, dtype=np.int32)
        size[starts + 1] = 8 * (np.diff(np.append(starts, len(rows))) - 1)
        content = (known_ms << 1 | label)[is_outcome]
        buffers = [None, pa.py_buffer(np.cumsum(size, dtype=np.int32)), pa.py_buffer(content)]
        arrays.append(pa.Array.from_buffers(pa.binary(), len(rows), buffers))
        return pa.record_batch(arrays, schema=self.schema)

    def _refuse(
        self,
        kind: NDArray[np.int8],
        known_ms: NDArray[np.int64],
        sequence: NDArray[np.int64],
        payment: NDArray[np.int64],
    ) -> None:
        wrong = np.flatnonzero(kind[payment] == OUTCOME)
        if len(wrong):
            where = self._named(OUTCOME, sequence[wrong[0]])
            raise Misconfigured(f"{where}: the outcome is about a payment that {PAYMENTS_FILE} does not hold")
        wrong = np.flatnonzero((kind == PAYMENT) & (payment != np.arange(len(payment))))
        if len(wrong):
            where, first = (self._named(PAYMENT, sequence[row]) for row in (wrong[0], payment[wrong[0]]))
            raise Misconfigured(f"{where}: payment_id must be unique; {first} has the same one")
        wrong = np.flatnonzero(known_ms < known_ms[payment])
        if len(wrong):
            where = self._named(OUTCOME, sequence[wrong[0]])
            raise Misconfigured(f"{where}: an outcome cannot be known before its payment is made")

    def _named(self, kind: int, sequence: np.int64) -> str:
        files = self.payment_files if kind == PAYMENT else self.outcome_files
        return row_named(int(sequence), files) if files else (PAYMENTS_FILE, OUTCOMES_FILE)[kind]


def outcomes_of(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Returns all outcomes of a column OUTCOMES: the payment's row, the time in ms, and whether it says fraud."""
    if len(column) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
    _, offsets, content = column.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    number = np.frombuffer(memoryview(content or b"")[bounds[0] : bounds[-1]], dtype=np.int64)
    return np.repeat(np.arange(len(column)), np.diff(bounds) // 8), number >> 1, (number & 1).astype(np.bool_)


def known_labels(column: pa.Array, time_ms: int) -> NDArray[np.int8]:
    """Returns each payment's label as known at a time, from its outcomes: 1 fraud, 0 genuine, -1 unknown."""
    row, known_ms, fraud = outcomes_of(column)
    label = np.full(len(column), UNKNOWN, dtype=np.int8)
    is_known = known_ms <= time_ms
    # With repeated indexes NumPy keeps the last value, so a correction wins.
    label[row[is_known]] = fraud[is_known]
    return label


@dataclass(frozen=True)
class Numbered:
    """Adds to each event of a sorted partition its number, and how many payments and outcomes stand before it there."""

    columns: pa.Schema

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema([*self.columns, (PART, pa.int32()), (NUMBER, pa.int64()), (OUTCOME_NUMBER, pa.int64())])

    def run(self, batches: Batches, part: int) -> Batches:
        payments = outcomes = 0
        for batch in batches:
            is_payment = batch[KIND].to_numpy() == PAYMENT
            before = np.cumsum(is_payment) - is_payment
            others = np.arange(len(batch)) - before
            of_part = pa.array(np.full(len(batch), part, dtype=np.int32))
            numbers = [of_part, pa.array(before + payments), pa.array(others + outcomes)]
            payments += int(is_payment.sum())
            outcomes += len(batch) - int(is_payment.sum())
            yield pa.record_batch([*batch.select(self.columns.names).columns, *numbers], schema=self.schema)


@dataclass(frozen=True)
class CountedDays:
    """Counts the payments of each partition of events by UTC day, and its outcomes on day -1; with the latest time."""

    schema = pa.schema([(PART, pa.int32()), ("day", pa.int64()), ("count", pa.int64()), ("last_ms", pa.int64())])

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in batches:
            is_payment, known_ms = batch[KIND].to_numpy() == PAYMENT, batch[KNOWN_MS].to_numpy()
            day = np.where(is_payment, known_ms // DAY_MS, _NO_DAY)
            both = np.stack((batch[PART].to_numpy().astype(np.int64), day))
            pairs, counts = np.unique(both, axis=1, return_counts=True)
            of_kind = [known_ms[is_payment == flag].max(initial=0) for flag in (False, True)]
            last_ms = np.where(pairs[1] == _NO_DAY, *of_kind)
            arrays = [pa.array(pairs[0].astype(np.int32)), *map(pa.array, (pairs[1], counts, last_ms))]
            yield pa.record_batch(arrays, schema=self.schema)


@dataclass(frozen=True)
class Places:
    """Where the payments and outcomes of sorted events stand."""

    by_day: Mapping[int, int]
    """How many payments each UTC day has."""
    payments_before: NDArray[np.int64]
    """How many payments stand before each partition of the sort, and in the end all of them."""
    outcomes_before: NDArray[np.int64]
    last_payment_ms: int
    last_ms: int
    """When the last event became known."""

    @classmethod
    def of(cls, counted: Iterator[pa.Table]) -> Places:
        """Returns the places from the rows of CountedDays."""
        by_day: Counter[int] = Counter()
        by_part: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        payment_ms = outcome_ms = 0
        for table in counted:
            for part, day, count, last_ms in values_of(table):
                by_part[day == _NO_DAY][part] += count
                if day == _NO_DAY:
                    outcome_ms = max(outcome_ms, last_ms)
                else:
                    payment_ms = max(payment_ms, last_ms)
                    by_day[day] += count
        parts = range(max((*by_part[0], *by_part[1]), default=-1) + 1)
        payments, outcomes = (np.cumsum([0, *(counts[part] for part in parts)]).astype(np.int64) for counts in by_part)
        return cls(dict(by_day), payments, outcomes, payment_ms, max(payment_ms, outcome_ms))

    @property
    def payments(self) -> int:
        return int(self.payments_before[-1])

    @property
    def outcomes(self) -> int:
        return int(self.outcomes_before[-1])

    def rows_of(self, first_day: int, last_day: int) -> tuple[int, int]:
        """Returns the numbers of the first payment of a window of days, and of the first one behind it."""
        before = sum(count for day, count in self.by_day.items() if day < first_day)
        return before, before + sum(count for day, count in self.by_day.items() if first_day <= day <= last_day)

    def of_events(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """Returns the place of each event of a batch."""
        number = self.payments_before[batch[PART].to_numpy()] + batch[NUMBER].to_numpy()
        place: NDArray[np.int64] = 2 * number + (batch[KIND].to_numpy() == PAYMENT)
        return place

    def of_outcomes(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """Returns how many outcomes stand before each event of a batch."""
        before: NDArray[np.int64] = self.outcomes_before[batch[PART].to_numpy()] + batch[OUTCOME_NUMBER].to_numpy()
        return before
