"""The engine of a Spark cluster: it sorts, shuffles and hands over batches; stages run in its Python workers.

    exchange    repartitionById by the rows' own bucket, sortWithinPartitions, mapInArrow
    sort        what goes in is written to Parquet first, then repartitionByRange over a total order, and written again

Why the results do not depend on the cluster: a row's partition follows from its content, and every order is total, so a
task that Spark repeats after a failure, or runs twice, gives the same rows. Spark's round-robin partitions would not
(SPARK-23207), and `monotonically_increasing_id` numbers rows by chance.

Every worker process checks that its package is the driver's, file by file, before it computes anything. One line says
which host has another one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, reduce
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from paywarden.features.dataflow.dataflow_engine import (
    BATCH_ROWS,
    BUCKET,
    FILE,
    ROW,
    Batches,
    Progress,
    Work,
    no_progress,
    stage_name,
)
from paywarden.schemas.errors import Misconfigured

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_FOREIGN = "paywarden-worker:"
_WATCHED_EVERY_S = 0.5
_COLLECTED_BYTES = 64 << 20
_SETTINGS = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(BATCH_ROWS),
    # Compiled code reads columns of strings with offsets of 32 bits.
    "spark.sql.execution.arrow.useLargeVarTypes": "false",
}


def open_session(master: str | None = None, settings: dict[str, str] | None = None) -> SparkSession:
    """Returns a session. Without a master it is that of spark-submit. Raises Misconfigured if there is none to have."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise Misconfigured("--engine spark needs the extra `spark`: pip install 'paywarden[spark]'") from error
    # Its lines about connections say nothing to a user.
    logging.getLogger("py4j").setLevel(logging.WARNING)
    # The driver's own Python is where the package is.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("paywarden")
    if master:
        builder = builder.master(master)
    for name, value in (_SETTINGS | (settings or {})).items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except PySparkException as error:
        raise Misconfigured(f"no Spark session at {master or 'the default master'}: {_first_line(error)}") from error


class SparkEngine:
    """An engine over a session. `folder` is any path that all of Spark can write: intermediate rows lie below it.

    A context manager: leaving removes them.
    """

    def __init__(
        self, session: SparkSession, folder: str, *, partitions: int, progress: Progress = no_progress
    ) -> None:
        self.partitions = partitions
        self._progress = progress
        self._session, self._count = session, 0
        self._folder = f"{folder.rstrip('/')}/.stages-{uuid.uuid4().hex}"

    def __enter__(self) -> SparkEngine:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        with one_line_errors():
            path = self._hadoop_path(self._folder)
            self._system(path).delete(path, True)

    def upload(self, files: Sequence[Path], folder: str) -> None:
        """Copy files of this machine to a folder on any path that Spark can write, over existing ones."""
        with one_line_errors():
            for file in files:
                source = self._hadoop_path(file.absolute().as_uri())
                target = self._hadoop_path(f"{folder.rstrip('/')}/{file.name}")
                # As Spark's tasks write. S3A's copyFromLocalFile waits for ever on servers without "100 Continue".
                copy = self._session.sparkContext._jvm.org.apache.hadoop.fs.FileUtil.copy
                copy(self._system(source), source, self._system(target), target, False, True, self._hadoop)

    @property
    def _hadoop(self) -> Any:
        return self._session.sparkContext._jsc.hadoopConfiguration()

    def _hadoop_path(self, path: str) -> Any:
        jvm: Any = self._session.sparkContext._jvm
        return jvm.org.apache.hadoop.fs.Path(path)

    def _system(self, path: Any) -> Any:
        return path.getFileSystem(self._hadoop)

    def read(self, path: str) -> tuple[DataFrame, pa.Schema, tuple[str, ...]]:
        """Returns a Parquet file, a folder of such files, or a table of the session's catalogues by its name."""
        from pyspark.sql import functions
        from pyspark.sql.pandas.types import to_arrow_schema

        with one_line_errors():
            if "/" not in path and self._session.catalog.tableExists(path):
                rows = self._session.table(path)
                return rows, to_arrow_schema(rows.schema), ()
            rows = self._session.read.parquet(path)
            schema = to_arrow_schema(rows.schema)
            files = tuple(sorted(map(_plain_path, rows.inputFiles())))
            place = {FILE: functions.col("_metadata.file_path"), ROW: functions.col("_metadata.row_index")}
            return (
                self._mapped(rows.select("*", *(one.alias(name) for name, one in place.items())), _PlainPaths(schema)),
                schema,
                files,
            )

    def map(self, rows: DataFrame, work: Work) -> DataFrame:
        return self._mapped(rows, work)

    def exchange(self, rows: Sequence[DataFrame], order: Sequence[str], work: Work) -> DataFrame:
        together = reduce(lambda one, other: one.unionByName(other), rows)
        sorted_rows = together.repartitionById(self.partitions, BUCKET).sortWithinPartitions(*order)
        return self._mapped(sorted_rows, work)

    def sort(self, rows: DataFrame, order: Sequence[str], work: Work) -> DataFrame:
        # Spark reads the rows twice: for the ranges' bounds, and to sort. Both must read the same file.
        kept = self._kept("rows to sort", rows)
        in_order = kept.repartitionByRange(self.partitions, *order).sortWithinPartitions(*order)
        return self._kept(stage_name(work), self._mapped(in_order, work))

    def tables(self, rows: DataFrame) -> Iterator[pa.Table]:
        with self._computed(self._mapped(rows, _Blobs())) as blobs:
            size = blobs.selectExpr("sum(length(blob))").first()
            # One job for all partitions, or one for each.
            is_small = size is None or (size[0] or 0) <= _COLLECTED_BYTES
            for row in blobs.collect() if is_small else blobs.toLocalIterator(prefetchPartitions=True):
                yield pa.ipc.open_stream(bytes(row[0])).read_all()

    def split(self, rows: DataFrame, path: str, written: Sequence[str], fetched: Sequence[str]) -> Iterator[pa.Table]:
        with self._computed(rows) as computed:
            self.write(computed.select(*written), path)
            yield from self.tables(computed.select(*fetched))

    @contextmanager
    def _computed(self, rows: DataFrame) -> Iterator[DataFrame]:
        """Compute rows once, all partitions beside each other, and keep them on the workers' disks meanwhile."""
        from pyspark import StorageLevel

        with one_line_errors():
            kept = rows.persist(StorageLevel.DISK_ONLY)
            try:
                with self._watched("partitions"):
                    kept.count()
                yield kept
            finally:
                kept.unpersist()

    def write(self, rows: DataFrame, path: str) -> None:
        """Write rows as a folder of Parquet files, in order of their names. A file `_SUCCESS` says that it is whole."""
        with one_line_errors():
            rows.write.mode("overwrite").parquet(path, compression="zstd")

    def _kept(self, stage: str, rows: DataFrame) -> DataFrame:
        """Write rows, and return them as they are read again."""
        self._count += 1
        path = f"{self._folder}/stage-{self._count}"
        with self._watched(stage):
            self.write(rows, path)
        return self._session.read.parquet(path)

    @contextmanager
    def _watched(self, stage: str) -> Iterator[None]:
        """Show the tasks of the jobs that are started inside."""
        over = Event()
        watcher = Thread(target=self._watch, args=(stage, over), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, stage: str, over: Event) -> None:
        """Show Spark's stages one after the other, until it is over: Spark plans the later ones as it goes."""
        tracker = self._session.sparkContext.statusTracker()
        while not over.wait(_WATCHED_EVERY_S):
            for number in sorted(tracker.getActiveStageIds())[:1]:
                info = tracker.getStageInfo(number)
                if info is None:
                    continue
                done = 0
                with self._progress(f"{stage}, stage {number}", info.numTasks) as advance:
                    while info is not None and number in tracker.getActiveStageIds() and not over.is_set():
                        advance(info.numCompletedTasks - done)
                        done = info.numCompletedTasks
                        over.wait(_WATCHED_EVERY_S)
                        info = tracker.getStageInfo(number)
                    advance((info.numTasks if info is not None else done) - done)

    def _mapped(self, rows: DataFrame, work: Work) -> DataFrame:
        from pyspark.sql.pandas.types import from_arrow_schema

        return rows.mapInArrow(_worker(pickle.dumps(work), package_digest()), from_arrow_schema(work.schema))


def _worker(payload: bytes, digest: str) -> Callable[[Iterable[pa.RecordBatch]], Batches]:
    """Returns what a worker runs. It is sent as code, not as a name: the worker may lack this package."""

    def run(batches: Iterable[pa.RecordBatch]) -> Batches:
        import pickle
        import socket

        try:
            from paywarden.features.dataflow.spark import package_digest, run_work
        except ImportError as error:
            raise RuntimeError(f"paywarden-worker: {socket.gethostname()} lacks the package: {error}") from None
        if package_digest() != digest:
            raise RuntimeError(f"paywarden-worker: {socket.gethostname()} has another version of the package")
        work = pickle.loads(payload)  # noqa: S301 - the driver of this job has sent it
        yield from run_work(work, batches)

    return run


def run_work(work: Work, batches: Iterable[pa.RecordBatch]) -> Batches:
    """Run a work in a task of Spark."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None, "a work runs in a task"
    return work.run((batch for batch in batches if len(batch)), context.partitionId())


@cache
def package_digest() -> str:
    """Returns the digest of the package's files that decide about results."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in ("features", "models", "schemas", "streams"):
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class _PlainPaths:
    """Gives the files of rows the names that `read` returns."""

    def __init__(self, columns: pa.Schema) -> None:
        self.schema = pa.schema([*columns, (FILE, pa.string()), (ROW, pa.int64())])

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in batches:
            encoded = batch[FILE].dictionary_encode()
            names = pa.array([_plain_path(path) for path in encoded.dictionary.to_pylist()], pa.string())
            arrays = [*batch.columns[:-2], names.take(encoded.indices), batch[ROW]]
            yield pa.record_batch(arrays, schema=self.schema)


class _Blobs:
    """Packs batches into values of one column, as `tables` fetches them."""

    schema = pa.schema([("blob", pa.binary())])

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in batches:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            yield pa.record_batch([pa.array([sink.getvalue().to_pybytes()], pa.binary())], schema=self.schema)


def _plain_path(path: str) -> str:
    return re.sub(r"^file:/+", "/", unquote(path))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors of Spark and of workers into Misconfigured with one line."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        raise Misconfigured(spark_problem(str(error))) from error


def spark_problem(text: str) -> str:
    """Returns the one line of a long error of Spark that says what is wrong."""
    for pattern in (
        # The line of the error itself: a traceback has its source, too.
        rf"RuntimeError: {_FOREIGN} (.*)",
        r"paywarden\.schemas\.errors\.\w+: (.*)",
        r"(Path does not exist: .*?)(?:\.? SQLSTATE.*)?$",
    ):
        found = re.search(pattern, text, re.MULTILINE)
        if found:
            return found[1].strip()
    found = re.search(
        r"reading file (\S+?)\.?\s.*?column `?\[?(\w+)\]?`?.*?[Ee]xpected[^:]*:? (\S+?),.*?: ?(\w+)", text, re.DOTALL
    )
    if found:
        return f"{_plain_path(found[1])}: column {found[2]} has another type than in the other files"
    return "Spark: " + (text.strip().splitlines() or ["no message"])[0]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
