"""Converts the Fraud Detection Handbook's table to a history: card = customer, merchant = terminal, all in EUR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from paywarden.features.history.history import LABELS, numbered_ids, write_history
from paywarden.schemas import arrow_files
from paywarden.schemas.errors import Misconfigured

LABEL_DELAY_MS = 7 * 86_400_000
"""The book assumes that every label is known seven days after its payment."""

INPUT_COLUMNS = ("TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD")
# Amounts have two decimals and are stored as doubles: a third decimal would be a tenth of a cent or more.
CENT_TOLERANCE = 1e-3
AMOUNT_CENTS_MAX = 10**12
"""Up to this amount, a double distinguishes tenths of a cent with ease."""


@dataclass(frozen=True)
class ConvertedCounts:
    """The numbers of converted rows."""

    payments: int
    frauds: int
    cards: int
    merchants: int


def convert_handbook(input_file: str | Path, out_dir: str | Path) -> ConvertedCounts:
    """Read the book's table (one Parquet file), write our two files, and say how many rows they hold.

    Naive times are UTC. Misconfigured, in one line, if the file is missing or is another table.
    """
    payments, outcomes, counts = convert_table(_read(Path(input_file)))
    write_history(out_dir, payments, outcomes)
    return counts


def convert_table(table: pa.Table) -> tuple[pa.Table, pa.Table, ConvertedCounts]:
    """Returns (payments, outcomes, counts) of a table in memory, both sorted by time, then by id."""
    transaction = _whole_numbers(table, "TRANSACTION_ID")
    time_ms = _times(table)
    order = np.lexsort((transaction, time_ms))
    time_ms = time_ms[order]
    payment_id = _ids("", transaction[order], least_width=10)
    customer = _whole_numbers(table, "CUSTOMER_ID")[order]
    terminal = _whole_numbers(table, "TERMINAL_ID")[order]
    fraud = _whole_numbers(table, "TX_FRAUD")[order]
    if np.any(fraud > 1):
        raise Misconfigured("column TX_FRAUD must hold 0 and 1 only")
    payments = _payments_table(payment_id, time_ms, customer, terminal, _cents(table)[order])
    outcomes = pa.table(
        {
            "payment_id": payment_id,
            "outcome_time_ms": time_ms + LABEL_DELAY_MS,
            "label": pa.DictionaryArray.from_arrays(pa.array(fraud, pa.int32()), pa.array(LABELS)),
            "source": pa.nulls(len(fraud), pa.string()),
        }
    )
    counts = ConvertedCounts(
        payments=len(fraud),
        frauds=int(fraud.sum()),
        cards=len(np.unique(customer)),
        merchants=len(np.unique(terminal)),
    )
    return payments, outcomes, counts


def _payments_table(
    payment_id: pa.Array,
    time_ms: npt.NDArray[np.int64],
    customer: npt.NDArray[np.int64],
    terminal: npt.NDArray[np.int64],
    cents: npt.NDArray[np.int64],
) -> pa.Table:
    nothing = pa.nulls(len(payment_id), pa.string())
    return pa.table(
        {
            "payment_id": payment_id,
            "event_time_ms": time_ms,
            "card_id": _entity_ids("customer-", customer),
            "merchant_id": _entity_ids("terminal-", terminal),
            "device_id": nothing,
            "ip": nothing,
            "amount_minor": cents,
            "currency": pa.repeat(pa.scalar("EUR"), len(payment_id)),
            "mcc": nothing,
            "country": nothing,
            "channel": nothing,
        }
    )


def _entity_ids(prefix: str, number: npt.NDArray[np.int64]) -> pa.Array:
    distinct, codes = np.unique(number, return_inverse=True)
    return pa.DictionaryArray.from_arrays(codes.astype(np.int32), _ids(prefix, distinct, least_width=6))


def _ids(prefix: str, numbers: npt.NDArray[np.int64], *, least_width: int) -> pa.Array:
    digits = len(str(int(numbers.max(initial=0))))
    return numbered_ids(prefix, numbers, width=max(least_width, digits))


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise Misconfigured(f"the handbook's table {path} is not there")
    try:
        missing = sorted(set(INPUT_COLUMNS) - set(pq.read_schema(path).names))
        if missing:
            raise Misconfigured(f"{path} is not the handbook's table: it has no column {', '.join(missing)}")
        return pq.read_table(path, columns=list(INPUT_COLUMNS), partitioning=None)
    except arrow_files.UNREADABLE as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise Misconfigured(f"{path} cannot be read as Parquet: {message}") from error


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise Misconfigured(f"this is not the handbook's table: it has no column {name}")
    if table[name].null_count:
        raise Misconfigured(f"column {name} must not be null, and {table[name].null_count} rows are")
    return table[name]


def _whole_numbers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """Returns ids or labels as integers. The book's own pickles hold some of them as text."""
    column = _column(table, name)
    try:
        numbers = np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise Misconfigured(f"column {name} must hold whole numbers, got {column.type}") from error
    if np.any(numbers < 0):
        raise Misconfigured(f"column {name} must not be negative")
    return numbers


def _times(table: pa.Table) -> npt.NDArray[np.int64]:
    column = _column(table, "TX_DATETIME")
    if not pa.types.is_timestamp(column.type):
        raise Misconfigured(f"column TX_DATETIME must be a timestamp, got {column.type}")
    in_ms = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False)
    return np.asarray(in_ms.cast(pa.int64()).to_numpy(), dtype=np.int64)


def _cents(table: pa.Table) -> npt.NDArray[np.int64]:
    column = _column(table, "TX_AMOUNT")
    if not pa.types.is_floating(column.type):
        raise Misconfigured(f"column TX_AMOUNT must be a floating-point number, got {column.type}")
    exact = np.asarray(column.to_numpy(), dtype=np.float64) * 100.0
    # The comparison with zero refuses NaN too.
    if not np.all((exact >= 0.0) & (exact <= AMOUNT_CENTS_MAX)):
        raise Misconfigured("column TX_AMOUNT must hold amounts of money, none of them negative")
    cents = np.rint(exact)  # half to even
    if not np.all(np.abs(exact - cents) <= CENT_TOLERANCE):
        raise Misconfigured("column TX_AMOUNT must hold amounts of whole cents")
    return cents.astype(np.int64)
