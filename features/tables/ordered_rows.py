"""Converted rows on disk, which DuckDB brings into order of time, without the rows whose id an earlier row has.

    rows as they come ─ add ─► rows.parquet in a folder of unfinished work
                      ─ repeated ─► rows with the id of an earlier one; these are dropped
                      ─ payments, outcomes ─► the other rows, sorted

DuckDB's buffers have a limit. What does not fit there lies in files of the same folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

# Enough for four threads to sort, and far less than the memory of a small machine.
DEFAULT_MEMORY_MB = 512
_BATCH_ROWS = 1 << 17
_SHARED = """
CREATE VIEW found AS SELECT * FROM read_parquet('{file}');
CREATE TABLE dropped ("@row" BIGINT);
CREATE VIEW kept AS SELECT * FROM found ANTI JOIN dropped USING ("@row");
"""
# Two rows are equal if all their values but row, file and line are. Few hashes come twice, so few ids are sorted.
_REPEATED = """
SELECT "@row", "@file", "@line", content = first_content AS is_same FROM (
    SELECT "@row", "@file", "@line", hash({values}) AS content, first_value(content) OVER ids AS first_content,
        row_number() OVER ids AS place
    FROM found SEMI JOIN (SELECT hash(payment_id) AS twice FROM found GROUP BY twice HAVING count(*) > 1)
        ON hash(payment_id) = twice
    WINDOW ids AS (PARTITION BY payment_id ORDER BY "@row"))
WHERE place > 1 ORDER BY "@row"
"""
_SORTED = 'SELECT {columns} FROM kept WHERE {chosen} ORDER BY {key}, "@row"'


class Repeated(NamedTuple):
    """A row with the id of an earlier one. `is_same`: all its other values are those of the earlier row."""

    row: int
    file: int
    line: int
    is_same: bool


class OrderedRows:
    """Takes rows with the columns "@row", "@file" and "@line", and gives them back in order."""

    def __init__(self, folder: Path, schema: pa.Schema, *, memory_mb: int = DEFAULT_MEMORY_MB) -> None:
        """Files lie in `folder`. Raises OSError and duckdb.Error, here and below, if the disk has no room."""
        self._path, self._schema = folder / "rows.parquet", schema
        self._writer = pq.ParquetWriter(self._path, schema, compression="lz4", use_dictionary=False)
        self._database = duckdb.connect(
            config={
                "memory_limit": f"{memory_mb}MB",
                "temp_directory": str(folder),
                # Each thread takes a part of the memory.
                "threads": min(4, len(os.sched_getaffinity(0))),
                "preserve_insertion_order": False,
                "autoinstall_known_extensions": False,
            }
        )

    def add(self, table: pa.Table) -> None:
        """Take some rows."""
        self._writer.write_table(table)

    def end(self) -> None:
        """Call this after the last `add`, before anything is asked."""
        self._writer.close()
        self._database.execute(_SHARED.format(file=str(self._path).replace("'", "''")))

    def repeated(self) -> Iterator[Repeated]:
        """Yield the rows whose id an earlier row has, in order, and drop them."""
        values = [name for name in self._schema.names if name not in ("@row", "@file", "@line")]
        query = _REPEATED.format(values=_listed(values))
        self._database.execute(f'CREATE TABLE repeated AS {query}; INSERT INTO dropped SELECT "@row" FROM repeated')
        for table in self._tables('FROM repeated ORDER BY "@row"'):
            yield from map(Repeated._make, zip(*(column.to_pylist() for column in table.columns), strict=True))

    def sorted(self, columns: Sequence[str], key: str, chosen: str = "true") -> Iterator[pa.Table]:
        """Yield the columns of all rows that are `chosen`, a condition, in the order of `key`, then of "@row"."""
        kept = pa.schema([self._schema.field(name) for name in columns])
        for table in self._tables(_SORTED.format(columns=_listed(columns), chosen=chosen, key=key)):
            yield table.cast(kept)

    def _tables(self, query: str) -> Iterator[pa.Table]:
        for batch in self._database.sql(query).to_arrow_reader(_BATCH_ROWS):
            if len(batch):
                yield pa.Table.from_batches([batch])

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
        self._database.close()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
