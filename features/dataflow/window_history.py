"""A window's payments as a history here, for what an engine does not compute: measures, and the columns of a training.

    frauds before the window │ payments of the window, part by part │ frauds after it ─► payments.parquet ─► History

The frauds outside the window decide which frauds are the first of their card, merchant or device. The columns lie in
files, and have no declared fields: nothing here reads one.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.features.dataflow.dataflow_engine import Batches, RowsT
from paywarden.features.dataflow.events import (
    KIND,
    KNOWN_MS,
    LABEL,
    OUTCOME,
    OUTCOMES,
    PAYMENT,
    Places,
    known_labels,
)
from paywarden.features.dataflow.fold import Window
from paywarden.features.dataflow.vectors import Passage
from paywarden.features.history.history import ABOUT_LABELS, OUTCOME_COLUMNS, OUTCOMES_FILE, PAYMENTS_FILE, History
from paywarden.features.history.history_columns import MmapAllocator
from paywarden.features.history.mapped_history import open_history

_REQUIRED = ("payment_id", "event_time_ms", "amount_minor")
READ_COLUMNS = (
    *("card_id", "merchant_id", "device_id", "currency", "mcc", "country", "channel", "declined"),
    *ABOUT_LABELS,
)
"""The columns that are read here, where the payments have them, besides id, time and amount."""

_OUTCOME_TYPES = {
    "payment_id": pa.string(),
    "outcome_time_ms": pa.int64(),
    "label": pa.string(),
    "source": pa.string(),
}
NO_END = int(np.iinfo(np.int64).max)


def read_columns_of(columns: pa.Schema) -> list[str]:
    """Returns the columns of payments that are read here, besides id, time and amount."""
    return [name for name in READ_COLUMNS if name in columns.names]


@dataclass(frozen=True)
class OtherFrauds:
    """Takes from events the frauds outside a window, as known at a time."""

    columns: pa.Schema
    places: Places
    window: Window
    known_by_ms: int = NO_END

    @cached_property
    def schema(self) -> pa.Schema:
        names = (*_REQUIRED, *read_columns_of(self.columns))
        return pa.schema([("_place", pa.int64()), *((name, self.columns.field(name).type) for name in names)])

    def run(self, batches: Batches, _: int) -> Batches:
        wanted = self.window.places
        for batch in batches:
            place = self.places.of_events(batch)
            is_fraud = (batch[KIND].to_numpy() == PAYMENT) & (known_labels(batch[OUTCOMES], self.known_by_ms) == 1)
            rows = pa.array(np.flatnonzero(is_fraud & ((place < wanted.start) | (place >= wanted.stop))))
            arrays = [pa.array(place).take(rows), *(batch[name].take(rows) for name in self.schema.names[1:])]
            yield pa.record_batch(arrays, schema=self.schema)


@dataclass(frozen=True)
class GenuineDelays:
    """Takes from events how long after its payment each sampled outcome "genuine" became known.

    `every`: N, to sample every N-th outcome of those known at `known_by_ms`.
    """

    places: Places
    every: int
    known_by_ms: int = NO_END
    schema = pa.schema([("delay_ms", pa.int64())])

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in batches:
            known_ms = batch[KNOWN_MS].to_numpy()
            is_genuine = (batch[KIND].to_numpy() == OUTCOME) & (batch[LABEL].to_numpy() == 0)
            is_sampled = (self.places.of_outcomes(batch) % self.every == 0) & (known_ms <= self.known_by_ms)
            rows = np.flatnonzero(is_genuine & is_sampled)
            yield pa.record_batch([pa.array(known_ms[rows] - batch["event_time_ms"].to_numpy()[rows])], self.schema)


class WindowHistory:
    """The payments of a window, and the frauds outside it, as they arrive."""

    def __init__(
        self, passage: Passage[RowsT], folder: Path, room: MmapAllocator, frauds: OtherFrauds, files: ExitStack
    ) -> None:
        """The files lie in `folder`. `files` closes them."""
        engine = passage.engine
        tables = engine.tables(engine.map(passage.events, frauds))
        found = pa.concat_tables([frauds.schema.empty_table(), *tables]).sort_by("_place")
        is_before = found["_place"].to_numpy() < frauds.window.places.start
        before, self._after = (_columns_of(found.filter(pa.array(flags))) for flags in (is_before, ~is_before))
        self._folder, self._room = folder, room
        self.frauds, self.rows = len(found), slice(len(before), len(before))
        self._writer = files.enter_context(pq.ParquetWriter(folder / PAYMENTS_FILE, before.schema))
        self._writer.write_table(before)

    def add(self, payments: pa.Table) -> slice:
        """Take further payments of the window, which has these columns among others; returns their rows."""
        first = self.rows.stop
        self.rows = slice(self.rows.start, first + len(payments))
        self._writer.write_table(_columns_of(payments).cast(self._after.schema))
        return slice(first, self.rows.stop)

    def whole(self) -> History:
        """Returns all as a history without outcomes, once all payments of the window are there."""
        self._writer.write_table(self._after)
        self._writer.close()
        no_outcome = pa.table({name: pa.array([], _OUTCOME_TYPES[name]) for name in OUTCOME_COLUMNS})
        pq.write_table(no_outcome, self._folder / OUTCOMES_FILE)
        return open_history(self._folder, self._room)


def with_outcomes(
    history: History, row: NDArray[np.int64], time_ms: NDArray[np.int64], fraud: NDArray[np.bool_]
) -> History:
    """Returns a history with outcomes, which may come in any order but for those of one payment."""
    order = np.argsort(time_ms, kind="stable")
    return replace(history, outcome_payment=row[order], outcome_time_ms=time_ms[order], outcome_fraud=fraud[order])


def _columns_of(table: pa.Table) -> pa.Table:
    """Returns the columns that a history here has. A column's name may begin with a line."""
    names = (*_REQUIRED, *READ_COLUMNS)
    columns = {name: table[one] for name in names for one in (name, f"_{name}") if one in table.column_names}
    return pa.table(columns | {"ip": pa.nulls(len(table), pa.string())})
