"""The engine of one machine: processes and spill files, for histories larger than memory.

    exchange    1. each part of the input is computed, sorted by bucket and order, and written as runs: files of Arrow
                2. a partition is all runs' batches of one bucket; they are merged while a work reads them
    sort        the same with one bucket; the result is written as Parquet

Memory: a process holds at most one run (`spill_bytes`) while it writes, and one batch of each run while it merges.
Disk: the runs, compressed with LZ4, until the engine is closed.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import uuid
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paywarden.features.dataflow.dataflow_engine import (
    BATCH_ROWS,
    BUCKET,
    FILE,
    ROW,
    Batches,
    Progress,
    Work,
    joined,
    no_progress,
    stage_name,
)
from paywarden.features.history.history import first_line
from paywarden.schemas import arrow_files
from paywarden.schemas.errors import Misconfigured

_SORTED_FILE_ROWS = 1 << 20
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")


class Part(Protocol):
    """A part of the rows, which any process can read."""

    def batches(self) -> Batches: ...


@dataclass(frozen=True)
class ParquetPart:
    """Row groups of a file. `name`: where they come from; empty for a file of the engine."""

    path: str
    groups: tuple[int, ...]
    first_row: int
    name: str
    batch_rows: int

    def batches(self) -> Batches:
        row = self.first_row
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=self.batch_rows, row_groups=list(self.groups)):
                    if len(batch) and self.name:
                        names = pa.array([self.name], pa.string()).take(pa.array(np.zeros(len(batch), dtype=np.int32)))
                        rows = pa.array(np.arange(row, row + len(batch)))
                        batch = pa.record_batch([*batch.columns, names, rows], [*batch.schema.names, FILE, ROW])
                        row += len(batch)
                    if len(batch):
                        yield batch
        except arrow_files.UNREADABLE as error:
            raise Misconfigured(f"{self.path} cannot be read as Parquet: {first_line(error)}") from error


class Run(NamedTuple):
    """A sorted run: for each bucket, the numbers of its batches in a file."""

    path: str
    batches_of: dict[int, range]


@dataclass(frozen=True)
class MergedPart:
    """A partition: the batches of one bucket in each run, merged."""

    bucket: int
    runs: tuple[Run, ...]
    order: tuple[str, ...]
    batch_rows: int

    def batches(self) -> Batches:
        streams = [_read_run(run, self.bucket) for run in self.runs]
        heads = {number: next(stream) for number, stream in enumerate(streams)}
        while len(heads) > 1:
            # No run has another row before the least of the runs' last ones.
            cut = min(self._key(head, len(head) - 1) for head in heads.values())
            taken = []
            for number, head in list(heads.items()):
                count = bisect_right(range(len(head)), cut, key=partial(self._key, head))
                taken.append(head.slice(0, count))
                if count < len(head):
                    heads[number] = head.slice(count)
                elif (following := next(streams[number], None)) is not None:
                    heads[number] = following
                else:
                    del heads[number]
            yield from sorted_batches([part for part in taken if len(part)], self.order, self.batch_rows)
        for number, head in heads.items():
            yield head
            yield from streams[number]

    def _key(self, batch: pa.RecordBatch, row: int) -> tuple[Any, ...]:
        return tuple(batch[name][row].as_py() for name in self.order)


def _read_run(run: Run, bucket: int) -> Batches:
    with pa.memory_map(run.path) as source:
        file = pa.ipc.open_file(source)
        for number in run.batches_of[bucket]:
            yield file.get_batch(number)


def sorted_batches(batches: Sequence[pa.RecordBatch], order: Sequence[str], batch_rows: int) -> Batches:
    """Yield the rows of batches in an order, in batches of at most `batch_rows`."""
    whole = joined(batches)
    places = pc.sort_indices(whole, sort_keys=[(name, "ascending") for name in order])
    for start in range(0, len(whole), batch_rows):
        yield whole.take(places.slice(start, batch_rows))


@dataclass(frozen=True)
class LocalRows:
    """Rows that are computed when they are read: parts, and the works that each goes through."""

    parts: tuple[Part, ...]
    works: tuple[Work, ...] = ()

    def batches_of(self, part: int) -> Batches:
        """Yield the rows of a part."""
        batches = self.parts[part].batches()
        for work in self.works:
            batches = work.run(batches, part)
        return (batch for batch in batches if len(batch))


class ProcessEngine:
    """An engine of `processes` processes. A context manager: leaving removes its files, which lie in `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        partitions: int = 64,
        processes: int = 1,
        spill_bytes: int = 256 << 20,
        batch_rows: int = BATCH_ROWS,
        progress: Progress = no_progress,
    ) -> None:
        self.partitions = partitions
        self._progress = progress
        self._spill_bytes, self._batch_rows = spill_bytes, batch_rows
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".stages-", dir=folder))
        except OSError as error:
            raise Misconfigured(f"cannot write to {folder}: {error.strerror}") from error
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn")) if processes > 1 else None

    def __enter__(self) -> ProcessEngine:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def read(self, path: str) -> tuple[LocalRows, pa.Schema, tuple[str, ...]]:
        """Returns a Parquet file, or a folder of such files in order of their names."""
        where = Path(path)
        files = sorted(where.glob("*.parquet")) if where.is_dir() else [where]
        if not files or not files[0].is_file():
            raise Misconfigured(f"a history needs the file {path}, which is not there")
        parts: list[ParquetPart] = []
        schemas = []
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    schema, metadata = opened.schema_arrow, opened.metadata
            except arrow_files.UNREADABLE as error:
                raise Misconfigured(f"{file} cannot be read as Parquet: {first_line(error)}") from error
            schemas.append(schema)
            row = 0
            for group in range(metadata.num_row_groups):
                parts.append(ParquetPart(str(file), (group,), row, str(file), self._batch_rows))
                row += metadata.row_group(group).num_rows
        return LocalRows(tuple(parts)), schemas[0], tuple(map(str, files))

    def map(self, rows: LocalRows, work: Work) -> LocalRows:
        return LocalRows(rows.parts, (*rows.works, work))

    def exchange(self, rows: Sequence[LocalRows], order: Sequence[str], work: Work) -> LocalRows:
        runs = self._runs(rows, order)
        parts = []
        for bucket in range(self.partitions):
            with_rows = tuple(run for run in runs if bucket in run.batches_of)
            parts.append(MergedPart(bucket, with_rows, tuple(order), self._batch_rows))
        return LocalRows(tuple(parts), (work,))

    def sort(self, rows: LocalRows, order: Sequence[str], work: Work) -> LocalRows:
        runs = self._runs([self.map(rows, _OneBucket(rows.works[-1].schema))], order)
        merged = LocalRows((MergedPart(0, tuple(runs), tuple(order), self._batch_rows),), (work,))
        files: list[Path] = []
        writer, count = None, 0
        for batch in merged.batches_of(0):
            if writer is None or count >= _SORTED_FILE_ROWS:
                if writer is not None:
                    writer.close()
                files.append(self._folder / f"sorted-{len(files):06d}-{uuid.uuid4().hex}.parquet")
                writer, count = pq.ParquetWriter(files[-1], work.schema, compression="zstd"), 0
            writer.write_batch(batch)
            count += len(batch)
        if writer is not None:
            writer.close()
        groups = [(file, range(pq.read_metadata(file).num_row_groups)) for file in files]
        return LocalRows(
            tuple(ParquetPart(str(file), tuple(numbers), 0, "", self._batch_rows) for file, numbers in groups)
        )

    def tables(self, rows: LocalRows) -> Iterator[pa.Table]:
        tasks = [partial(_write_part, rows, part, self._folder) for part in range(len(rows.parts))]
        yield from self._fetched(_name_of(rows), tasks)

    def split(self, rows: LocalRows, path: str, written: Sequence[str], fetched: Sequence[str]) -> Iterator[pa.Table]:
        unfinished = Path(f"{path}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        both = [
            partial(_write_part, rows, part, self._folder, fetched, (unfinished / f"part-{part:06d}.parquet", written))
            for part in range(len(rows.parts))
        ]
        yield from self._fetched(_name_of(rows), both)
        (unfinished / "_SUCCESS").touch()
        if Path(path).is_dir():
            shutil.rmtree(path)
        Path(path).unlink(missing_ok=True)
        unfinished.replace(path)

    def _fetched(self, stage: str, tasks: Sequence[Any]) -> Iterator[pa.Table]:
        for path in self._each(stage, tasks):
            if path:
                with pa.memory_map(path) as source:
                    yield pa.ipc.open_file(source).read_all()
                Path(path).unlink()

    def _runs(self, rows: Sequence[LocalRows], order: Sequence[str]) -> list[Run]:
        whole = (BUCKET, *order)
        tasks = [
            partial(_spill, one, part, whole, self._folder, self._spill_bytes, self._batch_rows)
            for one in rows
            for part in range(len(one.parts))
        ]
        return [run for runs in self._each(" and ".join(dict.fromkeys(map(_name_of, rows))), tasks) for run in runs]

    def _each(self, stage: str, tasks: Sequence[Any]) -> Iterator[Any]:
        with self._progress(stage, len(tasks)) as advance:
            for result in map(_call, tasks) if self._pool is None else self._pool.map(_call, tasks):
                advance(1)
                yield result


def _name_of(rows: LocalRows) -> str:
    return stage_name([work for work in rows.works if not isinstance(work, _OneBucket)][-1])


def _call(task: Any) -> Any:
    return task()


@dataclass(frozen=True)
class _OneBucket:
    """Puts all rows into one bucket, for a sort."""

    columns: pa.Schema

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*self.columns, (BUCKET, pa.int32())])

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in batches:
            bucket = pa.array(np.zeros(len(batch), dtype=np.int32))
            yield pa.record_batch([*batch.columns, bucket], schema=self.schema)


def _spill(
    rows: LocalRows, part: int, order: Sequence[str], folder: Path, spill_bytes: int, batch_rows: int
) -> list[Run]:
    """Write a part as sorted runs."""
    runs: list[Run] = []
    kept: list[pa.RecordBatch] = []
    size = 0
    for batch in rows.batches_of(part):
        kept.append(batch)
        size += batch.get_total_buffer_size()
        if size >= spill_bytes:
            runs.append(_write_run(kept, order, folder, batch_rows))
            kept, size = [], 0
    if kept:
        runs.append(_write_run(kept, order, folder, batch_rows))
    return runs


def _write_run(batches: Sequence[pa.RecordBatch], order: Sequence[str], folder: Path, batch_rows: int) -> Run:
    path, written = str(folder / f"run-{uuid.uuid4().hex}.arrow"), 0
    batches_of: dict[int, range] = {}
    with pa.OSFile(path, "wb") as target, pa.ipc.new_file(target, batches[0].schema, options=_LZ4) as file:
        for batch in sorted_batches(batches, order, batch_rows):
            bucket = batch[BUCKET].to_numpy()
            cuts = [0, *(np.flatnonzero(np.diff(bucket)) + 1).tolist(), len(batch)]
            for start, end in itertools.pairwise(cuts):
                number = int(bucket[start])
                file.write_batch(batch.slice(start, end - start))
                batches_of[number] = range(batches_of.get(number, range(written, written)).start, written + 1)
                written += 1
    return Run(path, batches_of)


def _write_part(
    rows: LocalRows,
    part: int,
    folder: Path,
    fetched: Sequence[str] | None = None,
    written: tuple[Path, Sequence[str]] | None = None,
) -> str:
    """Write a part's rows to a file, some columns to a Parquet file; returns the first path, empty without rows."""
    batches = rows.batches_of(part)
    first = next(batches, None)
    if first is None:
        return ""
    path = str(folder / f"part-{uuid.uuid4().hex}.arrow")
    names = list(fetched or first.schema.names)
    with ExitStack() as files:
        target = files.enter_context(pa.OSFile(path, "wb"))
        file = files.enter_context(pa.ipc.new_file(target, first.select(names).schema))
        parquet = None
        if written is not None:
            parquet = files.enter_context(
                pq.ParquetWriter(written[0], first.select(written[1]).schema, compression="zstd")
            )
        for batch in itertools.chain([first], batches):
            file.write_batch(batch.select(names))
            if parquet is not None and written is not None:
                parquet.write_batch(batch.select(written[1]))
    return path
