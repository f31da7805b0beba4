"""Folds the events of each entity into its profile, and notes what the profile knew before each payment.

    events ─ KeyedEvents ─► exchange by the entity's key, in order of places ─ Slots ─► what payments saw of the entity
                                                                            └ Profiles ─► the last profile of each

One profile is open at a time. If an entity's events go on in the next batch, its profile is packed between the two.
Memory is therefore bounded by a batch, whatever number of events an entity has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.dataflow.dataflow_engine import (
    BUCKET,
    Batches,
    buckets_of,
    group_starts,
    packed,
    unpacked_int64,
)
from paywarden.features.dataflow.events import KIND, PAYMENT, WEIGHT, Places
from paywarden.features.dataflow.slices import NO_SLICES, Slices
from paywarden.features.history.entity_columns import entity_column
from paywarden.features.history.history import History, payments_alone
from paywarden.features.history.point_in_time import declared_amounts, reference_amounts
from paywarden.features.history.rows import HistoryRows
from paywarden.features.kernel.plan_schema import entity_section
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.money import RateTable

ENTITY, KEY, IDENTITY, PLACE, IS_EVENT = "_entity", "_key", "_identity", "_place", "_is_event"
IS_WANTED, ATTRIBUTES = "_is_wanted", "_attributes"
FOLD_ORDER = (ENTITY, KEY, PLACE)

KEYED = pa.schema(
    [
        (BUCKET, pa.int32()),
        (ENTITY, pa.int8()),
        (KEY, pa.binary()),
        (PLACE, pa.int64()),
        (KIND, pa.int8()),
        (WEIGHT, pa.int8()),
        (IS_WANTED, pa.bool_()),
        (ATTRIBUTES, pa.binary()),
    ]
)


@dataclass(frozen=True)
class Window:
    """Payments of a history by their numbers: from `first` on, before `last`."""

    first: int
    last: int

    @property
    def places(self) -> range:
        """Returns the places of the payments, and of all that stands between them."""
        return range(2 * self.first + 1, 2 * self.last)


class PaymentRows(NamedTuple):
    """Payments of a batch as a history, with their rows of attributes."""

    history: History
    amounts: NDArray[np.int64]
    attributes: NDArray[np.int64]


@dataclass(frozen=True)
class RowMaker:
    """Makes the kernel's rows of payments. `columns`: those of the payments."""

    features: FeatureEngine
    rates: RateTable
    columns: pa.Schema

    def of(self, batch: pa.RecordBatch) -> PaymentRows:
        """Returns the payments of a batch of events."""
        plan = self.features.plan
        payments = pa.Table.from_batches([batch.select(self.columns.names)])
        history = payments_alone(payments, plan.fields)
        amounts = reference_amounts(history, self.rates)
        rows = HistoryRows(history, amounts, plan.key, declared_amounts(history, self.rates))
        return PaymentRows(history, amounts, rows.of(slice(0, len(history))))


class Choice(Protocol):
    """Chooses payments of a window: a value that can be pickled."""

    def of(self, payments: pa.RecordBatch) -> NDArray[np.bool_]:
        """Returns which payments are chosen. Rows of outcomes may be among them, and count for nothing."""
        ...


@dataclass(frozen=True)
class KeyedEvents:
    """Repeats the events that change profiles once for each entity of theirs, with the entity's key.

    Events from place `stop` on are left out. The payments of the window that `choice` takes ask for what their entities
    knew; without a choice all do.
    """

    rows: RowMaker
    places: Places
    window: Window
    stop: int
    partitions: int
    entities: tuple[int, ...]
    choice: Choice | None = None
    by_identity: bool = False
    """Whether the key of an entity is its identity, as neighbours are listed by."""
    slices: Slices = NO_SLICES
    busy: bool | None = None
    """Whether only events of busy entities are wanted, or only those of others; None for all."""
    every: int = 1
    """N: only the events of every N-th payment are taken."""

    @property
    def schema(self) -> pa.Schema:
        return KEYED

    def run(self, batches: Batches, _: int) -> Batches:
        plan = self.rows.features.plan
        for batch in batches:
            place = self.places.of_events(batch)
            kind, weight = batch[KIND].to_numpy(), batch[WEIGHT].to_numpy()
            is_taken = ((kind == PAYMENT) | (weight != 0)) & (place < self.stop)
            if self.every > 1:
                is_taken &= (place >> 1) % self.every == 0
            rows = np.flatnonzero(is_taken)
            taken = batch.take(pa.array(rows))
            payments = self.rows.of(taken)
            place, kind, weight = place[rows], kind[rows], weight[rows]
            is_wanted = (kind == PAYMENT) & (place >= self.window.places.start)
            if self.choice is not None:
                is_wanted &= self.choice.of(taken)
            for entity in self.entities:
                name, fields = plan.entity_names[entity], plan.entity_keys[entity]
                column = entity_column(payments.history, name, fields, key=plan.key)
                there = np.flatnonzero(column.codes >= 0)
                names = packed(column.identities()[:, None]) if self.by_identity else column.store_keys()
                keys = pa.array(names, pa.binary()).take(pa.array(column.codes[there]))
                if self.slices.counts:
                    keys, is_busy = self.slices.keys(entity, keys, place[there])
                    if self.busy is not None:
                        kept = np.flatnonzero(is_busy == self.busy)
                        there, keys = there[kept], keys.take(pa.array(kept))
                arrays = [
                    buckets_of(keys, self.partitions),
                    pa.array(np.full(len(there), entity, dtype=np.int8)),
                    keys,
                    pa.array(place[there]),
                    pa.array((kind[there] != PAYMENT).astype(np.int8) * kernel.LABEL),
                    pa.array(weight[there]),
                    pa.array(is_wanted[there]),
                    packed(payments.attributes[there]),
                ]
                yield pa.record_batch(arrays, schema=KEYED)


class EntityRun(NamedTuple):
    """Events of one kind of entity in a batch, grouped by entity, and the profile of each group before them."""

    entity: int
    rows: pa.RecordBatch
    starts: NDArray[np.int64]
    keys: list[bytes]
    states: list[bytes | None]

    def wanted(self) -> NDArray[np.int64]:
        """Returns the rows of the payments that want to see the profile."""
        return np.flatnonzero(self.rows[IS_WANTED].to_numpy(zero_copy_only=False))

    def events(self, kept: NDArray[np.int64] | None = None, filled: NDArray[np.int64] | None = None) -> Events:
        """Returns the events, or those in the rows `kept`, which ascend; a group may then be empty.

        `filled`: those of the rows that fill a row of the results, in order.
        """
        count = len(self.rows)
        rows = np.arange(count) if kept is None else kept
        unchecked = np.full(len(rows), -1, dtype=np.int64)
        row = unchecked.copy()
        if filled is not None:
            row[np.searchsorted(rows, filled)] = np.arange(len(filled))
        return Events(
            groups=np.searchsorted(rows, np.append(self.starts, count)),
            kind=self.rows[KIND].to_numpy().astype(np.uint8)[rows],
            payment=rows,
            weight=self.rows[WEIGHT].to_numpy().astype(np.int64)[rows],
            source=unchecked,
            offset=unchecked,
            row=row,
        )


@dataclass
class OpenProfile:
    """Cuts batches into runs of one kind of entity, and keeps the one profile that may go on in the next batch."""

    before: Mapping[tuple[int, bytes], bytes] = field(default_factory=dict)
    """The profiles that slices begin with."""
    entity: int = -1
    key: bytes = b""
    state: bytes | None = None

    def runs(self, batch: pa.RecordBatch) -> Iterator[EntityRun]:
        """Yield the runs of a batch. `close` must be called after each."""
        entity, key = batch[ENTITY].to_numpy(), batch[KEY]
        cuts = np.flatnonzero(np.diff(entity)) + 1
        for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(batch)], strict=True):
            keys = key.slice(start, end - start)
            starts = group_starts(keys)
            names = keys.take(pa.array(starts)).to_pylist()
            kind = int(entity[start])
            states: list[bytes | None] = [self.before.get((kind, name)) for name in names]
            if (kind, names[0]) == (self.entity, self.key):
                states[0] = self.state
            yield EntityRun(kind, batch.slice(start, end - start), starts, names, states)

    def close(self, run: EntityRun, states: Sequence[bytes | None]) -> None:
        """Take the profiles after the events of a run; only the last one counts."""
        self.entity, self.key, self.state = run.entity, run.keys[-1], states[-1]


@dataclass(frozen=True)
class Slots:
    """Yields what each wanted payment sees of an entity: its part of the slots."""

    features: FeatureEngine
    window: Window
    partitions: int
    slices: Slices = NO_SLICES
    schema = pa.schema([(BUCKET, pa.int32()), (PLACE, pa.int64()), (ENTITY, pa.int8()), ("_values", pa.binary())])

    def run(self, batches: Batches, _: int) -> Batches:
        features, plan, profile = self.features, self.features.plan, OpenProfile(self.slices.before)
        for batch in batches:
            for run in profile.runs(batch):
                wanted = run.wanted()
                slots = features.new_slots(len(wanted))
                attributes = unpacked_int64(run.rows[ATTRIBUTES], plan.row_width)
                states = features.apply(run.entity, run.events(filled=wanted), attributes, run.states, slots).states
                profile.close(run, states)
                section = entity_section(plan.words, run.entity)
                place = run.rows[PLACE].to_numpy()[wanted]
                arrays = [
                    window_buckets(place, self.window, self.partitions),
                    pa.array(place),
                    pa.array(np.full(len(wanted), run.entity, dtype=np.int8)),
                    packed(slots[:, section.slot_base : section.slot_base + section.slot_count]),
                ]
                yield pa.record_batch(arrays, schema=self.schema)


@dataclass(frozen=True)
class Profiles:
    """Yields the last profile of each entity, as a backfill writes it."""

    features: FeatureEngine
    schema = pa.schema([(ENTITY, pa.int8()), (KEY, pa.binary()), ("_profile", pa.binary())])

    def run(self, batches: Batches, _: int) -> Batches:
        features, plan, profile = self.features, self.features.plan, OpenProfile()
        none = features.new_slots(0)
        for batch in batches:
            for run in profile.runs(batch):
                attributes = unpacked_int64(run.rows[ATTRIBUTES], plan.row_width)
                before = replace(profile)
                states = features.apply(run.entity, run.events(), attributes, run.states, none).states
                profile.close(run, states)
                if before.state is not None and (before.entity, before.key) != (run.entity, run.keys[0]):
                    yield self._batch(before.entity, [before.key], [before.state])
                if len(states) > 1:
                    yield self._batch(run.entity, run.keys[:-1], states[:-1])
        if profile.state is not None:
            yield self._batch(profile.entity, [profile.key], [profile.state])

    def _batch(self, entity: int, keys: list[bytes], states: list[bytes]) -> pa.RecordBatch:
        arrays = [
            pa.array(np.full(len(keys), entity, dtype=np.int8)),
            pa.array(keys, pa.binary()),
            pa.array(states, pa.binary()),
        ]
        return pa.record_batch(arrays, schema=self.schema)


def window_buckets(place: NDArray[np.int64], window: Window, partitions: int) -> pa.Array:
    """Returns the bucket of each payment of a window: equal runs of payments, in order."""
    row = (place >> 1) - window.first
    return pa.array((row * partitions // max(1, window.last - window.first)).astype(np.int32))
