"""One micro-batch of payments and outcomes worked into profiles: values in, values out, no Kafka, no store.

    1. read     what is kept about the batch's payments (`record_keys`)
    2. join     `join`: payments that are new or replayed, and labels that outcomes change
    3. read     the profiles they touch (`Joined.profile_keys`)
    4. apply    `apply`: every touched profile once, however many of the batch's events it got

A record says which Kafka offset it came from, a profile which offsets it contains. So the same batch again
gives the same bytes, and part of it written before a crash does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from features import kernel
from features.engine import Events, FeatureEngine
from schemas.store_pb2 import LabelChange, PaymentRecord


@dataclass(frozen=True, slots=True)
class Position:
    """Where an event came from: `source` is a number for topic and partition together."""

    source: int
    offset: int


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """A payment as profiles need it. `attributes`: its row (features/attributes.py).

    `keys`: the store key of each kind of entity, empty where the payment has none.
    """

    position: Position
    payment_id: str
    attributes: Sequence[int]
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class OutcomeEvent:
    position: Position
    payment_id: str
    is_fraud: bool


@dataclass(frozen=True, slots=True)
class _Change:
    """One event of one entity. `payment` is the row of its payment among the batch's attributes."""

    kind: int
    payment: int
    weight: int
    position: Position


@dataclass
class Joined:
    """What a batch does. `orphans` are outcomes of payments that are not known."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    attributes: list[Sequence[int]] = field(default_factory=list)
    changes: list[dict[bytes, list[_Change]]] = field(default_factory=list)
    duplicates: int = 0
    orphans: list[OutcomeEvent] = field(default_factory=list)

    def profile_keys(self) -> list[bytes]:
        """Every profile that is touched, each once, grouped by kind of entity."""
        return [key for by_key in self.changes for key in by_key]


@dataclass(frozen=True)
class Applied:
    """`profiles`: the new states by key. `late` counts events that came too late for some of their tiles."""

    profiles: dict[bytes, bytes]
    replayed: int
    late: int


def record_key(payment_id: str) -> bytes:
    """The store key of what is kept about a payment."""
    return b"payment:" + payment_id.encode()


def join(
    payments: Sequence[PaymentEvent],
    outcomes: Sequence[OutcomeEvent],
    known: Mapping[bytes, bytes],
    entity_count: int,
) -> Joined:
    """Decide what each event changes. `known`: what is kept about the payments named, by `record_key`."""
    joined = Joined(changes=[{} for _ in range(entity_count)])
    records = {key: PaymentRecord.FromString(value) for key, value in known.items()}
    for payment in payments:
        _join_payment(payment, records, joined)
    for outcome in outcomes:
        _join_outcome(outcome, records, joined)
    return joined


def _join_payment(payment: PaymentEvent, records: dict[bytes, PaymentRecord], joined: Joined) -> None:
    key = record_key(payment.payment_id)
    position = payment.position
    record = records.get(key)
    if record is None:
        record = PaymentRecord(
            source=position.source,
            offset=position.offset,
            attributes=payment.attributes,
            keys=[entity_key.decode() for entity_key in payment.keys],
        )
        records[key] = record
        joined.records[key] = record.SerializeToString()
    elif (record.source, record.offset) != (position.source, position.offset):
        joined.duplicates += 1
        return
    change = _Change(kernel.PAYMENT, len(joined.attributes), 1, position)
    joined.attributes.append(payment.attributes)
    for by_key, entity_key in zip(joined.changes, payment.keys, strict=True):
        if entity_key:
            by_key.setdefault(entity_key, []).append(change)


def _join_outcome(outcome: OutcomeEvent, records: dict[bytes, PaymentRecord], joined: Joined) -> None:
    key = record_key(outcome.payment_id)
    record = records.get(key)
    if record is None:
        joined.orphans.append(outcome)
        return
    weight = _weight_of(outcome, record)
    if weight == 0:
        return
    joined.records[key] = record.SerializeToString()
    change = _Change(kernel.LABEL, len(joined.attributes), weight, outcome.position)
    missing = [0] * (kernel.ATTRIBUTE_COUNT - len(record.attributes))
    joined.attributes.append([*record.attributes, *missing])
    for by_key, entity_key in zip(joined.changes, record.keys, strict=True):
        if entity_key:
            by_key.setdefault(entity_key.encode(), []).append(change)


def _weight_of(outcome: OutcomeEvent, record: PaymentRecord) -> int:
    """How this outcome changes the payment's label; noted in `record` when it is news.

    A replayed outcome must give what it gave the first time, for profiles that do not have it yet. Outcomes of
    one payment come from one partition in order, so an offset not above the last noted one is a replay.
    """
    position = outcome.position
    for change in record.label_changes:
        if change.source == position.source and position.offset <= change.offset:
            return change.weight if position.offset == change.offset else 0
    label = sum(change.weight for change in record.label_changes)
    weight = int(outcome.is_fraud) - label
    if weight != 0:
        record.label_changes.append(LabelChange(source=position.source, offset=position.offset, weight=weight))
    return weight


def apply(joined: Joined, profiles: Mapping[bytes, bytes], engine: FeatureEngine) -> Applied:
    """The touched profiles as they are after the batch. Raises UnreadableProfile."""
    states: dict[bytes, bytes] = {}
    event_count = applied = late = 0
    no_slots = engine.new_slots(0)
    attributes = np.array(joined.attributes, dtype=np.int64).reshape(-1, kernel.ATTRIBUTE_COUNT)
    for entity, by_key in enumerate(joined.changes):
        if not by_key:
            continue
        events = _events_of(by_key)
        result = engine.apply(entity, events, attributes, [profiles.get(key) for key in by_key], no_slots)
        states.update(zip(by_key, result.states, strict=True))
        event_count += len(events.kind)
        applied += int(result.applied.sum())
        late += result.late
    return Applied(states, replayed=event_count - applied, late=late)


def _events_of(by_key: Mapping[bytes, Sequence[_Change]]) -> Events:
    changes = [change for group in by_key.values() for change in group]
    lengths = [len(group) for group in by_key.values()]
    columns = np.array(
        [(c.payment, c.weight, c.position.source, c.position.offset) for c in changes], dtype=np.int64
    ).T.copy()
    return Events(
        groups=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        kind=np.array([change.kind for change in changes], dtype=np.uint8),
        payment=columns[0],
        weight=columns[1],
        source=columns[2],
        offset=columns[3],
        row=np.full(len(changes), -1, dtype=np.int64),
    )
