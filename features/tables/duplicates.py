"""Payment ids that a table uses twice, found when the ids do not fit into memory.

    a row ─► 94 bits of hash of its id, 32 of its other values ─► one of 64 files, by the hash
    a file at a time, sorted: rows with one hash are rows with one id; the first row of the table stays

Among a billion ids, two different ones have the same 94 bits with a chance of 1 to 40 billion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.tables.fields import ROW
from paywarden.features.tables.labels import hashes_of

_FILES = 64
_RECORD = np.dtype([("hash", "<i8"), ("rest", "<i4"), ("content", "<i4"), ("row", "<i8")])
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Repeated(NamedTuple):
    """A row with the id of an earlier one. `is_same`: all its other values are those of the earlier row."""

    row: int
    first_row: int
    is_same: bool


class IdRecords(NamedTuple):
    """The records of some rows' ids, and the file that each belongs to."""

    records: NDArray[np.void]
    file_of: NDArray[np.int64]


def id_records(payments: pa.Table) -> IdRecords:
    """Returns the records of some payments, in order of their files. It may run in any thread."""
    ids = payments["payment_id"].combine_chunks()
    ids = pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids
    hashes = hashes_of(ids, 11, 0)
    records = np.empty(len(payments), dtype=_RECORD)
    records["hash"], records["rest"] = hashes, hashes_of(ids, 12, 0).astype(np.int32)
    records["content"] = _contents(payments).astype(np.uint32).view(np.int32)
    records["row"] = payments[ROW].to_numpy()
    files = (hashes.view(np.uint64) >> np.uint64(17)).astype(np.int64) % _FILES
    order = np.argsort(files, kind="stable")
    return IdRecords(records[order], files[order])


class IdFiles:
    """The records of all ids, in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / f"ids-{number}" for number in range(_FILES)]
        self._open = ExitStack()
        self._files = [self._open.enter_context(path.open("wb")) for path in self._paths]

    def add(self, kept: IdRecords) -> None:
        """Add records. Rows must come in ascending order. Raises OSError if the disk has no room."""
        bounds = np.searchsorted(kept.file_of, np.arange(_FILES + 1))
        for number, file in enumerate(self._files):
            file.write(kept.records[bounds[number] : bounds[number + 1]].tobytes())

    def repeated(self) -> Iterator[list[Repeated]]:
        """Yield the repeated rows of each file. Call it once, after the last `add`."""
        self._open.close()
        for path in self._paths:
            records = np.fromfile(path, dtype=_RECORD)
            path.unlink()
            yield _repeated(records)

    def close(self) -> None:
        """Close the files."""
        self._open.close()


def _repeated(records: NDArray[np.void]) -> list[Repeated]:
    # Stable: rows of one hash stay in order.
    records = records[np.argsort(records["hash"], kind="stable")]
    hashes = records["hash"]
    is_next = hashes[1:] == hashes[:-1]
    if not is_next.any():
        return []
    first: dict[tuple[int, int], tuple[int, int]] = {}
    found = []
    suspects = records[np.append(is_next, False) | np.append(False, is_next)]
    for number, rest, content, row in suspects.tolist():
        first_content, first_row = first.setdefault((number, rest), (content, row))
        if first_row != row:
            found.append(Repeated(row, first_row, content == first_content))
    return found


def _contents(payments: pa.Table) -> NDArray[np.uint64]:
    """Returns a hash of all other values of each row."""
    whole = np.zeros(len(payments), dtype=np.uint64)
    for name in payments.column_names:
        if name in ("payment_id", ROW):
            continue
        column = payments[name].combine_chunks()
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_string(column.type):
            values = hashes_of(column, 13, 0).view(np.uint64)
        elif pa.types.is_floating(column.type):
            values = np.ascontiguousarray(column.fill_null(np.nan).to_numpy(zero_copy_only=False)).view(np.uint64)
        else:
            values = column.cast(pa.int64()).fill_null(-(2**62)).to_numpy(zero_copy_only=False).view(np.uint64)
        whole = (whole ^ values) * _ODD
        whole ^= whole >> np.uint64(29)
    return whole & np.uint64(0xFFFFFFFF)


class RowSet:
    """A set of row numbers, a bit each."""

    def __init__(self, count: int) -> None:
        self._bits = np.zeros((count + 7) // 8, dtype=np.uint8)
        self._is_empty = True

    def add(self, row: int) -> None:
        """Add a row."""
        self._bits[row >> 3] |= 1 << (row & 7)
        self._is_empty = False

    def without(self, table: pa.Table) -> pa.Table:
        """Returns the rows of a table that are not in the set."""
        if self._is_empty:
            return table
        rows = table[ROW].to_numpy()
        is_in = (self._bits[rows >> 3] >> (rows & 7)) & 1
        return table.filter(pa.array(is_in == 0)) if is_in.any() else table
