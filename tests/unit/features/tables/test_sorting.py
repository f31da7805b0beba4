"""Rows come back in order, however many runs and intervals they lie in."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.tables.fields import ROW
from paywarden.features.tables.sorting import Sorter, SortSizes

# Few keys, so that intervals begin within rows of one key.
KEYS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), max_size=12)


@settings(max_examples=60, deadline=None)
@given(KEYS, st.integers(1, 12), st.integers(1, 8), st.integers(1, 4))
def test_rows_come_back_in_order_of_key_and_row(parts: list[list[int]], run: int, interval: int, batch: int) -> None:
    pairs, number = [], 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        sorter = Sorter(Path(folder), "rows", "key", pool, SortSizes(run, interval, batch))
        for keys in parts:
            rows = list(range(number, number + len(keys)))
            sorter.add(pa.table({"key": pa.array(keys, pa.int64()), ROW: pa.array(rows, pa.int64())}))
            pairs += list(zip(keys, rows, strict=True))
            number += len(keys)
        tables = list(sorter.sorted())
    found = [(row["key"], row[ROW]) for table in tables for row in table.to_pylist()]
    assert found == sorted(pairs)
    # No table is much larger than an interval: of each run one batch more, at most.
    runs = -(-number // run) if number else 0
    assert max(map(len, tables), default=0) <= max(interval, batch) + batch * (runs + 1)
