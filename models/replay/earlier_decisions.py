"""Read scores and vectors of an earlier replay, so that another policy can be tried without computing features again.

How it works:

1. The file is the decisions.parquet of a replay of the same data with the same model.
2. `chunks` finds the window's first payment in the file by its id and reads on from there.
3. Ids and times must be equal to the history's, payment by payment, and the model version to the bundle's.
4. Policies with rules or segments and challengers with another model need vectors: the file must have been written
   with `--vectors`.

Example: a replay of 1 to 31 May took ten minutes. A second policy for 20 to 31 May reads the 12 days from its file in
seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.features.history.history import History
from paywarden.features.history.point_in_time import CHUNK_ROWS, Chunk
from paywarden.schemas import arrow_files
from paywarden.schemas.errors import Misconfigured

_COLUMNS = ("payment_id", "event_time_ms", "score", "model_version")


@dataclass(frozen=True)
class EarlierChunk:
    """A chunk of payments with their scores. The chunk's vectors have no columns if the file has no vectors."""

    chunk: Chunk
    score: NDArray[np.float64]


class EarlierDecisions:
    """The decisions of an earlier replay, checked against a history while they are read."""

    def __init__(self, path: Path, history: History, *, model_version: str, feature_count: int) -> None:
        """Raises Misconfigured when the file cannot be read or was not written by a replay."""
        self._path, self._history = path, history
        self._model_version, self._feature_count = model_version, feature_count
        self._file = _open(path)
        self.has_vectors = "vector" in self._file.schema_arrow.names

    def chunks(self, first: int, last: int) -> Iterator[EarlierChunk]:
        """Yields payments `first` to `last` (exclusive) of the history, in order.

        Raises Misconfigured if one of them is missing or was scored by another model.
        """
        columns = [*_COLUMNS, *(["vector"] if self.has_vectors else [])]
        row = first
        for batch in self._file.iter_batches(batch_size=CHUNK_ROWS, columns=columns):
            part = self._part_from(batch, row, last)
            if len(part):
                self._check(part, row)
                yield self._chunk(part, row)
                row += len(part)
        if row < last:
            raise self._not_of_this_data(row)

    def _part_from(self, batch: pa.RecordBatch, row: int, last: int) -> pa.RecordBatch:
        """Returns the rows of a batch from the history's `row` on, and none from `last` on."""
        if row >= last:
            return batch.slice(0, 0)
        start = pc.index(batch["payment_id"], self._history.payment_id[row].as_py()).as_py()
        return batch.slice(0, 0) if start < 0 else batch.slice(start, last - row)

    def _check(self, batch: pa.RecordBatch, row: int) -> None:
        ids = self._history.payment_id.slice(row, len(batch)).cast(pa.string())
        times = self._history.event_time_ms[row : row + len(batch)]
        if not batch["payment_id"].equals(ids) or not np.array_equal(batch["event_time_ms"].to_numpy(), times):
            raise self._not_of_this_data(row)
        for version in pc.unique(batch["model_version"]).to_pylist():
            if version != self._model_version:
                raise Misconfigured(
                    f"{self._path}: its scores are of model {version}, the bundle is {self._model_version}"
                )

    def _chunk(self, batch: pa.RecordBatch, row: int) -> EarlierChunk:
        score = batch["score"].to_numpy().copy()
        vectors = np.empty((len(batch), 0), dtype=np.float32)
        if self.has_vectors:
            column = batch["vector"]
            sizes = pc.binary_length(column)
            width = 4 * self._feature_count
            if column.null_count or not pc.all(pc.equal(sizes, width)).as_py():
                raise Misconfigured(f"{self._path}: wanted vectors of {self._feature_count} features")
            offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)[column.offset :]
            values = np.frombuffer(column.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[0] + len(batch) * width]
            vectors = np.ascontiguousarray(values).view(np.float32).reshape(len(batch), self._feature_count).copy()
        return EarlierChunk(Chunk(row, row + len(batch), vectors, 0), score)

    def _not_of_this_data(self, row: int) -> Misconfigured:
        return Misconfigured(
            f"{self._path}: wanted a decision about payment number {row} of the history, which is missing or not in "
            "its place: it is of other data or of another window"
        )


def time_range_ms(path: Path) -> tuple[int, int]:
    """Returns the times of the first and the last payment of a decisions.parquet, in milliseconds since the epoch.

    Raises Misconfigured as EarlierDecisions does.
    """
    times = _open(path).read(columns=["event_time_ms"])["event_time_ms"]
    return int(times[0].as_py()), int(times[-1].as_py())


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except arrow_files.UNREADABLE as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {(str(error).splitlines() or [''])[0]}") from error
    for name in _COLUMNS:
        if name not in file.schema_arrow.names:
            raise Misconfigured(f"{path}: column {name} is missing: wanted the decisions.parquet of a replay")
    if file.metadata.num_rows == 0:
        raise Misconfigured(f"{path} holds no decision")
    return file
