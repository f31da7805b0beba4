"""The rows that a model is trained on, from an engine of partitions, which makes their vectors; a file keeps them here.

    events ─ kinds of labels, counted ─► which payments keep a label, and the share that fits memory
           ─ chosen payments only ─ fold ─ zip ─► vectors, in a file; other columns as a history ─► TrainingTable

With the same share, the table has the bits of the table of `training_table` in memory. Trees read the vectors
from the file part by part, so that memory holds their bins alone.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.dataflow.column_files import MmapAllocator
from paywarden.features.dataflow.dataflow_engine import Batches, RowsT, packed, unpacked_float32
from paywarden.features.dataflow.events import KIND, KNOWN_MS, OUTCOME, OUTCOMES, PAYMENT, Places, known_labels
from paywarden.features.dataflow.events import outcomes_of as unpacked_outcomes
from paywarden.features.dataflow.fold import Window
from paywarden.features.dataflow.vectors import Passage, ZippedPayments
from paywarden.features.dataflow.window_history import (
    GenuineDelays,
    OtherFrauds,
    WindowHistory,
    read_columns_of,
    with_outcomes,
)
from paywarden.features.history.history import NEVER_LABELLED
from paywarden.models.metrics.evaluation import DAY_MS, Days, date_of_day
from paywarden.models.metrics.labels import KINDS, kept_kinds, label_kinds, mature_of_delays, sampled_every
from paywarden.models.training.memory import fitting_share
from paywarden.models.training.sampling import GenuineSample, whole_days_from
from paywarden.models.training.table import (
    LabelRules,
    TrainingTable,
    WindowLabels,
    none_known,
    outcomes_until_ms,
    table_of,
)
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class LabelKinds:
    """Says of which kind payments are: what decides whether they keep a label (models/metrics/labels.py)."""

    known_by_ms: int
    mature_before_ms: int

    def of(self, payments: pa.RecordBatch) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Returns the label as known by then, and the kind of each payment."""
        label = known_labels(payments[OUTCOMES], self.known_by_ms)
        is_mature = payments["event_time_ms"].to_numpy() < self.mature_before_ms
        declined, stated = (_flags(payments, name) for name in ("declined", NEVER_LABELLED))
        return label, label_kinds(label, declined, is_mature, stated)


def _flags(payments: pa.RecordBatch, name: str) -> NDArray[np.bool_]:
    if name not in payments.schema.names:
        return np.zeros(len(payments), dtype=np.bool_)
    return np.asarray(payments[name].fill_null(False).to_numpy(zero_copy_only=False))


@dataclass(frozen=True)
class CountedKinds:
    """Counts the payments of a window by their kind, apart for whole days."""

    kinds: LabelKinds
    places: Places
    window: Window
    whole_from: int
    schema = pa.schema([("kind", pa.int64()), ("count", pa.int64())])

    def run(self, batches: Batches, _: int) -> Batches:
        wanted = self.window.places
        for batch in batches:
            place = self.places.of_events(batch)
            is_mine = (batch[KIND].to_numpy() == PAYMENT) & (place >= wanted.start) & (place < wanted.stop)
            payments = batch.take(pa.array(np.flatnonzero(is_mine)))
            is_whole = payments["event_time_ms"].to_numpy() // DAY_MS >= self.whole_from
            kind, count = np.unique(self.kinds.of(payments)[1] + np.int64(KINDS) * is_whole, return_counts=True)
            yield pa.record_batch([pa.array(kind), pa.array(count)], schema=self.schema)


@dataclass(frozen=True)
class KnownOutcomes:
    """Counts the outcomes that are known at a time."""

    known_by_ms: int
    schema = pa.schema([("count", pa.int64())])

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in batches:
            known = (batch[KIND].to_numpy() == OUTCOME) & (batch[KNOWN_MS].to_numpy() <= self.known_by_ms)
            yield pa.record_batch([pa.array([int(known.sum())])], schema=self.schema)


@dataclass(frozen=True)
class TrainingChoice:
    """Chooses the payments that become rows of a training table."""

    kinds: LabelKinds
    is_kept: NDArray[np.bool_]
    sample: GenuineSample

    def of(self, payments: pa.RecordBatch) -> NDArray[np.bool_]:
        label, kind = self.kinds.of(payments)
        day = payments["event_time_ms"].to_numpy() // DAY_MS
        return self.is_kept[kind] & self.sample.takes(payments["payment_id"], label, day)


@dataclass(frozen=True)
class TrainingRows:
    """Finishes with the columns of a training table."""

    columns: pa.Schema

    @property
    def names(self) -> list[str]:
        return ["payment_id", "event_time_ms", "amount_minor", *read_columns_of(self.columns)]

    @cached_property
    def schema(self) -> pa.Schema:
        added = [("_row", pa.int64()), ("_amount", pa.int64()), (OUTCOMES, pa.binary()), ("_vector", pa.binary())]
        return pa.schema([*((name, self.columns.field(name).type) for name in self.names), *added])

    def finish(self, zipped: ZippedPayments) -> pa.RecordBatch:
        arrays = [zipped.batch[name] for name in self.names]
        arrays += [pa.array(zipped.row), pa.array(zipped.payments.amounts)]
        arrays += [zipped.batch[OUTCOMES], packed(zipped.vectors)]
        return pa.record_batch(arrays, schema=self.schema)


def training_table_on(
    passage: Passage[RowsT], window: Days, *, settings: TrainingSettings, room: Path, may_sample: bool = True
) -> TrainingTable:
    """Returns the rows of a window that have a label, or the share of them that memory has room for.

    `room`: a folder for the vectors and other columns; they end with the table. `may_sample`: whether a share may
    be taken at all. Raises Misconfigured as `training_table` does, and if no share fits.
    """
    labels = LabelRules.of(settings)
    engine, events, places = passage.engine, passage.events, passage.places
    first, last = places.rows_of(window.first, window.last)
    if first == last:
        days = f"the data is from {date_of_day(min(places.by_day))} to {date_of_day(max(places.by_day))}"
        raise Misconfigured(
            f"there is no payment from {date_of_day(window.first)} to {date_of_day(window.last)}: {days}"
        )
    rows, until_ms = Window(first, last), outcomes_until_ms(window, labels)
    kinds = LabelKinds(until_ms, _mature_before_ms(passage, until_ms))
    whole_from = whole_days_from(places.by_day, window)
    count = np.zeros(2 * KINDS, dtype=np.int64)
    for table in engine.tables(engine.map(events, CountedKinds(kinds, places, rows, whole_from))):
        np.add.at(count, table["kind"].to_numpy(), table["count"].to_numpy())
    sampled, whole = count.reshape(2, KINDS)
    is_kept, counts = kept_kinds(sampled + whole, labels.unknown)
    if not is_kept[(sampled + whole) > 0].any():
        raise none_known(counts, window, labels.delay_days)
    is_fraud = np.arange(KINDS) // 8 == 2
    always = int(whole[is_kept].sum() + sampled[is_fraud].sum())
    others, feature_count = int(sampled[is_kept & ~is_fraud].sum()), passage.features.plan.feature_count
    share = fitting_share(always, others, feature_count, settings, may_sample=may_sample)
    sample = GenuineSample(share, labels.seed, whole_from)
    work, choice = TrainingRows(passage.columns), TrainingChoice(kinds, is_kept, sample)
    frauds, space = OtherFrauds(passage.columns, places, rows, until_ms), MmapAllocator(room)
    parts: list[tuple[NDArray[Any], ...]] = []
    outcomes: list[tuple[NDArray[Any], ...]] = []
    with ExitStack() as files:
        content = files.enter_context(space.new_file())
        made = WindowHistory(passage, space, frauds, files)
        for table in engine.tables(passage.finished(rows, work, choice)):
            for batch in table.to_batches():
                mine = made.add(pa.Table.from_batches([batch]))
                space.append(content, unpacked_float32(batch["_vector"], feature_count))
                row, time_ms, fraud = unpacked_outcomes(batch[OUTCOMES])
                outcomes.append((row + mine.start, time_ms, fraud))
                label = (known_labels(batch[OUTCOMES], until_ms) == 1).astype(np.int64)
                parts.append((label, batch["_row"].to_numpy(), batch["_amount"].to_numpy()))
        vectors = space.mapped(content, np.float32).reshape(-1, feature_count)
        history = made.whole()
    mine = made.rows
    # That the frauds outside the window are known is all that counts.
    outside = np.delete(np.arange(len(history)), mine)
    outcomes.append((outside, history.event_time_ms[outside], np.ones(len(outside), dtype=np.bool_)))
    history = with_outcomes(history, *(np.concatenate(column) for column in zip(*outcomes, strict=True)))
    label, numbers, amounts = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = WindowLabels(np.arange(mine.start, mine.stop), label, counts, sample if share < 1.0 else None)
    made_of = table_of(history, found, vectors, amounts, until_ms, labels)
    space.release()
    return replace(made_of, row=numbers)


def _mature_before_ms(passage: Passage[RowsT], until_ms: int) -> int:
    """Returns the time before which payments are mature, as `mature_before_ms` does in memory."""
    engine, events = passage.engine, passage.events
    counted = engine.tables(engine.map(events, KnownOutcomes(until_ms)))
    known = sum(int(table["count"].to_numpy().sum()) for table in counted)
    work = GenuineDelays(passage.places, sampled_every(known), until_ms)
    delays = [table["delay_ms"].to_numpy() for table in engine.tables(engine.map(events, work))]
    return mature_of_delays(until_ms, np.concatenate([np.zeros(0, dtype=np.int64), *delays]))
