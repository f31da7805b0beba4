"""The seam between stages and engines: an engine moves and sorts rows, a stage computes with them.

    rows ─► exchange(order, work) ─► rows
             │   1. every row goes to the partition that its column `_bucket` names
             │   2. each partition is sorted
             └   3. `work.run` gets a partition's batches in order, and yields other batches

A stage is a `Work`: a value that can be pickled, with one function over batches of Arrow. It is the same code in every
engine, and gets the same rows in the same order. Therefore the results are the same to the bit, for any engine and any
number of partitions, if the order is total and nothing depends on where a partition ends. Works keep both rules:

- `order` tells any two rows of a partition apart, unless it does not matter which one comes first;
- a row's bucket follows from its content, never from chance, a row's position, or the number of a task. An engine may
  therefore run a partition again after a failure, on another machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.history.text_hashes import hashes_of
from paywarden.schemas.errors import Misconfigured

RowsT = TypeVar("RowsT")
Batches = Iterator[pa.RecordBatch]

BUCKET = "_bucket"
FILE, ROW = "_file", "_row"
"""Columns of `Engine.read`: the file that a row is of, and its number there. A table's rows have neither."""

BATCH_ROWS = 1 << 15
"""The most rows of a batch that an engine hands over: some megabytes, which is enough for compiled code to run long."""


Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Gets the name of a stage and its number of tasks. The context yields a function that takes further tasks done."""


@contextmanager
def no_progress(_stage: str, _tasks: int) -> Iterator[Callable[[int], object]]:
    """Show nothing."""
    yield lambda _count: None


def stage_name(work: Work) -> str:
    """Returns a stage's name for people: `joined outcomes` for JoinedOutcomes."""
    inner = getattr(work, "work", None) or getattr(work, "last", None) or work
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(inner).__name__).lower()


class Work(Protocol):
    """A stage: what it does with the batches of one partition."""

    @property
    def schema(self) -> pa.Schema:
        """Returns the schema of the batches that `run` yields."""
        ...

    def run(self, batches: Batches, part: int) -> Batches:
        """Yield batches. `part` is the partition's number; only works for `Engine.sort` may use it."""
        ...


class Engine(Protocol[RowsT]):
    """Moves and sorts rows. `partitions`: the number of partitions of an exchange."""

    partitions: int

    def read(self, path: str) -> tuple[RowsT, pa.Schema, tuple[str, ...]]:
        """Returns the rows of a Parquet file, a folder of such files or a table; their schema; the names of the files.

        The rows also have the columns FILE and ROW where they come from files. Raises Misconfigured.
        """
        ...

    def map(self, rows: RowsT, work: Work) -> RowsT:
        """Returns the rows that a work makes of some rows, batch by batch, in any order."""
        ...

    def exchange(self, rows: Sequence[RowsT], order: Sequence[str], work: Work) -> RowsT:
        """Returns the rows that a work makes of the partitions of some rows, which have one schema."""
        ...

    def sort(self, rows: RowsT, order: Sequence[str], work: Work) -> RowsT:
        """Returns rows in one order over all partitions, after a work; written once, so that all readers see the same.

        The partitions' numbers ascend along the order.
        """
        ...

    def tables(self, rows: RowsT) -> Iterator[pa.Table]:
        """Yield the rows here, those of an exchange partition after partition."""
        ...

    def split(self, rows: RowsT, path: str, written: Sequence[str], fetched: Sequence[str]) -> Iterator[pa.Table]:
        """Write some columns of an exchange's rows to a folder of Parquet files, and yield other columns here.

        The files' names are in the order of the partitions. The folder gets a file `_SUCCESS` when it is whole.
        """
        ...


def buckets_of(keys: pa.Array, count: int) -> pa.Array:
    """Returns the bucket of each key, an array of strings or bytes without nulls: a number below `count`."""
    return pa.array((hashes_of(keys) % np.uint64(count)).astype(np.int32))


def require_local(asked: Mapping[str, bool]) -> None:
    """Raises Misconfigured that names the first option that is asked for: an engine of partitions lacks them."""
    for name, is_asked in asked.items():
        if is_asked:
            raise Misconfigured(f"{name} works with --engine local alone")


def group_starts(*columns: pa.Array) -> NDArray[np.int64]:
    """Returns the rows at which a group of equal values begins; row 0 is the first."""
    begins = np.ones(len(columns[0]), dtype=np.bool_)
    changes = [pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)) for column in columns]
    begins[1:] = reduce(np.logical_or, (change.to_numpy(zero_copy_only=False) for change in changes))
    return np.flatnonzero(begins)


def values_of(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table as values of Python."""
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def packed(rows: NDArray[np.generic]) -> pa.Array:
    """Returns each row's bytes as an Arrow array, shape (rows,), without a Python object for each."""
    content = np.ascontiguousarray(rows)
    offsets = np.arange(len(content) + 1, dtype=np.int64) * (content.shape[1] * content.itemsize)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.binary(), len(content), buffers)


def unpacked_int64(column: pa.Array, width: int) -> NDArray[np.int64]:
    """Returns the rows of `packed` as numbers, shape (rows, width). Compiled code may write to them."""
    return np.frombuffer(_content_of(column, 8 * width), dtype=np.int64).reshape(len(column), width).copy()


def unpacked_float64(column: pa.Array, width: int) -> NDArray[np.float64]:
    """Returns the rows of `packed` as numbers, shape (rows, width)."""
    return np.frombuffer(_content_of(column, 8 * width), dtype=np.float64).reshape(len(column), width)


def unpacked_float32(column: pa.Array, width: int) -> NDArray[np.float32]:
    """Returns the rows of `packed` as numbers, shape (rows, width)."""
    return np.frombuffer(_content_of(column, 4 * width), dtype=np.float32).reshape(len(column), width)


def _content_of(column: pa.Array, size: int) -> memoryview:
    if len(column) == 0:
        return memoryview(b"")
    _, offsets, content = column.buffers()
    first = int(np.frombuffer(offsets, dtype=np.int32)[column.offset])
    return memoryview(content)[first : first + len(column) * size]


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Returns batches as one; there is at least one."""
    if len(batches) == 1:
        return batches[0]
    arrays = [pa.concat_arrays([batch.column(place) for batch in batches]) for place in range(batches[0].num_columns)]
    return pa.record_batch(arrays, schema=batches[0].schema)
