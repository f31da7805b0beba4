"""The handbook's table becomes a history; the real one is read where it is, and nothing of it is kept."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.datasets.handbook import ConvertedCounts, convert_handbook, convert_table
from paywarden.features.history.history import final_labels, labels_known_by, read_history
from paywarden.schemas.errors import Misconfigured
from tests.checkout import CHECKOUT
from tests.services.missing_tools import HANDBOOK

PROJECT = CHECKOUT
REAL_FILE = Path(os.environ.get("PAYWARDEN_HANDBOOK", PROJECT.parent / "shared" / "data" / "handbook.parquet"))

APRIL_1_MS = 1_522_540_800_000
SEVEN_DAYS_MS = 604_800_000


def handbook_table(**changed: Any) -> pa.Table:
    moment = datetime.datetime(2018, 4, 1)
    columns: dict[str, Any] = {
        "TRANSACTION_ID": pa.array([0, 2, 1]),
        "TX_DATETIME": pa.array([moment + datetime.timedelta(seconds=s) for s in (31, 130, 130)], pa.timestamp("ns")),
        "CUSTOMER_ID": pa.array([596, 4961, 596]),
        "TERMINAL_ID": pa.array([3156, 3412, 9]),
        "TX_AMOUNT": pa.array([57.16, 0.29, 1.15]),
        "TX_FRAUD": pa.array([0, 1, 0]),
        "TX_FRAUD_SCENARIO": pa.array([0, 2, 0]),
    }
    return pa.table({name: changed.get(name, values) for name, values in columns.items()})


def written(tmp_path: Path, table: pa.Table) -> Path:
    path = tmp_path / "input.parquet"
    pq.write_table(table, path)
    return path


def test_customers_become_cards_and_terminals_merchants(tmp_path: Path) -> None:
    counts = convert_handbook(written(tmp_path, handbook_table()), tmp_path / "out")
    history = read_history(tmp_path / "out")
    assert counts == ConvertedCounts(payments=3, frauds=1, cards=2, merchants=3)
    assert history.payment_id.to_pylist() == ["0000000000", "0000000001", "0000000002"]
    assert history.event_time_ms.tolist() == [APRIL_1_MS + 31_000, APRIL_1_MS + 130_000, APRIL_1_MS + 130_000]
    assert history.card.names.to_pylist() == ["customer-000596", "customer-004961"]
    assert history.card.codes.tolist() == [0, 0, 1]
    assert history.merchant.names.to_pylist() == ["terminal-000009", "terminal-003156", "terminal-003412"]
    assert history.amount_minor.tolist() == [5716, 115, 29]
    assert history.currency.names.to_pylist() == ["EUR"]
    assert history.device.codes.tolist() == [-1, -1, -1]


def test_every_label_is_known_seven_days_after_its_payment(tmp_path: Path) -> None:
    convert_handbook(written(tmp_path, handbook_table()), tmp_path / "out")
    history = read_history(tmp_path / "out")
    assert (history.outcome_time_ms - history.event_time_ms[history.outcome_payment] == SEVEN_DAYS_MS).all()
    assert final_labels(history).tolist() == [0, 0, 1]
    assert labels_known_by(history, APRIL_1_MS + 31_000 + SEVEN_DAYS_MS).tolist() == [0, -1, -1]


@given(cents=st.lists(st.integers(0, 10**9), min_size=3, max_size=3))
def test_amounts_with_two_decimals_become_exactly_their_cents(cents: list[int]) -> None:
    amounts = pa.array([amount / 100 for amount in cents])
    payments, _, _ = convert_table(handbook_table(TX_AMOUNT=amounts))
    first, last, middle = cents
    assert payments["amount_minor"].to_pylist() == [first, middle, last]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_any_resolution_are_read(unit: str) -> None:
    times = handbook_table()["TX_DATETIME"].cast(pa.timestamp(unit))
    payments, _, _ = convert_table(handbook_table(TX_DATETIME=times))
    assert payments["event_time_ms"].to_pylist()[0] == APRIL_1_MS + 31_000


def test_ids_written_as_text_are_read() -> None:
    payments, _, _ = convert_table(handbook_table(CUSTOMER_ID=pa.array(["596", "4961", "596"])))
    assert payments["card_id"].to_pylist() == ["customer-000596", "customer-000596", "customer-004961"]


def test_ids_grow_with_their_numbers() -> None:
    payments, _, _ = convert_table(handbook_table(CUSTOMER_ID=pa.array([7, 12_345_678, 7])))
    assert payments["card_id"].to_pylist() == ["customer-00000007", "customer-00000007", "customer-12345678"]


WRONG_COLUMNS = {
    "TX_DATETIME": (pa.array(["2018-04-01", "", ""]), "TX_DATETIME must be a timestamp, got string"),
    "TX_AMOUNT": (pa.array([1.0, 2.005, 3.0]), "TX_AMOUNT must hold amounts of whole cents"),
    "TX_FRAUD": (pa.array([0, 1, 2]), "TX_FRAUD must hold 0 and 1 only"),
    "CUSTOMER_ID": (pa.array(["x", "y", "z"]), "CUSTOMER_ID must hold whole numbers, got string"),
    "TERMINAL_ID": (pa.array([1, None, 2]), "TERMINAL_ID must not be null, and 1 rows are"),
    "TRANSACTION_ID": (pa.array([-1, 0, 1]), "TRANSACTION_ID must not be negative"),
}


@pytest.mark.parametrize("name", list(WRONG_COLUMNS))
def test_a_wrong_column_is_refused(tmp_path: Path, name: str) -> None:
    values, message = WRONG_COLUMNS[name]
    with pytest.raises(Misconfigured, match=message):
        convert_handbook(written(tmp_path, handbook_table(**{name: values})), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1.0])
def test_an_invalid_amount_is_refused(amount: float) -> None:
    with pytest.raises(Misconfigured, match="TX_AMOUNT"):
        convert_table(handbook_table(TX_AMOUNT=pa.array([1.0, amount, 3.0])))


def test_a_transaction_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, handbook_table(TRANSACTION_ID=pa.array([0, 1, 1])))
    with pytest.raises(Misconfigured, match="payment_id must be unique"):
        convert_handbook(path, tmp_path / "out")


@pytest.mark.skipif(not REAL_FILE.is_file(), reason=HANDBOOK.reason)
def test_the_real_table_is_converted_whole(tmp_path: Path) -> None:
    counts = convert_handbook(REAL_FILE, tmp_path)
    assert (counts.payments, counts.frauds, counts.merchants) == (1_754_155, 14_681, 10_000)
    history = read_history(tmp_path)
    table = pq.read_table(REAL_FILE, columns=["TX_AMOUNT", "TX_FRAUD"])
    assert int(history.amount_minor.sum()) == round(float(np.sum(table["TX_AMOUNT"].to_numpy())) * 100)
    assert int(final_labels(history).sum()) == counts.frauds
    assert (np.diff(history.event_time_ms) >= 0).all()
