"""A history: labelled payments in two Parquet files, and the same payments as columns for vectorised work.

    payments.parquet    the fields of schemas/avsc/payments.avsc, sorted by event_time_ms; schemas/payment_fields.py
                        has the rules for their values
    outcomes.parquet    the fields of schemas/avsc/outcomes.avsc, sorted by outcome_time_ms

A payment may have several outcomes; a later one corrects an earlier one. Strings may be plain or dictionary-encoded.
Further columns are ignored.

Each field that a project declares has a column of its name (features/history/declared_columns.py). payments.parquet may
have a column `propensity`: the chance, above 0 and at most 1, that the payment was kept with its label. No feature sees
it; models/metrics/propensity.py says what it is for. A column `never_labelled` says of which payments nobody knows, or
will know, whether they were fraud; models/metrics/labels.py says what becomes of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paywarden.features.catalogue.attributes import offset_code
from paywarden.features.history import declared_columns
from paywarden.features.history.payment_columns import PAYMENTS_FILE as PAYMENTS_FILE
from paywarden.features.history.payment_columns import Coded as Coded
from paywarden.features.history.payment_columns import (
    Int64Array,
    coded_values,
    flag_codes,
    plain_texts,
    refuse_wrong_number,
    refuse_wrong_text,
    whole_numbers,
    wrong_numbers,
)
from paywarden.schemas import arrow_files
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import FIELD, TABLE_ALONE, EmailDomain, Form, PaymentField, PaymentFields

OUTCOMES_FILE = "outcomes.parquet"

INTEGER, TEXT, OPTIONAL_TEXT = "integer", "string", "string or null"
OPTIONAL_INTEGER, OPTIONAL_FLAG = "integer or null", "boolean or null"
# Only declared fields have these kinds. A number may have a fraction. Paywarden writes an e-mail address as an integer
# (features/catalogue/identity.py).
FLAG, NUMBER, OPTIONAL_NUMBER = "boolean", "number", "number or null"
TEXT_OR_HASH, OPTIONAL_TEXT_OR_HASH = "string, or keyed hashes", "string or null, or keyed hashes"
REQUIRED = (INTEGER, TEXT, FLAG, NUMBER, TEXT_OR_HASH)


def _kind_of(line: PaymentField) -> str:
    if line.form is Form.EMAIL:
        return TEXT_OR_HASH if line.is_required else OPTIONAL_TEXT_OR_HASH
    if line.is_text:
        return TEXT if line.is_required else OPTIONAL_TEXT
    if line.is_number:
        return INTEGER if line.is_required else OPTIONAL_INTEGER
    if line.is_decimal:
        return NUMBER if line.is_required else OPTIONAL_NUMBER
    return FLAG if line.is_required else OPTIONAL_FLAG


def payment_columns(fields: PaymentFields = TABLE_ALONE) -> dict[str, str]:
    """Returns the columns of payments.parquet with their kinds.

    Behind the fields that a payment brings stand the domains of e-mail addresses: a file with keyed hashes of addresses
    has those of the domains too.
    """
    kinds = {line.name: _kind_of(line) for line in fields.all}
    return kinds | dict.fromkeys(hashed_domains(fields), OPTIONAL_INTEGER)


def read_columns(fields: PaymentFields = TABLE_ALONE) -> dict[str, str]:
    """Returns `payment_columns`, and the columns about labels unless a field of the project has their name."""
    return {PROPENSITY: OPTIONAL_NUMBER, NEVER_LABELLED: OPTIONAL_FLAG} | payment_columns(fields)


def hashed_domains(fields: PaymentFields) -> tuple[str, ...]:
    """Returns the names of derived fields that have a column where their source is hashed."""
    return tuple(line.name for line in fields.derived if isinstance(line, EmailDomain))


def absent_columns(fields: PaymentFields = TABLE_ALONE) -> tuple[str, ...]:
    """Returns the columns that a file may lack. Their values are then unknown."""
    return (*(line.name for line in fields.all if line.column_may_lack), *hashed_domains(fields))


PAYMENT_COLUMNS = payment_columns()
ABSENT_COLUMNS = absent_columns()
OUTCOME_COLUMNS = {"payment_id": TEXT, "outcome_time_ms": INTEGER, "label": TEXT, "source": OPTIONAL_TEXT}
LABELS = ("genuine", "fraud")
"""The position of a label is its number in the columns."""

UNKNOWN = -1

PROPENSITY, NEVER_LABELLED = "propensity", "never_labelled"
ABOUT_LABELS = (PROPENSITY, NEVER_LABELLED)
"""Columns that a file may have besides the fields of a payment."""


@dataclass(frozen=True)
class History:
    """Payments in order of event time, shape (payment_count,), and outcomes in order of outcome time."""

    payment_id: pa.Array
    event_time_ms: Int64Array
    amount_minor: Int64Array
    card: Coded
    merchant: Coded
    device: Coded
    ip: Coded
    currency: Coded
    mcc: Coded
    country: Coded
    channel: Coded
    utc_offset_code: Int64Array
    """The code of features/catalogue/attributes.py; 0 means unknown. `declined_code` likewise."""
    declined_code: Int64Array
    outcome_payment: Int64Array
    """Shape (outcome_count,): the row of the payment that the outcome is about."""
    outcome_time_ms: Int64Array
    outcome_fraud: npt.NDArray[np.bool_]
    fields: PaymentFields = TABLE_ALONE
    """The fields of a payment that the columns are of."""
    declared: Mapping[str, Coded | Int64Array] = field(default_factory=dict)
    """By name, the column of each declared and derived field (features/history/declared_columns.py)."""
    propensity: npt.NDArray[np.float64] | None = None
    """The chance that each payment was kept with its label; None if the file does not say, 1 where a row does not."""
    never_labelled: npt.NDArray[np.bool_] | None = None
    """The payments of which nobody knows whether they were fraud; None if the file does not say."""

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def coded(self, name: str) -> Coded:
        """Returns the column of a payment's text field: `merchant` for "merchant_id"."""
        column = self.declared[name] if name in self.declared else getattr(self, name.removesuffix("_id"))
        assert isinstance(column, Coded), f"{name} is no text"
        return column

    def numbers(self, name: str) -> Int64Array:
        """Returns the codes of a declared field that is no text: 0 where it is missing."""
        column = self.declared[name]
        assert not isinstance(column, Coded), f"{name} is a text"
        return column

    def texts(self, name: str, rows: slice | Int64Array) -> npt.NDArray[np.object_]:
        """Returns some rows of a text column as str or None, shape (rows,)."""
        column = self.coded(name)
        # Code -1 means no text. As an index it takes the last element, which is None.
        values = np.array([*column.names.to_pylist(), None], dtype=object)
        texts: npt.NDArray[np.object_] = values[column.codes[rows]]
        return texts


def write_history(
    directory: str | Path, payments: pa.Table, outcomes: pa.Table, fields: PaymentFields = TABLE_ALONE
) -> None:
    """Write both files over existing ones. Refuses a history that `read_history` would refuse."""
    history_of_tables(payments, outcomes, fields)
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [name for name in read_columns(fields) if name in payments.column_names]
        _write_table(folder / PAYMENTS_FILE, payments.select(present))
        _write_table(folder / OUTCOMES_FILE, outcomes.select(list(OUTCOME_COLUMNS)))
    except OSError as error:
        raise Misconfigured(f"cannot write a history to {folder}: {error.strerror or error}") from error


def read_history(directory: str | Path, fields: PaymentFields = TABLE_ALONE) -> History:
    """Returns both files as columns. `fields` are those of a payment.

    Raises Misconfigured that names the file and column if they are no history.
    """
    folder = Path(directory)
    payments = _read_table(folder / PAYMENTS_FILE, read_columns(fields))
    outcomes = _read_table(folder / OUTCOMES_FILE, OUTCOME_COLUMNS)
    return history_of_tables(payments, outcomes, fields)


def last_event_time_ms(directory: str | Path) -> int:
    """Returns the time of the last payment in payments.parquet. It reads only the end of the file.

    Raises Misconfigured when the file is not there, cannot be read or holds no payment.
    """
    path = Path(directory) / PAYMENTS_FILE
    _require_file(path)
    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows == 0:
            raise Misconfigured(f"{path} holds no payment")
        groups = [number for number in range(file.num_row_groups) if file.metadata.row_group(number).num_rows]
        times = file.read_row_group(groups[-1], columns=["event_time_ms"])
    except arrow_files.UNREADABLE as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {first_line(error)}") from error
    check_columns(PAYMENTS_FILE, times, {"event_time_ms": INTEGER})
    return int(times["event_time_ms"][-1].as_py())


def history_of_tables(payments: pa.Table, outcomes: pa.Table, fields: PaymentFields = TABLE_ALONE) -> History:
    """Returns a history from two tables in memory. Raises Misconfigured as `read_history` does."""
    history = payments_alone(payments, fields)
    check_columns(OUTCOMES_FILE, outcomes, OUTCOME_COLUMNS)
    _refuse_unsorted(PAYMENTS_FILE, "event_time_ms", history.event_time_ms)
    _refuse_repeated(history.payment_id)
    outcome_payment = _rows_of_payments(history.payment_id, outcomes["payment_id"])
    outcome_time_ms = sorted_times(OUTCOMES_FILE, outcomes, "outcome_time_ms")
    is_early = outcome_time_ms < history.event_time_ms[outcome_payment]
    refuse_first(OUTCOMES_FILE, "an outcome cannot be known before its payment is made", is_early)
    return replace(
        history,
        outcome_payment=outcome_payment,
        outcome_time_ms=outcome_time_ms,
        outcome_fraud=fraud_flags(outcomes["label"]),
    )


def payments_alone(payments: pa.Table, fields: PaymentFields = TABLE_ALONE) -> History:
    """Returns payments in any order, even repeated ones, as a history without outcomes.

    Raises Misconfigured that names the first row that breaks a rule.
    """
    check_columns(PAYMENTS_FILE, payments, read_columns(fields), (*absent_columns(fields), *ABOUT_LABELS))
    columns = {name: _checked_column(payments, name) for name in PAYMENT_COLUMNS}
    history = History(
        payment_id=columns["payment_id"],
        event_time_ms=columns["event_time_ms"],
        amount_minor=columns["amount_minor"],
        card=columns["card_id"],
        merchant=columns["merchant_id"],
        device=columns["device_id"],
        ip=columns["ip"],
        currency=columns["currency"],
        mcc=columns["mcc"],
        country=columns["country"],
        channel=columns["channel"],
        utc_offset_code=columns["utc_offset_minutes"],
        declined_code=columns["declined"],
        outcome_payment=np.zeros(0, dtype=np.int64),
        outcome_time_ms=np.zeros(0, dtype=np.int64),
        outcome_fraud=np.zeros(0, dtype=np.bool_),
        fields=fields,
        propensity=propensities(payments, fields),
        never_labelled=never_labelled(payments, fields),
    )
    if not fields.number_max:
        return history
    declared = declared_columns.of_table(payments, fields, history.ip)
    times, offsets = history.event_time_ms, history.utc_offset_code
    bands = declared_columns.band_columns(fields, declared, times, offsets, history.amount_minor)
    return replace(history, declared=declared | bands)


def require_past(history: History, now_ms: int) -> None:
    """Raises Misconfigured that names the first row with an outcome known only after `now_ms`."""
    later = history.outcome_time_ms > now_ms
    refuse_first(OUTCOMES_FILE, "outcome_time_ms must not be later than now", later)


def labels_known_by(history: History, time_ms: int) -> npt.NDArray[np.int8]:
    """Returns each payment's label as known at a time: 1 fraud, 0 genuine, -1 unknown. Shape (payment_count,).

    An outcome is known from its own millisecond on.
    """
    known = int(np.searchsorted(history.outcome_time_ms, time_ms, side="right"))
    labels = np.full(len(history), UNKNOWN, dtype=np.int8)
    # Outcomes are in order of time. NumPy keeps the last of repeated assignments, so a correction wins.
    for part in parts_of(known):
        labels[history.outcome_payment[part]] = history.outcome_fraud[part]
    return labels


def final_labels(history: History) -> npt.NDArray[np.int8]:
    """Returns each payment's final label: 1 fraud, 0 genuine, -1 never known. Shape (payment_count,)."""
    return labels_known_by(history, np.iinfo(np.int64).max)


def parts_of(count: int, rows: int = 1 << 20, *, first: int = 0) -> Iterator[slice]:
    """Yield the rows from `first` to `count` in parts, so that intermediate arrays stay small."""
    return (slice(start, min(start + rows, count)) for start in range(first, count, rows))


def numbered_ids(prefix: str, numbers: npt.ArrayLike, *, width: int) -> pa.Array:
    """Returns ids like p0000000042, zero-padded so that they sort like their numbers; fast for millions.

    `prefix` is ASCII; a number that is negative or needs more than `width` digits is a ValueError.
    """
    rest = np.array(numbers, dtype=np.int64)
    if len(rest) and (rest.min() < 0 or rest.max() >= 10**width):
        raise ValueError(f"numbers must lie between 0 and {10**width - 1}")
    head = prefix.encode("ascii")
    size = len(head) + width
    text = np.empty((len(rest), size), dtype=np.uint8)
    text[:, : len(head)] = np.frombuffer(head, dtype=np.uint8)
    for place in range(size - 1, len(head) - 1, -1):
        rest, digit = np.divmod(rest, 10)
        text[:, place] = digit + ord("0")
    offsets = np.arange(len(text) + 1, dtype=np.int64) * size
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_string(), len(text), buffers).cast(pa.string())


def _write_table(path: Path, table: pa.Table) -> None:
    # Payment ids never repeat, so a dictionary of them would hold the whole column twice.
    repeating = [name for name in table.column_names if name != "payment_id"]
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, compression="zstd", use_dictionary=repeating)
    partial.replace(path)


def _read_table(path: Path, columns: dict[str, str]) -> pa.Table:
    _require_file(path)
    try:
        present = pq.read_schema(path).names
        return pq.read_table(path, columns=[name for name in columns if name in present], partitioning=None)
    except arrow_files.UNREADABLE as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise Misconfigured(f"a history needs the file {path}, which is not there")


def first_line(error: BaseException) -> str:
    """Returns an error's first line, or its type's name if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_columns(
    file_name: str, table: pa.Table, columns: dict[str, str], absent: Collection[str] = ABSENT_COLUMNS
) -> None:
    """Raises Misconfigured if a column is missing, has a wrong type, or has a null that it may not have."""
    for name, kind in columns.items():
        if name not in table.column_names and name in absent:
            continue
        if name not in table.column_names:
            raise Misconfigured(f"{file_name}: column {name} is missing")
        column = table[name]
        if not _is_of(kind, column.type):
            raise Misconfigured(f"{file_name}: column {name} must be {kind}, got {column.type}")
        if kind in REQUIRED and column.null_count:
            raise Misconfigured(f"{file_name}: column {name} must not be null, and {column.null_count} rows are")


def _is_of(wanted: str, kind: pa.DataType) -> bool:
    # A column without any value has the null type.
    if wanted in (FLAG, OPTIONAL_FLAG):
        return bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))
    if wanted == OPTIONAL_INTEGER:
        return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))
    if wanted in (NUMBER, OPTIONAL_NUMBER):
        return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind))
    if wanted in (TEXT_OR_HASH, OPTIONAL_TEXT_OR_HASH) and pa.types.is_int64(kind):
        return True
    return bool(pa.types.is_integer(kind)) if wanted == INTEGER else _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def integers(table: pa.Table, name: str) -> Int64Array:
    """Returns a column of whole numbers without nulls."""
    return np.asarray(whole_numbers(table, name).to_numpy(), dtype=np.int64)


def _checked_column(payments: pa.Table, name: str) -> Any:
    """Returns a column in the form of `History`, after a check of its values."""
    if name == "declined":
        return flag_codes(payments, name)
    if name == "utc_offset_minutes":
        return offset_codes(payments)
    if FIELD[name].is_number:
        return checked_numbers(payments, name)
    if name == "payment_id":
        ids = plain_texts(payments[name])
        refuse_wrong_text(FIELD[name], ids, np.arange(len(ids)))
        return ids
    coded = _coded(payments[name])
    refuse_wrong_text(FIELD[name], coded.names, coded.codes)
    return coded


def checked_numbers(payments: pa.Table, name: str) -> Int64Array:
    """Returns a required column of whole numbers. Raises Misconfigured that names the first row that breaks a rule."""
    numbers = integers(payments, name)
    refuse_wrong_number(FIELD[name], numbers, wrong_numbers(FIELD[name], numbers))
    return numbers


def offset_codes(payments: pa.Table) -> Int64Array:
    """Returns `History.utc_offset_code` of a table of payments. Raises Misconfigured for an impossible offset."""
    field = FIELD["utc_offset_minutes"]
    if field.name not in payments.column_names:
        return np.zeros(len(payments), dtype=np.int64)
    column = whole_numbers(payments, field.name)
    is_known = np.asarray(pc.is_valid(column).to_numpy(), dtype=np.bool_)
    minutes = np.asarray(column.fill_null(0).to_numpy(), dtype=np.int64)
    refuse_wrong_number(field, minutes, wrong_numbers(field, minutes))
    return np.where(is_known, minutes + offset_code(0), 0)


def propensities(payments: pa.Table, fields: PaymentFields = TABLE_ALONE) -> npt.NDArray[np.float64] | None:
    """Returns `History.propensity` of a table of payments; None without the column.

    Raises Misconfigured that names the first row with a value that is no such chance.
    """
    if PROPENSITY not in payments.column_names or PROPENSITY in payment_columns(fields):
        return None
    values = np.asarray(payments[PROPENSITY].cast(pa.float64()).fill_null(1.0).to_numpy(), dtype=np.float64)
    wrong = ~((values > 0.0) & (values <= 1.0))
    if wrong.any():
        row = int(np.argmax(wrong))
        what = f"propensity must be above 0 and at most 1, got {float(values[row])!r}"
        raise Misconfigured(f"{PAYMENTS_FILE}, row {row}: {what}")
    return values


def never_labelled(payments: pa.Table, fields: PaymentFields = TABLE_ALONE) -> npt.NDArray[np.bool_] | None:
    """Returns `History.never_labelled` of a table of payments; None without the column. Null is no."""
    if NEVER_LABELLED not in payments.column_names or NEVER_LABELLED in payment_columns(fields):
        return None
    flags = payments[NEVER_LABELLED].cast(pa.bool_()).fill_null(False)
    return np.asarray(flags.to_numpy(), dtype=np.bool_)


def sorted_times(file_name: str, table: pa.Table, name: str) -> Int64Array:
    """Returns the times of a table. Raises Misconfigured where they fall."""
    time_ms = integers(table, name)
    # For the kernel, time 0 means "never".
    refuse_first(file_name, f"{name} must be above 0", time_ms <= 0)
    _refuse_unsorted(file_name, name, time_ms)
    return time_ms


def _refuse_unsorted(file_name: str, name: str, time_ms: Int64Array) -> None:
    """Raises Misconfigured if times decrease."""
    refuse_first(file_name, f"rows must be sorted by {name}", np.diff(time_ms, prepend=0) < 0)


def refuse_first(file_name: str, rule: str, is_wrong: npt.NDArray[np.bool_]) -> None:
    """Raises Misconfigured that names the first wrong row."""
    if is_wrong.any():
        raise Misconfigured(f"{file_name}: {rule}; row {int(np.argmax(is_wrong))} breaks that")


def _refuse_repeated(payment_id: pa.Array) -> None:
    if pc.count_distinct(payment_id).as_py() != len(payment_id):
        first = pc.index_in(payment_id, value_set=payment_id).to_numpy()
        refuse_first(PAYMENTS_FILE, "payment_id must be unique", first != np.arange(len(first)))


def _rows_of_payments(payment_id: pa.Array, wanted: pa.ChunkedArray) -> Int64Array:
    rows = pc.index_in(plain_texts(wanted), value_set=payment_id)
    if rows.null_count:
        lost = f"{rows.null_count} of {len(rows)} outcomes"
        raise Misconfigured(f"{OUTCOMES_FILE}: {lost} are about payments that {PAYMENTS_FILE} does not hold")
    return np.asarray(rows.to_numpy(zero_copy_only=False), dtype=np.int64)


def fraud_flags(label: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Returns which labels say fraud. Raises Misconfigured for a text that is no label."""
    numbers = pc.index_in(plain_texts(label), value_set=pa.array(LABELS))
    if numbers.null_count:
        raise Misconfigured(f"{OUTCOMES_FILE}: label must be fraud or genuine, and {numbers.null_count} rows are not")
    return np.asarray(numbers.to_numpy(zero_copy_only=False) == LABELS.index("fraud"), dtype=np.bool_)


def _coded(column: pa.ChunkedArray) -> Coded:
    return coded_values(plain_texts(column))
