"""Run a history through the kernel in time order: the vectors its payments had when they were made.

Payments and outcomes are merged by the time they became known, payments first where the times are equal, and
worked off in chunks. Within a chunk the events of one entity are brought together (they never depend on
another entity's), so a profile is unpacked once a chunk, stays in the processor's cache, and memory is bounded
by the profiles and one chunk, not by the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features import kernel
from features.engine import Events, FeatureEngine
from features.history import History
from features.keys import entity_column
from features.money import RateTable
from features.rows import HistoryRows

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
    """Changes of a payment's known label, in the order they became known. All shape (changes,).

    `before` is the first payment that is later than the change; `weight` is +1 for a fraud, -1 for one taken
    back. Outcomes that change nothing (genuine ones, mostly) are not among them.
    """

    payment: NDArray[np.int64]
    before: NDArray[np.int64]
    weight: NDArray[np.int64]


def label_changes(history: History) -> Labels:
    """What outcomes change: a repeated one nothing, a corrected one takes back what it corrects."""
    # Stable: outcomes of one payment stay in the order they became known.
    order = np.argsort(history.outcome_payment, kind="stable")
    payment = history.outcome_payment[order]
    fraud = history.outcome_fraud[order].astype(np.int64)
    previous = np.zeros_like(fraud)
    same = payment[1:] == payment[:-1]
    previous[1:][same] = fraud[:-1][same]
    changed = np.flatnonzero(fraud != previous)
    known_ms = history.outcome_time_ms[order][changed]
    known_order = np.argsort(known_ms, kind="stable")
    changed, known_ms = changed[known_order], known_ms[known_order]
    before = np.searchsorted(history.event_time_ms, known_ms, side="right")
    return Labels(payment[changed], before.astype(np.int64), (fraud - previous)[changed])


class Passage:
    """A walk through a history; `profiles[entity][code]` are the packed profiles so far, None when unknown."""

    def __init__(self, history: History, engine: FeatureEngine, rates: RateTable) -> None:
        """Raises InvalidEvent when the history holds a currency there is no rate for."""
        self._history = history
        self._engine = engine
        self._labels = label_changes(history)
        amount = rates.convert_columns(
            history.amount_minor, history.currency.codes, history.currency.names.to_pylist(), history.event_time_ms
        )
        self.rows = HistoryRows(history, amount)
        self.amounts = amount
        """Each payment's amount in minor units of the reference currency, shape (payments,)."""
        plan = engine.plan
        self.entities = [
            entity_column(history, name, fields)
            for name, fields in zip(plan.entity_names, plan.entity_keys, strict=True)
        ]
        self.profiles: list[list[bytes | None]] = [[None] * entities.count for entities in self.entities]
        self._labels_done = 0

    def chunks(
        self,
        *,
        first: int = 0,
        last: int | None = None,
        rows: int = CHUNK_ROWS,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[Chunk]:
        """The payments `first` to `last` (exclusive) in order; those before only warm the profiles up.

        Outcomes known by then are worked in. `progress` gets rows done, those before `first` too.
        """
        stop = len(self._history) if last is None else last
        for start in range(0, stop, rows):
            chunk = self._advance(start, min(stop, start + rows))
            if progress is not None:
                progress(chunk.last - chunk.first)
            if chunk.last > first:
                begin = max(first, chunk.first)
                yield Chunk(begin, chunk.last, chunk.vectors[begin - chunk.first :], chunk.late)

    def finish(self) -> None:
        """Work in the outcomes that are later than every payment."""
        self._advance(len(self._history), len(self._history), labels_stop=len(self._labels.payment))

    def _advance(self, first: int, last: int, labels_stop: int | None = None) -> Chunk:
        if labels_stop is None:
            # A label goes before the payment `before`; one that goes after the last payment waits.
            labels_stop = int(np.searchsorted(self._labels.before, last, side="left"))
        labels = slice(self._labels_done, labels_stop)
        self._labels_done = labels_stop
        slots = self._engine.new_slots(last - first)
        # Payments of the chunk first, then those the labels are of.
        payments = np.concatenate((np.arange(first, last), self._labels.payment[labels]))
        attributes = self.rows.of(payments)
        late = sum(
            self._advance_entity(entity, first, last, labels, attributes, slots) for entity in range(len(self.entities))
        )
        vectors = self._engine.vectors_of_slots(attributes[: last - first], slots)
        return Chunk(first, last, vectors, late)

    def _advance_entity(
        self,
        entity: int,
        first: int,
        last: int,
        labels: slice,
        attributes: NDArray[np.int64],
        slots: NDArray[np.float64],
    ) -> int:
        """Bring one kind of entity up to payment `last`; returns the events that came too late."""
        codes = self.entities[entity].codes
        label_payment, label_before = self._labels.payment[labels], self._labels.before[labels]
        payment = np.concatenate((np.arange(first, last), label_payment))
        # Even places are labels, odd ones payments: label `before` r stands before payment r.
        place = np.concatenate((2 * np.arange(first, last) + 1, 2 * label_before))
        code = codes[payment]
        order = np.lexsort((place, code))
        order = order[np.searchsorted(code[order], 0) :]  # codes below 0: the payment has no such entity
        is_label = order >= last - first
        entities, starts = np.unique(code[order], return_index=True)
        weight = np.ones(len(order), dtype=np.int64)
        weight[is_label] = self._labels.weight[labels][order[is_label] - (last - first)]
        unchecked = np.full(len(order), -1, dtype=np.int64)
        events = Events(
            groups=np.append(starts, len(order)).astype(np.int64),
            kind=np.where(is_label, kernel.LABEL, kernel.PAYMENT).astype(np.uint8),
            payment=order,
            weight=weight,
            source=unchecked,
            offset=unchecked,
            row=np.where(is_label, -1, order),
        )
        profiles, touched = self.profiles[entity], entities.tolist()
        states = [profiles[code] for code in touched]
        result = self._engine.apply(entity, events, attributes, states, slots)
        for code, state in zip(touched, result.states, strict=True):
            profiles[code] = state
        return result.late
