"""Runs a history through the kernel in time order: it computes the vector that each payment had at its time.

Payments and outcomes are merged by the time at which they became known; at equal times payments come first. They are
processed in chunks. Within a chunk the events of each entity are grouped, since they never depend on another entity's.
Therefore a profile is unpacked once a chunk and stays in the processor's cache. Memory is bounded by the profiles and
one chunk, not by the history.

    time      event                      the card's count before it
    10:00     payment 0 of card C1       0
    10:05     payment 1 of card C1       1
    10:07     outcome of payment 0       (no vector)
    10:09     payment 2 of card C1       2

With a staleness (features/history/staleness.py) profiles lag behind. A payment then has two events in place of one: it
reads the profile at its own time, and is added where the first payment stands that may see it.

    time      event                      the card's count before it, with a lag of 6 minutes
    10:00     payment 0 reads            0
    10:05     payment 1 reads            0
              payment 0 is added
    10:09     payment 2 reads            1

With an overlay besides (features/history/overlay.py), payment 2 also sees payment 1, which is not added yet.

Features two hops away need two more passes (features/history/neighbour_history.py).

Several threads share a chunk, in two steps. First each thread takes a run of entities and fills their slots. Then each
thread assembles the vectors of a run of payments. The threads wait for each other only between the steps, and no slot
belongs to two threads. Therefore the results are the same to the bit for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import number_code
from paywarden.features.history.entity_columns import entity_column
from paywarden.features.history.event_order import even_shares, order_by_code, place_of
from paywarden.features.history.history import History, parts_of
from paywarden.features.history.neighbour_history import Known, Neighbours
from paywarden.features.history.overlay import HistoryOverlay
from paywarden.features.history.rows import HistoryRows
from paywarden.features.history.staleness import Staleness
from paywarden.features.history.thread_pool import ThreadPool
from paywarden.features.kernel import UNKNOWN_AMOUNT
from paywarden.features.kernel.pending import READS, WAITS
from paywarden.features.profiles.engine import Events, FeatureEngine, Pending
from paywarden.features.profiles.money import RateTable
from paywarden.schemas.payment_fields import Form

CHUNK_ROWS = 200_000


@dataclass(frozen=True)
class Chunk:
    """Payments first to last (exclusive) of a history; `vectors` has shape (last - first, features)."""

    first: int
    last: int
    vectors: NDArray[np.float32]
    late: int


@dataclass(frozen=True)
class Labels:
    """Changes of payments' known labels, in the order in which they became known. All shape (changes,).

    `before` is the first payment later than the change. `weight` is +1 for a fraud, -1 for a fraud taken back, and 0
    for a payment that is called genuine first; kernel.FIRST_LABEL is added for the first label of a payment where the
    plan counts labelled payments. Outcomes that change nothing are left out: without such a plan, most genuine ones.
    """

    payment: NDArray[np.int64]
    before: NDArray[np.int64]
    weight: NDArray[np.int64]


def label_changes(
    history: History, frontier_ms: NDArray[np.int64] | None = None, *, counts_labels: bool = False
) -> Labels:
    """Returns the label changes: a repeated outcome makes none, a correction takes back the outcome before it.

    `frontier_ms`: for each payment, the moment up to which it knows outcomes (payments,); None for its own time.
    `counts_labels`: whether the first label of a payment is a change, whatever it says.
    """
    outcomes = np.arange(len(history.outcome_payment)) if counts_labels else _outcomes_of_frauds(history)
    # A stable sort keeps the outcomes of one payment in the order in which they became known.
    order = outcomes[np.argsort(history.outcome_payment[outcomes], kind="stable")]
    payment = history.outcome_payment[order]
    fraud = history.outcome_fraud[order].astype(np.int64)
    previous = np.zeros_like(fraud)
    same = payment[1:] == payment[:-1]
    previous[1:][same] = fraud[:-1][same]
    weight = fraud - previous
    if counts_labels:
        weight += kernel.FIRST_LABEL * np.append(True, ~same)[: len(payment)]
    changed = np.flatnonzero(weight)
    known_ms = history.outcome_time_ms[order][changed]
    known_order = np.argsort(known_ms, kind="stable")
    changed, known_ms = changed[known_order], known_ms[known_order]
    before = np.searchsorted(history.event_time_ms if frontier_ms is None else frontier_ms, known_ms, side="right")
    return Labels(payment[changed], before.astype(np.int64), weight[changed])


def _outcomes_of_frauds(history: History) -> NDArray[np.int64]:
    """Returns, in order, the outcomes of payments that were ever called a fraud. Others change nothing."""
    parts = list(parts_of(len(history.outcome_payment)))
    called = [history.outcome_payment[part][history.outcome_fraud[part]] for part in parts]
    frauds = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *called]))
    found = [np.flatnonzero(np.isin(history.outcome_payment[part], frauds)) + part.start for part in parts]
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])


class PointInTimeReplay:
    """One pass through a history. `profiles[entity][code]` is a packed profile so far, None for an unknown entity."""

    def __init__(
        self,
        history: History,
        engine: FeatureEngine,
        rates: RateTable,
        *,
        crew: ThreadPool | None = None,
        staleness: Staleness | None = None,
        overlay: HistoryOverlay | None = None,
    ) -> None:
        """The threads of `crew` share the work; results stay the same.

        `staleness`: how far profiles lag behind; None lets each payment see all payments before it.
        `overlay`: which of the payments that lag a scoring host sees; without a lag there are none.
        """
        assert engine.plan.fields == history.fields, (
            "the history was read with other fields than the catalogue declares"
        )
        self._history = history
        self._crew = crew or ThreadPool()
        self._engines: SimpleQueue[FeatureEngine] = SimpleQueue()
        self._engine = engine
        for clone in (engine, *(engine.clone_for_thread() for _ in range(self._crew.threads - 1))):
            self._engines.put(clone)
        frontier_ms = None if staleness is None else staleness.frontier_ms(history.event_time_ms)
        self._labels = label_changes(history, frontier_ms, counts_labels=engine.plan.counts_labels)
        # For each payment the first one that sees it, ascending; None if that is always the next one.
        self._seen_by: NDArray[np.int64] | None = None
        if frontier_ms is not None:
            first = np.searchsorted(frontier_ms, history.event_time_ms, side="left")
            self._seen_by = np.maximum(first, np.arange(1, len(history) + 1))
        self._added = 0
        self._overlay = overlay if self._seen_by is not None else None
        self.amounts = reference_amounts(history, rates)
        """Each payment's amount in minor units of the reference currency, shape (payments,)."""
        plan = engine.plan
        self.rows = HistoryRows(history, self.amounts, plan.key, declared_amounts(history, rates))
        self.entities = [
            entity_column(history, name, fields, plan.key)
            for name, fields in zip(plan.entity_names, plan.entity_keys, strict=True)
        ]
        self.profiles: list[list[bytes | None]] = [[None] * entities.count for entities in self.entities]
        self._neighbours = Neighbours(plan, self.entities) if plan.hops else None
        self._labels_done = 0
        # Rows and slots of the chunk at hand. Each chunk uses the memory of the one before: new memory for a hundred
        # megabytes a chunk takes as long to get as their content takes to compute.
        self._attributes, self._slots = self._no_buffers()

    def chunks(
        self,
        *,
        first: int = 0,
        last: int | None = None,
        rows: int = CHUNK_ROWS,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[Chunk]:
        """Yield the payments `first` to `last` (exclusive) in order. Earlier payments only fill the profiles.

        Outcomes that are known by then are included. `progress` gets the number of finished rows, also before `first`.
        """
        stop = len(self._history) if last is None else last
        try:
            for start in range(0, stop, rows):
                end = min(stop, start + rows)
                chunk = self._advance(start, end, max(first, start))
                if progress is not None:
                    progress(end - start)
                if end > first:
                    yield chunk
        finally:
            self._attributes, self._slots = self._no_buffers()

    def finish(self) -> None:
        """Apply the outcomes that are later than every payment, and payments that no payment has seen."""
        end = len(self._history)
        self._advance(end, end, end, is_end=True)

    def _advance(self, first: int, last: int, wanted: int, *, is_end: bool = False) -> Chunk:
        """Bring all profiles up to payment `last`. Only payments from `wanted` on get vectors."""
        labels_stop, added_stop = len(self._labels.payment), len(self._history)
        if not is_end:
            # A label comes just before the payment `before`. A label after the last payment of the chunk waits.
            labels_stop = int(np.searchsorted(self._labels.before, last, side="left"))
            if self._seen_by is not None:
                added_stop = int(np.searchsorted(self._seen_by, last, side="left"))
        labels = slice(self._labels_done, labels_stop)
        added = slice(self._added, added_stop if self._seen_by is not None else self._added)
        # Payments that are pending when the chunk begins.
        waiting = slice(added.start, first if self._overlay is not None else added.start)
        self._labels_done, self._added = labels_stop, added.stop
        # The payments of the chunk first, then the payments of the labels, then those that are added only now.
        payments = np.concatenate(
            (
                np.arange(first, last),
                self._labels.payment[labels],
                np.arange(added.start, added.stop),
                np.arange(waiting.start, waiting.stop),
            )
        )
        pending = None
        if self._overlay is not None:
            pending = Pending(self._overlay.hosts_of(self._history, payments), self._overlay.limits)
        attributes, slots = self._buffers(len(payments), max(0, last - wanted))
        self._crew.each(lambda part: self.rows.fill(payments[part], attributes[part]), self._shares(payments))
        self._crew.each(lambda part: slots[part].fill(np.nan), self._shares(slots))
        ordered = self._crew.each(
            lambda entity: self._events(entity, range(first, last), wanted, labels, added, waiting),
            range(len(self.entities)),
        )
        shares = [(entity, *share) for entity, own in enumerate(ordered) for share in self._even_shares(*own)]
        if self._neighbours is not None and len(slots):
            known = self._known(payments, range(first, last), labels, added)
            self._fill_hops(self._neighbours, ordered, range(wanted, last), first, known, attributes, slots)
        late = sum(self._crew.each(lambda share: self._apply(*share, attributes, slots, pending), shares))
        vectors = np.empty((len(slots), self._engine.plan.feature_count), dtype=np.float32)
        of_wanted = attributes[wanted - first : last - first]
        self._crew.each(lambda part: self._assemble(of_wanted[part], slots[part], vectors[part]), self._shares(slots))
        return Chunk(wanted, last, vectors, late)

    def _known(self, payments: NDArray[np.int64], chunk: range, labels: slice, added: slice) -> Known:
        """Returns what changes profiles in a chunk: payments and labels, in places as those of `_events`."""
        count, label_count = len(chunk), labels.stop - labels.start
        if self._seen_by is None:
            rows, places = np.arange(count), place_of(np.arange(chunk.start, chunk.stop))
        else:
            rows = np.arange(added.stop - added.start) + count + label_count
            places = 2 * self._seen_by[added]
        rows = np.concatenate((rows, np.arange(count, count + label_count)))
        kinds = np.full(len(rows), kernel.PAYMENT, dtype=np.uint8)
        kinds[len(places) :] = kernel.LABEL
        weights = np.ones(len(rows), dtype=np.int64)
        weights[len(places) :] = self._labels.weight[labels]
        return Known(payments[rows], rows, np.append(places, 2 * self._labels.before[labels]), kinds, weights)

    def _fill_hops(
        self,
        neighbours: Neighbours,
        ordered: Sequence[tuple[NDArray[np.integer], Events]],
        wanted: range,
        first: int,
        known: Known,
        attributes: NDArray[np.int64],
        slots: NDArray[np.float64],
    ) -> None:
        """Fill the hop slots of the wanted payments. The attributes begin with the payment `first`."""
        lists = neighbours.new_lists(len(wanted))
        shares = [(entity, share) for entity in neighbours.sources for share in self._even_shares(*ordered[entity])]
        self._crew.each(lambda share: self._list(*share, attributes, lists), shares)
        for number in range(len(self._engine.plan.hops)):
            found = neighbours.new_values(number, len(wanted))
            self._read(number, neighbours.reads(number, lists, wanted, first, known), attributes, found)
            self._engine.combine(number, found, slots)

    def _list(
        self,
        entity: int,
        share: tuple[NDArray[np.integer], Events],
        attributes: NDArray[np.int64],
        lists: NDArray[np.int64],
    ) -> None:
        """Fill the lists of payments of some sources."""
        touched, events = share
        with self._engine_of_its_own() as engine:
            engine.list_in_order(entity, events, attributes, self._states(entity, touched), lists)

    def _read(
        self,
        number: int,
        reads: tuple[NDArray[np.integer], Events],
        attributes: NDArray[np.int64],
        found: NDArray[np.float32],
    ) -> None:
        """Fill the values of the neighbours of a group."""
        target = self._engine.plan.hops[number].target

        def read(share: tuple[NDArray[np.integer], Events]) -> None:
            touched, events = share
            with self._engine_of_its_own() as engine:
                engine.read_in_order(number, events, attributes, self._states(target, touched), found)

        self._crew.each(read, self._even_shares(*reads))

    def _even_shares(self, touched: NDArray[np.integer], events: Events) -> list[tuple[NDArray[np.integer], Events]]:
        """Returns the entities and their events in one share for each thread."""
        parts = even_shares(events.groups, self._crew.threads)
        return [(touched[part], events.of_groups(part)) for part in parts]

    def _states(self, entity: int, touched: NDArray[np.integer]) -> list[bytes | None]:
        """Returns the profiles of some entities."""
        profiles = self.profiles[entity]
        return [profiles[code] for code in touched.tolist()]

    def _no_buffers(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return np.empty((0, self.rows.width), dtype=np.int64), self._engine.new_slots(0)

    def _buffers(self, payments: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns arrays for the rows of the payments and the slots of the wanted ones, with any content."""
        if len(self._attributes) < payments:
            self._attributes = np.empty((payments, self.rows.width), dtype=np.int64)
        if len(self._slots) < wanted:
            self._slots = np.empty((wanted, self._engine.plan.slot_count))
        return self._attributes[:payments], self._slots[:wanted]

    def _shares(self, rows: NDArray[np.generic]) -> list[slice]:
        """Returns one part for each thread; one empty part without rows."""
        return list(parts_of(len(rows), max(1, -(-len(rows) // self._crew.threads)))) or [slice(0, 0)]

    def _events(
        self, entity: int, chunk: range, wanted: int, labels: slice, added: slice, waiting: slice
    ) -> tuple[NDArray[np.integer], Events]:
        """Returns the entities of one kind with events up to the chunk's last payment, and their events in order.

        `added`: payments that are added to profiles now; the chunk's own are, if they are seen by the next one.
        `waiting`: payments that are pending from before the chunk.
        """
        codes = self.entities[entity].codes
        first, count = chunk.start, len(chunk)
        label_payment, label_before = self._labels.payment[labels], self._labels.before[labels]
        places = [place_of(np.arange(first, first + count)), 2 * label_before]
        all_codes = [codes[first : first + count], codes[label_payment]]
        if self._seen_by is not None:
            places.append(2 * self._seen_by[added])
            all_codes.append(codes[added])
            places.append(np.full(waiting.stop - waiting.start, 2 * first - 1))
            all_codes.append(codes[waiting])
        code = np.concatenate(all_codes)
        order = order_by_code(code, np.concatenate(places))
        code = code[order]
        there = int(np.searchsorted(code, 0))  # code -1: the payment has no such entity
        order, code = order[there:], code[there:]
        starts = np.flatnonzero(np.diff(code, prepend=-1))
        is_label = (order >= count) & (order < count + len(label_payment))
        weight = np.ones(len(order), dtype=np.int64)
        weight[is_label] = self._labels.weight[labels][order[is_label] - count]
        kind = np.where(is_label, kernel.LABEL, kernel.PAYMENT)
        if self._overlay is not None:
            kind[order < count] = READS
            kind[order >= count + len(label_payment) + added.stop - added.start] = WAITS
        elif self._seen_by is not None:
            # A label of weight 0 changes nothing: the payment only reads.
            weight[order < count] = 0
            kind[order < count] = kernel.LABEL
        unchecked = np.full(len(order), -1, dtype=np.int64)
        row = order - (wanted - first)
        events = Events(
            groups=np.append(starts, len(order)).astype(np.int64),
            kind=kind.astype(np.uint8),
            payment=order,
            weight=weight,
            source=unchecked,
            offset=unchecked,
            row=np.where((order >= count) | (row < 0), -1, row),
        )
        return code[starts], events

    def _apply(
        self,
        entity: int,
        touched: NDArray[np.integer],
        events: Events,
        attributes: NDArray[np.int64],
        slots: NDArray[np.float64],
        pending: Pending | None,
    ) -> int:
        """Replace the profiles of some entities; returns the number of events that came too late."""
        profiles = self.profiles[entity]
        with self._engine_of_its_own() as engine:
            result = engine.apply(entity, events, attributes, self._states(entity, touched), slots, pending)
        for code, state in zip(touched.tolist(), result.states, strict=True):
            profiles[code] = state
        return result.late

    def _assemble(
        self, attributes: NDArray[np.int64], slots: NDArray[np.float64], vectors: NDArray[np.float32]
    ) -> None:
        with self._engine_of_its_own() as engine:
            engine.vectors_of_slots(attributes, slots, vectors)

    @contextmanager
    def _engine_of_its_own(self) -> Iterator[FeatureEngine]:
        engine = self._engines.get()
        try:
            yield engine
        finally:
            self._engines.put(engine)


def reference_amounts(history: History, rates: RateTable) -> NDArray[np.int64]:
    """Returns each payment's amount in minor units of the reference currency.

    It is UNKNOWN_AMOUNT where the currency has no rate.
    """
    return _converted(history, history.amount_minor, 0, UNKNOWN_AMOUNT, rates)


def declared_amounts(history: History, rates: RateTable) -> dict[str, NDArray[np.int64]]:
    """Returns by name the codes of each declared amount in the reference currency.

    It is 0 where the payment lacks the amount, or its currency has no rate.
    """
    return {
        field.name: _converted(history, history.numbers(field.name), number_code(0), 0, rates)
        for field in history.fields.declared
        if field.form is Form.MONEY
    }


def _converted(
    history: History, codes: NDArray[np.int64], zero: int, missing: int, rates: RateTable
) -> NDArray[np.int64]:
    """Convert amounts whose code is the amount plus `zero`. `missing` is the code of one that is not known."""
    names = history.currency.names.to_pylist()
    converted = np.zeros(len(history), dtype=np.int64)
    for part in parts_of(len(history)):
        amounts = np.maximum(codes[part] - zero, 0)
        found = rates.convert_columns(amounts, history.currency.codes[part], names, history.event_time_ms[part])
        converted[part] = np.where((codes[part] >= zero) & (found >= 0), found + zero, missing)
    return converted
