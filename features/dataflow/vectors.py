"""Zips by place: a payment meets what it saw of its entities and of their neighbours, and gets its vector.

    wanted payments ─┐
    slots ───────────┼► exchange by place ─ Zipped ─► payments with vectors, in order
    neighbours' values ┘

`Passage` runs all stages. It shuffles a payment with its columns three times, and for each kind of entity:

    (key, place, row of attributes)    to the entity     about 200 bytes, and 16 more for each declared field
    (place, slots)                     to the payment    30 bytes, and 8 more for each slot

Features two hops away add a read for each listed neighbour, and the events of their kind once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.dataflow.dataflow_engine import (
    BUCKET,
    Batches,
    Engine,
    RowsT,
    Work,
    joined,
    packed,
    unpacked_float32,
    unpacked_float64,
)
from paywarden.features.dataflow.events import (
    EVENT_ORDER,
    JOIN_ORDER,
    KIND,
    LABEL,
    OUTCOMES,
    PAYMENT,
    CheckedOutcomes,
    CheckedPayments,
    CountedDays,
    JoinedOutcomes,
    Numbered,
    Places,
    canonical,
)
from paywarden.features.dataflow.fold import (
    ENTITY,
    FOLD_ORDER,
    PLACE,
    Choice,
    KeyedEvents,
    PaymentRows,
    Profiles,
    RowMaker,
    Slots,
    Window,
    window_buckets,
)
from paywarden.features.dataflow.hops import HOP, HOP_ORDER, POSITION, ListedNeighbours, NeighbourValues, TargetEvents
from paywarden.features.dataflow.slices import SLICE_EVENTS, BusyEntities, Slices, sampled_every
from paywarden.features.history.history import OUTCOME_COLUMNS, OUTCOMES_FILE, check_columns
from paywarden.features.kernel.plan_schema import entity_section
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable

_VALUES = "_values"
_ZIPPED = [(BUCKET, pa.int32()), (PLACE, pa.int64()), (ENTITY, pa.int8()), (HOP, pa.int8()), (POSITION, pa.int8())]
ZIP_ORDER = (PLACE, ENTITY, HOP, POSITION)
# A payment has no entity and no hop: it comes first among the rows of its place.
_OF_PAYMENT = -1


class ZippedPayments(NamedTuple):
    """Payments in order, with their vectors. `row`: their numbers in the history; `label`: -1 without an outcome."""

    batch: pa.RecordBatch
    payments: PaymentRows
    row: NDArray[np.int64]
    label: NDArray[np.int8]
    vectors: NDArray[np.float32]


class Finish(Protocol):
    """What becomes of zipped payments: a value that can be pickled."""

    @property
    def schema(self) -> pa.Schema: ...

    def finish(self, zipped: ZippedPayments) -> pa.RecordBatch:
        """Returns a row for each payment."""
        ...


def zip_schema(columns: pa.Schema) -> pa.Schema:
    """Returns the columns of all that meets at a place."""
    beside = [(_VALUES, pa.binary()), (LABEL, pa.int8()), (OUTCOMES, pa.binary())]
    return pa.schema([*_ZIPPED, *beside, *((field.name, field.type) for field in columns)])


@dataclass(frozen=True)
class WantedPayments:
    """Takes the payments of a window from events."""

    columns: pa.Schema
    places: Places
    window: Window
    partitions: int
    choice: Choice | None = None

    @cached_property
    def schema(self) -> pa.Schema:
        return zip_schema(self.columns)

    def run(self, batches: Batches, _: int) -> Batches:
        wanted = self.window.places
        for batch in batches:
            place = self.places.of_events(batch)
            rows = np.flatnonzero((batch[KIND].to_numpy() == PAYMENT) & (place >= wanted.start) & (place < wanted.stop))
            taken = batch.take(pa.array(rows))
            if self.choice is not None:
                chosen = np.flatnonzero(self.choice.of(taken))
                rows, taken = rows[chosen], taken.take(pa.array(chosen))
            none = pa.array(np.full(len(rows), _OF_PAYMENT, dtype=np.int8))
            arrays = [
                window_buckets(place[rows], self.window, self.partitions),
                pa.array(place[rows]),
                none,
                none,
                none,
            ]
            arrays += [pa.nulls(len(rows), pa.binary()), taken[LABEL], taken[OUTCOMES]]
            yield pa.record_batch([*arrays, *(taken[name] for name in self.columns.names)], schema=self.schema)


@dataclass(frozen=True)
class ForZip:
    """Gives the rows of a work the columns of `zip_schema`."""

    work: Work
    columns: pa.Schema

    @cached_property
    def schema(self) -> pa.Schema:
        return zip_schema(self.columns)

    def run(self, batches: Batches, part: int) -> Batches:
        for batch in self.work.run(batches, part):
            none = pa.array(np.full(len(batch), _OF_PAYMENT, dtype=np.int8))
            arrays = []
            for one in self.schema:
                if one.name in batch.schema.names:
                    arrays.append(batch[one.name])
                else:
                    is_number = one.name in (ENTITY, HOP, POSITION)
                    arrays.append(none if is_number else pa.nulls(len(batch), one.type))
            yield pa.record_batch(arrays, schema=self.schema)


@dataclass(frozen=True)
class Zipped:
    """Assembles the vectors of payments whose slots and neighbours' values stand at their places."""

    features: FeatureEngine
    rows: RowMaker
    last: Finish

    @property
    def schema(self) -> pa.Schema:
        return self.last.schema

    def run(self, batches: Batches, _: int) -> Batches:
        for batch in whole_places(batches):
            yield self.last.finish(self.zipped(batch))

    def zipped(self, batch: pa.RecordBatch) -> ZippedPayments:
        """Returns the payments of a batch that holds all rows of its places."""
        features, plan = self.features, self.features.plan
        place, entity, hop = (batch[name].to_numpy() for name in (PLACE, ENTITY, HOP))
        payments = np.flatnonzero((entity == _OF_PAYMENT) & (hop == _OF_PAYMENT))
        of_payments = batch.take(pa.array(payments))
        target = np.searchsorted(place[payments], place)
        slots = features.new_slots(len(payments))
        for number in range(plan.entity_count):
            section = entity_section(plan.words, number)
            found = np.flatnonzero(entity == number)
            values = unpacked_float64(batch[_VALUES].take(pa.array(found)), section.slot_count)
            slots[target[found], section.slot_base : section.slot_base + section.slot_count] = values
        for number, group in enumerate(plan.hops):
            found = np.flatnonzero(hop == number)
            read = unpacked_float32(batch[_VALUES].take(pa.array(found)), len(group.results))
            of_all = np.full((len(payments) * group.capacity, len(group.results)), np.nan, dtype=np.float32)
            of_all[target[found] * group.capacity + batch[POSITION].to_numpy()[found]] = read
            features.combine(number, of_all, slots)
        made = self.rows.of(of_payments)
        vectors = features.vectors_of_slots(made.attributes, slots)
        return ZippedPayments(of_payments, made, place[payments] >> 1, of_payments[LABEL].to_numpy(), vectors)


def whole_places(batches: Batches) -> Batches:
    """Yield the rows of batches so that all rows of a place are in one batch."""
    rest: list[pa.RecordBatch] = []
    for batch in batches:
        place = batch[PLACE].to_numpy()
        cut = int(np.searchsorted(place, place[-1]))
        if cut > 0 or (rest and rest[-1][PLACE][-1].as_py() != place[0]):
            yield joined([*rest, batch.slice(0, cut)])
            rest = []
        rest.append(batch.slice(cut))
    if rest:
        yield joined(rest)


@dataclass(frozen=True)
class Passage(Generic[RowsT]):
    """A history on an engine: its events in order, and what is computed from them."""

    engine: Engine[RowsT]
    events: RowsT
    columns: pa.Schema
    places: Places
    features: FeatureEngine
    rates: RateTable
    slice_events: int = SLICE_EVENTS

    @classmethod
    def open(
        cls, engine: Engine[RowsT], payments: str, outcomes: str, *, features: FeatureEngine, rates: RateTable
    ) -> Passage[RowsT]:
        """Read, check, join and sort a history. Raises Misconfigured that names file, column or row."""
        fields = features.plan.fields
        of_payments, payments_schema, payment_files = engine.read(payments)
        of_outcomes, outcomes_schema, outcome_files = engine.read(outcomes)
        columns = canonical(payments_schema, fields)
        wanted = {name: OUTCOME_COLUMNS[name] for name in ("payment_id", "outcome_time_ms", "label")}
        check_columns(OUTCOMES_FILE, outcomes_schema.empty_table(), wanted)
        count = engine.partitions
        checked = engine.map(of_payments, CheckedPayments(columns, fields, payment_files, count))
        known = engine.map(of_outcomes, CheckedOutcomes(columns, outcome_files, count))
        join = JoinedOutcomes(columns, payment_files, outcome_files, counts_labels=features.plan.counts_labels)
        events = engine.sort(engine.exchange([checked, known], JOIN_ORDER, join), EVENT_ORDER, Numbered(join.schema))
        places = Places.of(engine.tables(engine.map(events, CountedDays())))
        return cls(engine, events, columns, places, features, rates)

    @property
    def rows(self) -> RowMaker:
        return RowMaker(self.features, self.rates, self.columns)

    def finished(self, window: Window, last: Finish, choice: Choice | None = None) -> RowsT:
        """Returns what `last` makes of the payments of a window, in order over all partitions.

        `choice` takes some of them; None takes all.
        """
        engine, features, count = self.engine, self.features, self.engine.partitions
        keyed = replace(self._keyed(window, window.places.stop), choice=choice)
        slices, _ = self._slices(keyed)
        slots = ForZip(Slots(features, window, count, slices), self.columns)
        wanted = engine.map(self.events, WantedPayments(self.columns, self.places, window, count, choice))
        parts = [wanted, engine.exchange([self._of(keyed, slices)], FOLD_ORDER, slots)]
        if features.plan.hops:
            parts.append(self._neighbours(window, slices, choice))
        return engine.exchange(parts, ZIP_ORDER, Zipped(features, self.rows, last))

    def profiles(self) -> Iterator[pa.Table]:
        """Yield the profile of each entity after all events, with the columns of Profiles."""
        whole = Window(0, self.places.payments)
        keyed = self._keyed(whole, 2 * whole.last + 1)
        slices, busy = self._slices(keyed)
        work = Profiles(self.features)
        others = self.engine.exchange([self._of(keyed, slices, busy=False)], FOLD_ORDER, work)
        yield from self.engine.tables(others)
        if busy:
            columns = zip(*busy, strict=True)
            yield pa.table(
                [pa.array(one, kind.type) for one, kind in zip(columns, work.schema, strict=True)], work.schema
            )

    def _keyed(self, window: Window, stop: int, entities: Sequence[int] = ()) -> KeyedEvents:
        kinds = tuple(entities or range(self.features.plan.entity_count))
        return KeyedEvents(self.rows, self.places, window, stop, self.engine.partitions, kinds)

    def _of(self, keyed: KeyedEvents, slices: Slices, *, busy: bool | None = None) -> RowsT:
        return self.engine.map(self.events, replace(keyed, slices=slices, busy=busy))

    def _slices(self, keyed: KeyedEvents) -> tuple[Slices, list[tuple[int, bytes, bytes]]]:
        """Returns the slices of busy entities, each with the profile before it, and the entities' last profiles."""
        engine, most = self.engine, self.slice_events
        if self.places.payments + self.places.outcomes <= most:
            return Slices(), []
        sample = engine.map(self.events, replace(keyed, every=sampled_every(most)))
        busy = engine.exchange([sample], FOLD_ORDER, BusyEntities(most))
        slices = Slices.of_busy(engine.tables(busy), keyed.stop, most)
        if not slices.counts:
            return slices, []
        alone = engine.exchange([self._of(keyed, slices, busy=True)], FOLD_ORDER, Profiles(self.features))
        return slices.with_profiles(self.features, engine.tables(alone))

    def _neighbours(self, window: Window, slices: Slices, choice: Choice | None) -> RowsT:
        """Returns the values of neighbours that payments of the window ask for. `slices`: of all kinds, by key."""
        engine, features, count = self.engine, self.features, self.engine.partitions
        sources, targets = ({hop.source for hop in features.plan.hops}, {hop.target for hop in features.plan.hops})
        asking = replace(self._keyed(window, window.places.stop, sorted(sources)), choice=choice)
        of_sources = self._of(asking, slices)
        by_identity = replace(self._keyed(window, window.places.stop, sorted(targets)), by_identity=True)
        of_targets, _ = self._slices(by_identity)
        listed = ListedNeighbours(features, count, slices, of_targets)
        reads = engine.exchange([of_sources], FOLD_ORDER, listed)
        events = engine.map(self.events, TargetEvents(replace(by_identity, slices=of_targets)))
        values = ForZip(NeighbourValues(features, window, count, of_targets), self.columns)
        return engine.exchange([reads, events], HOP_ORDER, values)


@dataclass(frozen=True)
class Vectors:
    """Finishes with the vectors alone, for tests and training: the row of each payment and its features."""

    schema = pa.schema([("row", pa.int64()), ("label", pa.int8()), ("vector", pa.binary())])

    def finish(self, zipped: ZippedPayments) -> pa.RecordBatch:
        arrays = [pa.array(zipped.row), pa.array(zipped.label), packed(zipped.vectors)]
        return pa.record_batch(arrays, schema=self.schema)
