"""Rows come back in order without repeated ids, and in bounded memory."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.tables.ordered_rows import OrderedRows

NAMES = ("payment_id", "key", "@row", "@file", "@line")
PARTS = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2)), min_size=1, max_size=9), max_size=6
)


@settings(max_examples=20, deadline=None)
@given(PARTS)
def test_rows_come_back_in_order_and_the_first_of_an_id_stays(parts: list[list[tuple[str, int]]]) -> None:
    flat = [(name, key, row, 3, row + 2) for row, (name, key) in enumerate(pair for part in parts for pair in part)]
    schema = pa.schema(list(zip(NAMES, (pa.string(), *[pa.int64()] * 4), strict=True)))
    with tempfile.TemporaryDirectory() as folder, closing(OrderedRows(Path(folder), schema)) as rows:
        for start in range(0, len(flat), 5):
            rows.add(
                pa.Table.from_pylist([dict(zip(NAMES, one, strict=True)) for one in flat[start : start + 5]], schema)
            )
        rows.end()
        repeated = list(rows.repeated())
        found = [tuple(row.values()) for table in rows.sorted(NAMES, "key") for row in table.to_pylist()]
    firsts: dict[str, tuple[str, int, int, int, int]] = {}
    later = [one for one in flat if firsts.setdefault(one[0], one) is not one]
    assert repeated == [(row, file, line, firsts[name][1] == key) for name, key, row, file, line in later]
    assert found == sorted(firsts.values(), key=lambda one: one[1:3])


def test_rows_that_do_not_fit_into_memory_are_sorted_on_disk(tmp_path: Path) -> None:
    count = 1_000_000
    keys = np.random.default_rng(1).permutation(count)
    ids = pc.binary_join_element_wise("a payment with a long name ", pa.array(keys).cast(pa.string()), "")
    table = pa.table([ids, keys, np.arange(count), np.zeros(count, np.int64), np.arange(count)], NAMES)
    with closing(OrderedRows(tmp_path, table.schema, memory_mb=48)) as rows:
        for start in range(0, count, 1 << 16):
            rows.add(table.slice(start, 1 << 16))
        rows.add(table.slice(5, 1).set_column(2, "@row", pa.array([count])))
        rows.end()
        assert [one[0] for one in rows.repeated()] == [count]
        found = np.concatenate([part["key"].to_numpy() for part in rows.sorted(["payment_id", "key"], "key")])
    assert found.tolist() == list(range(count))
