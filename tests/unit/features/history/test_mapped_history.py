"""A history with its columns in files equals one in memory, and is refused with the same messages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paywarden.features.history.history import (
    OUTCOMES_FILE,
    PAYMENT_COLUMNS,
    PAYMENTS_FILE,
    Coded,
    History,
    final_labels,
    read_history,
    write_history,
)
from paywarden.features.history.history_columns import MmapAllocator
from paywarden.features.history.mapped_history import open_history
from paywarden.schemas.errors import Misconfigured
from tests.unit.features.history.test_history import WRONG_OUTCOMES, WRONG_PAYMENTS, outcomes_table, payments_table
from tests.worlds.small import small_history


def put(folder: Path, payments: pa.Table, outcomes: pa.Table) -> None:
    """Write both files unchecked, with any faults in them."""
    pq.write_table(payments, folder / PAYMENTS_FILE)
    pq.write_table(outcomes, folder / OUTCOMES_FILE)


def opened(folder: Path, part_rows: int = 2) -> History:
    return open_history(folder, MmapAllocator(folder), part_rows=part_rows)


def assert_same(one: History, other: History) -> None:
    assert other.fields == one.fields
    assert other.declared.keys() == one.declared.keys()
    names = [field.name for field in dataclasses.fields(History) if field.name not in ("fields", "declared")]
    pairs = [(name, getattr(one, name), getattr(other, name)) for name in names]
    pairs += [(name, column, other.declared[name]) for name, column in one.declared.items()]
    for name, wanted, found in pairs:
        assert_same_column(name, wanted, found)


def assert_same_column(name: str, wanted: Any, found: Any) -> None:
    if wanted is None:
        assert found is None, name
    elif isinstance(wanted, Coded):
        assert np.array_equal(found.codes, wanted.codes), name
        assert found.names.equals(wanted.names), name
    elif isinstance(wanted, pa.Array):
        assert found.cast(pa.string()).equals(wanted), name
    else:
        assert np.array_equal(found, wanted), name
        assert found.dtype == wanted.dtype, name


@pytest.mark.parametrize("part_rows", [1, 2, 3, 100])
def test_opening_in_parts_gives_the_same_as_reading_whole(part_rows: int, tmp_path: Path) -> None:
    write_history(tmp_path, payments_table(), outcomes_table())
    assert_same(read_history(tmp_path), opened(tmp_path, part_rows))


def test_a_simulated_history_is_the_same_both_ways(tmp_path: Path) -> None:
    write_history(tmp_path, *small_history.tables())
    history = opened(tmp_path, 1000)
    assert_same(small_history.history(), history)
    assert np.array_equal(final_labels(history), final_labels(small_history.history()))


def test_texts_may_be_encoded_as_a_dictionary_and_columns_may_be_absent(tmp_path: Path) -> None:
    table = payments_table()
    for name in ("card_id", "device_id"):
        table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    put(tmp_path, table.drop(["utc_offset_minutes", "declined"]), outcomes_table())
    assert_same(read_history(tmp_path), opened(tmp_path))


def test_an_empty_column_is_the_same_both_ways(tmp_path: Path) -> None:
    put(tmp_path, payments_table(ip=pa.nulls(3), mcc=pa.nulls(3, pa.string())), outcomes_table())
    assert_same(read_history(tmp_path), opened(tmp_path))


def test_no_payments_and_no_outcomes_are_a_history(tmp_path: Path) -> None:
    put(tmp_path, payments_table().slice(0, 0), outcomes_table().slice(0, 0))
    assert len(opened(tmp_path)) == 0


def test_no_file_is_left_behind(tmp_path: Path) -> None:
    write_history(tmp_path, payments_table(), outcomes_table())
    history = opened(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [OUTCOMES_FILE, PAYMENTS_FILE]
    assert len(history) == 3


@pytest.mark.parametrize("case", list(WRONG_PAYMENTS))
def test_wrong_payments_are_refused_with_the_same_message_both_ways(case: str, tmp_path: Path) -> None:
    put(tmp_path, payments_table(**WRONG_PAYMENTS[case][0]), outcomes_table())
    with pytest.raises(Misconfigured) as whole:
        read_history(tmp_path)
    with pytest.raises(Misconfigured) as in_parts:
        opened(tmp_path, 1)
    assert str(in_parts.value) == str(whole.value)


@pytest.mark.parametrize("case", [case for case in WRONG_OUTCOMES if case != "an unknown label"])
def test_wrong_outcomes_are_refused_with_the_same_message_both_ways(case: str, tmp_path: Path) -> None:
    put(tmp_path, payments_table(), outcomes_table(**WRONG_OUTCOMES[case][0]))
    with pytest.raises(Misconfigured) as whole:
        read_history(tmp_path)
    with pytest.raises(Misconfigured) as in_parts:
        opened(tmp_path, 1)
    assert str(in_parts.value) == str(whole.value)


def test_an_invalid_label_is_refused(tmp_path: Path) -> None:
    put(tmp_path, payments_table(), outcomes_table(label=pa.array(["fraud", "genuine", "maybe"])))
    with pytest.raises(Misconfigured, match="label must be fraud or genuine, and 1 rows are not"):
        opened(tmp_path, 2)


@pytest.mark.parametrize("missing", ["payment_id", "card_id"])
def test_a_missing_column_is_named(missing: str, tmp_path: Path) -> None:
    put(tmp_path, payments_table().select([name for name in PAYMENT_COLUMNS if name != missing]), outcomes_table())
    with pytest.raises(Misconfigured, match=f"payments.parquet: column {missing} is missing"):
        opened(tmp_path)


def test_missing_files_and_files_that_are_no_parquet_are_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"payments\.parquet, which is not there"):
        opened(tmp_path)
    put(tmp_path, payments_table(), outcomes_table())
    (tmp_path / OUTCOMES_FILE).write_text("no table")
    with pytest.raises(Misconfigured, match=r"outcomes\.parquet cannot be read as Parquet"):
        opened(tmp_path)
