"""A history: labelled payments in two Parquet files, and the same payments as columns for vectorised work.

    payments.parquet    the fields of schemas/avsc/payments.avsc, sorted by event_time_ms; schemas/payment_fields.py
                        has the rules for their values
    outcomes.parquet    the fields of schemas/avsc/outcomes.avsc, sorted by outcome_time_ms

A payment may have several outcomes; a later one corrects an earlier one. Strings may be plain or dictionary-encoded.
Further columns are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paywarden.features.catalogue.attributes import flag_code, offset_code
from paywarden.features.history.payment_columns import wrong_numbers, wrong_texts
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import FIELD, FIELDS, PaymentField

PAYMENTS_FILE = "payments.parquet"
OUTCOMES_FILE = "outcomes.parquet"

INTEGER, TEXT, OPTIONAL_TEXT = "integer", "string", "string or null"
OPTIONAL_INTEGER, OPTIONAL_FLAG = "integer or null", "boolean or null"
REQUIRED = (INTEGER, TEXT)


def _kind_of(field: PaymentField) -> str:
    if field.is_text:
        return TEXT if field.is_required else OPTIONAL_TEXT
    if field.is_number:
        return INTEGER if field.is_required else OPTIONAL_INTEGER
    return OPTIONAL_FLAG


PAYMENT_COLUMNS = {field.name: _kind_of(field) for field in FIELDS}
# Columns that a file may lack. Their values are then unknown.
ABSENT_COLUMNS = tuple(field.name for field in FIELDS if field.column_may_lack)
OUTCOME_COLUMNS = {"payment_id": TEXT, "outcome_time_ms": INTEGER, "label": TEXT, "source": OPTIONAL_TEXT}
LABELS = ("genuine", "fraud")
"""The position of a label is its number in the columns."""

UNKNOWN = -1

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Coded:
    """A column of strings as numbers: row i holds `names[codes[i]]`, or nothing where the code is -1.

    Names are distinct, in ascending order and all used, so codes do not depend on how a file was encoded.
    """

    codes: npt.NDArray[np.int32]
    names: pa.Array

    def __len__(self) -> int:
        return len(self.codes)


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

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def coded(self, field: str) -> Coded:
        """Returns the column of a payment's text field: `merchant` for "merchant_id"."""
        column: Coded = getattr(self, field.removesuffix("_id"))
        return column

    def texts(self, field: str, rows: slice | Int64Array) -> npt.NDArray[np.object_]:
        """Returns some rows of a text column as str or None, shape (rows,)."""
        column = self.coded(field)
        # Code -1 means no text. As an index it takes the last element, which is None.
        values = np.array([*column.names.to_pylist(), None], dtype=object)
        texts: npt.NDArray[np.object_] = values[column.codes[rows]]
        return texts


def write_history(directory: str | Path, payments: pa.Table, outcomes: pa.Table) -> None:
    """Write both files over existing ones. Refuses a history that `read_history` would refuse."""
    history_of_tables(payments, outcomes)
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [name for name in PAYMENT_COLUMNS if name in payments.column_names]
        _write_table(folder / PAYMENTS_FILE, payments.select(present))
        _write_table(folder / OUTCOMES_FILE, outcomes.select(list(OUTCOME_COLUMNS)))
    except OSError as error:
        raise Misconfigured(f"cannot write a history to {folder}: {error.strerror or error}") from error


def read_history(directory: str | Path) -> History:
    """Returns both files as columns. Raises Misconfigured that names the file and column if they are no history."""
    folder = Path(directory)
    payments = _read_table(folder / PAYMENTS_FILE, PAYMENT_COLUMNS)
    outcomes = _read_table(folder / OUTCOMES_FILE, OUTCOME_COLUMNS)
    return history_of_tables(payments, outcomes)


def last_event_time_ms(directory: str | Path) -> int:
    """Returns the time of the last payment of the two files. It reads no more than their end.

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
    except (pa.ArrowException, OSError) as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {first_line(error)}") from error
    check_columns(PAYMENTS_FILE, times, {"event_time_ms": INTEGER})
    return int(times["event_time_ms"][-1].as_py())


def history_of_tables(payments: pa.Table, outcomes: pa.Table) -> History:
    """Returns a history from two tables in memory. Raises Misconfigured as `read_history` does."""
    check_columns(PAYMENTS_FILE, payments, PAYMENT_COLUMNS)
    check_columns(OUTCOMES_FILE, outcomes, OUTCOME_COLUMNS)
    columns = {name: _checked_column(payments, name) for name in PAYMENT_COLUMNS}
    payment_id, event_time_ms = columns.pop("payment_id"), columns["event_time_ms"]
    refuse_unsorted(PAYMENTS_FILE, "event_time_ms", event_time_ms)
    _refuse_repeated(payment_id)
    outcome_payment = _rows_of_payments(payment_id, outcomes["payment_id"])
    outcome_time_ms = sorted_times(OUTCOMES_FILE, outcomes, "outcome_time_ms")
    is_early = outcome_time_ms < event_time_ms[outcome_payment]
    refuse_first(OUTCOMES_FILE, "an outcome cannot be known before its payment is made", is_early)
    return History(
        payment_id=payment_id,
        event_time_ms=event_time_ms,
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
        outcome_payment=outcome_payment,
        outcome_time_ms=outcome_time_ms,
        outcome_fraud=fraud_flags(outcomes["label"]),
    )


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
    except (pa.ArrowException, OSError) as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise Misconfigured(f"a history needs the file {path}, which is not there")


def first_line(error: BaseException) -> str:
    """Returns an error's first line, or its type's name if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_columns(file_name: str, table: pa.Table, columns: dict[str, str]) -> None:
    """Raises Misconfigured if a column is missing, has a wrong type, or has a null that it may not have."""
    for name, kind in columns.items():
        if name not in table.column_names and name in ABSENT_COLUMNS:
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
    if wanted == OPTIONAL_FLAG:
        return bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))
    if wanted == OPTIONAL_INTEGER:
        return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))
    return bool(pa.types.is_integer(kind)) if wanted == INTEGER else _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def plain_texts(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array of strings, whatever its encoding and chunks."""
    whole = column.cast(pa.string()).combine_chunks()
    # An empty or single-chunk column may come back chunked or not, depending on the version.
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def integers(table: pa.Table, name: str) -> Int64Array:
    """Returns a column of whole numbers without nulls."""
    return np.asarray(_whole_numbers(table, name).to_numpy(), dtype=np.int64)


def _whole_numbers(table: pa.Table, name: str) -> pa.ChunkedArray:
    try:
        return table[name].cast(pa.int64())
    except pa.ArrowInvalid as error:
        # Without Arrow's message, which quotes the value.
        raise Misconfigured(f"column {name} holds a whole number that does not fit 64 bits") from error


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


def checked_numbers(payments: pa.Table, name: str, first_row: int = 0) -> Int64Array:
    """Returns a required column of whole numbers. Raises Misconfigured that names the first row that breaks a rule."""
    numbers = integers(payments, name)
    _refuse_wrong_number(FIELD[name], numbers, wrong_numbers(FIELD[name], numbers), first_row)
    return numbers


def refuse_wrong_text(field: PaymentField, names: pa.Array, codes: npt.NDArray[np.integer], first_row: int = 0) -> None:
    """Raises Misconfigured that names the first row whose text breaks a rule; row i has the text names[codes[i]]."""
    wrong = wrong_texts(field, names)
    if wrong.any():
        # Code -1 means no text. As an index it takes the last element.
        row = int(np.argmax(np.append(wrong, False)[codes]))
        raise _wrong_value(field, names[int(codes[row])].as_py(), first_row + row)


def _refuse_wrong_number(
    field: PaymentField, numbers: Int64Array, wrong: npt.NDArray[np.bool_], first_row: int
) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _wrong_value(field, int(numbers[row]), first_row + row)


def _wrong_value(field: PaymentField, value: str | int, row: int) -> Misconfigured:
    return Misconfigured(f"{PAYMENTS_FILE}, row {row}: {field.name} {field.problem_of(value)}")


def offset_codes(payments: pa.Table, first_row: int = 0) -> Int64Array:
    """Returns `History.utc_offset_code` of a table of payments. Raises Misconfigured for an impossible offset."""
    field = FIELD["utc_offset_minutes"]
    if field.name not in payments.column_names:
        return np.zeros(len(payments), dtype=np.int64)
    column = _whole_numbers(payments, field.name)
    is_known = np.asarray(pc.is_valid(column).to_numpy(), dtype=np.bool_)
    minutes = np.asarray(column.fill_null(0).to_numpy(), dtype=np.int64)
    _refuse_wrong_number(field, minutes, wrong_numbers(field, minutes), first_row)
    return np.where(is_known, minutes + offset_code(0), 0)


def flag_codes(payments: pa.Table, name: str) -> Int64Array:
    """Returns a column of flags in the codes of features/catalogue/attributes.py."""
    if name not in payments.column_names:
        return np.zeros(len(payments), dtype=np.int64)
    column = payments[name].cast(pa.bool_())
    codes = pc.if_else(column, flag_code(True), flag_code(False)).fill_null(0)
    return np.asarray(codes.to_numpy(), dtype=np.int64)


def sorted_times(file_name: str, table: pa.Table, name: str, *, first_row: int = 0, previous_ms: int = 0) -> Int64Array:
    """Returns the times of a table, or of its part that begins at `first_row` and follows `previous_ms`.

    Raises Misconfigured where they fall.
    """
    time_ms = integers(table, name)
    # For the kernel, time 0 means "never".
    refuse_first(file_name, f"{name} must be above 0", time_ms <= 0, first_row)
    refuse_unsorted(file_name, name, time_ms, first_row=first_row, previous_ms=previous_ms)
    return time_ms


def refuse_unsorted(
    file_name: str, name: str, time_ms: Int64Array, *, first_row: int = 0, previous_ms: int = 0
) -> None:
    """Raises Misconfigured if times decrease. The row before the first one has `previous_ms`."""
    is_earlier = np.diff(time_ms, prepend=previous_ms) < 0
    refuse_first(file_name, f"rows must be sorted by {name}", is_earlier, first_row)


def refuse_first(file_name: str, rule: str, is_wrong: npt.NDArray[np.bool_], first_row: int = 0) -> None:
    """Raises Misconfigured that names the first wrong row. The part's first row is `first_row` of the file."""
    if is_wrong.any():
        raise Misconfigured(f"{file_name}: {rule}; row {first_row + int(np.argmax(is_wrong))} breaks that")


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
    # A dictionary from a file may hold unused, repeated and null entries, so this builds its own.
    encoded = plain_texts(column).dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    new_code = np.empty(len(order) + 1, dtype=np.int32)
    new_code[order] = np.arange(len(order))
    new_code[-1] = -1
    old_code = encoded.indices.fill_null(-1).to_numpy()
    return Coded(codes=new_code[old_code], names=encoded.dictionary.take(pa.array(order)))
