"""Sorts rows by time when they do not fit into memory.

    rows as they come ─ a million at a time, sorted ─► runs: Arrow files of small batches
                                                       └ in memory: the first key of each batch
    the batches' first keys ─► intervals of time with half a million rows each
    each interval: its batches of every run ─► one table, sorted

No more than a run, or a few intervals, is in memory, however many rows there are and in whatever order. A run that was
sorted already, and an interval that comes from one run, are not sorted again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import pairwise
from pathlib import Path
from threading import local
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.tables.fields import ROW

_Key = tuple[int, int]
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class SortSizes(NamedTuple):
    """Rows of a run, of an interval, and of a batch of a run's file."""

    run: int = 1 << 20
    interval: int = 1 << 19
    batch: int = 1 << 11


DEFAULT_SIZES = SortSizes()


class _Run(NamedTuple):
    path: Path
    firsts: list[_Key]


class Sorter:
    """Takes tables, and gives their rows back in the order of a column of whole numbers, then of ROW."""

    def __init__(self, folder: Path, name: str, key: str, pool: Executor, sizes: SortSizes = DEFAULT_SIZES) -> None:
        """Runs lie in `folder`, and their names begin with `name`. They are written in `pool`."""
        self._folder, self._name, self._key, self._pool, self._sizes = folder, name, key, pool, sizes
        self._tables: list[pa.Table] = []
        self._rows, self._run_count = 0, 0
        self._writing: deque[Future[_Run]] = deque()
        self._runs: list[_Run] = []
        self._open = local()

    def add(self, table: pa.Table) -> None:
        """Take some rows. Raises OSError if the disk has no room."""
        self._tables.append(table)
        self._rows += len(table)
        if self._rows >= self._sizes.run:
            self._end_run()

    def sorted(self) -> Iterator[pa.Table]:
        """Yield all rows in order, in tables of about an interval. Call it once, after the last `add`."""
        if self._rows:
            self._end_run()
        while self._writing:
            self._runs.append(self._writing.popleft().result())
        firsts = sorted(key for run in self._runs for key in run.firsts)
        step = max(1, self._sizes.interval // self._sizes.batch)
        bounds: list[_Key | None] = [*firsts[::step], None]
        intervals = [(low, high) for low, high in pairwise(bounds) if low is not None]
        yield from in_order(self._pool, self._interval, intervals, window=2)

    def _end_run(self) -> None:
        # One run may be written while the next one is gathered.
        while len(self._writing) > 1:
            self._runs.append(self._writing.popleft().result())
        path = self._folder / f"{self._name}-{self._run_count}.arrow"
        self._writing.append(self._pool.submit(self._write, path, self._tables))
        self._tables, self._rows, self._run_count = [], 0, self._run_count + 1

    def _write(self, path: Path, tables: list[pa.Table]) -> _Run:
        table = pa.concat_tables(tables)
        tables.clear()
        table = self._in_order(table)
        keys, rows = _integers(table, self._key), _integers(table, ROW)
        starts = range(0, len(table), self._sizes.batch)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
            # Chunks of the table and batches of the file must end together.
            for start in starts:
                part = table.slice(start, self._sizes.batch).combine_chunks()
                writer.write_table(part, max_chunksize=self._sizes.batch)
        return _Run(path, [(int(keys[start]), int(rows[start])) for start in starts])

    def _interval(self, bounds: tuple[_Key, _Key | None]) -> pa.Table:
        low, high = bounds
        parts = [part for number in range(len(self._runs)) if len(part := self._of_run(number, low, high))]
        table = pa.concat_tables(parts)
        return table if len(parts) == 1 else self._in_order(table)

    def _of_run(self, number: int, low: _Key, high: _Key | None) -> pa.Table:
        """Returns the rows of a run from key `low` on, and before `high`."""
        run = self._runs[number]
        first = max(0, bisect_right(run.firsts, low) - 1)
        last = len(run.firsts) if high is None else bisect_left(run.firsts, high)
        reader = self._reader(number)
        table = pa.Table.from_batches([reader.get_batch(place) for place in range(first, last)], reader.schema)
        if len(table) == 0:
            return table
        keys, rows = _integers(table, self._key), _integers(table, ROW)
        start = _position(keys, rows, low)
        end = len(table) if high is None else _position(keys, rows, high)
        return table.slice(start, end - start)

    def _reader(self, number: int) -> Any:
        """Returns the run's reader of this thread: a reader is not for two."""
        readers = self._open.__dict__.setdefault("readers", {})
        if number not in readers:
            readers[number] = pa.ipc.open_file(pa.OSFile(str(self._runs[number].path)))
        return readers[number]

    def _in_order(self, table: pa.Table) -> pa.Table:
        keys, rows = _integers(table, self._key), _integers(table, ROW)
        later = keys[1:] - keys[:-1]
        if not bool(((later < 0) | ((later == 0) & (rows[1:] < rows[:-1]))).any()):
            return table
        return table.combine_chunks().take(pa.array(np.lexsort((rows, keys))))


def in_order(
    pool: Executor, make: Callable[[_Given], _Made], given: Iterable[_Given], *, window: int
) -> Iterator[_Made]:
    """Yield make(each) in order. At most `window` are under way or wait in memory."""
    waiting: deque[Future[_Made]] = deque()
    try:
        for each in given:
            waiting.append(pool.submit(make, each))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _integers(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(table[name].to_numpy(), dtype=np.int64)


def _position(keys: NDArray[np.int64], rows: NDArray[np.int64], key: _Key) -> int:
    """Returns how many of the sorted rows come before a key."""
    first, end = np.searchsorted(keys, key[0], side="left"), np.searchsorted(keys, key[0], side="right")
    return int(first + np.searchsorted(rows[first:end], key[1]))
