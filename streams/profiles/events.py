"""Payments and outcomes worked into profiles: values in, values out, no Kafka, no store.

    1. read     what is kept about the payments (`record_key`)
    2. join     `join`: events of payments that are new or replayed, and of labels that outcomes change

  and where an entity's profile is owned, which may be another process (streams/profiles/repartition.py):

    3. read     the profiles the events touch
    4. apply    `apply`: every touched profile once, however many of the batch's events it got

A record says which Kafka offset it came from, a profile which offsets it contains. So the same batch again
gives the same bytes, and part of it written before a crash does no harm.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.schemas.proto.store_pb2 import LabelChange, PaymentRecord

# Columns of an event's row: what happened, where it came from, when that reached Kafka, and its payment.
KIND, WEIGHT, SOURCE, OFFSET, ARRIVED_MS, ATTRIBUTES_AT = range(6)
ROW_WIDTH = ATTRIBUTES_AT + kernel.ATTRIBUTE_COUNT

# A topic's partition as profiles note it: one number for both. Payments have even ones.
_KINDS_OF_SOURCES = 2


def payments_source(partition: int) -> int:
    """The number of a partition of `payments`."""
    return _KINDS_OF_SOURCES * partition


def outcomes_source(partition: int) -> int:
    """The number of a partition of `outcomes`."""
    return _KINDS_OF_SOURCES * partition + 1


def source_name(source: int) -> str:
    """`payments/3` for what the two above give."""
    topic = "outcomes" if source % _KINDS_OF_SOURCES else "payments"
    return f"{topic}/{source // _KINDS_OF_SOURCES}"


class Position(NamedTuple):
    """Where an event came from: `source` is a number for topic and partition together."""

    source: int
    offset: int


class PaymentEvent(NamedTuple):
    """A payment as profiles need it. `attributes`: its row (features/catalogue/attributes.py).

    `keys`: the store key of each kind of entity, empty where the payment has none. `arrived_ms`: when it reached Kafka.
    """

    position: Position
    payment_id: str
    attributes: Sequence[int]
    keys: tuple[bytes, ...]
    arrived_ms: int = 0


class OutcomeEvent(NamedTuple):
    """What became known of a payment."""

    position: Position
    payment_id: str
    is_fraud: bool
    arrived_ms: int = 0


@dataclass(frozen=True, slots=True)
class EntityEvents:
    """Events of one kind of entity, in the order they were made.

    `keys`: whose each is. `rows`: shape (events, ROW_WIDTH), int64.
    """

    keys: list[bytes]
    rows: NDArray[np.int64]


@dataclass
class Joined:
    """What a batch does. `orphans` are outcomes of payments that are not known.

    Of each event, `rows` has its row and `keys` the store key of each kind of entity, empty for none.
    """

    entity_count: int
    records: dict[bytes, bytes] = field(default_factory=dict)
    rows: list[list[int]] = field(default_factory=list)
    keys: list[Sequence[bytes]] = field(default_factory=list)
    duplicates: int = 0
    orphans: list[OutcomeEvent] = field(default_factory=list)

    def of_entities(self) -> list[EntityEvents]:
        """The same events by kind of entity."""
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, ROW_WIDTH)
        by_entity = []
        for entity in range(self.entity_count):
            column = [keys[entity] for keys in self.keys]
            if all(column):
                by_entity.append(EntityEvents(column, rows))
            else:
                present = [number for number, key in enumerate(column) if key]
                by_entity.append(EntityEvents([column[number] for number in present], rows[present]))
        return by_entity


@dataclass(frozen=True)
class ProfileUpdates:
    """The new state of each touched profile of one kind of entity.

    `arrived_ms`: when the newest of the events reached Kafka. `late` counts events that came too late
    for some of their tiles, `replayed` those that had been applied before.
    """

    profiles: dict[bytes, bytes]
    arrived_ms: int
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
    joined = Joined(entity_count)
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
    joined.rows.append(
        [kernel.PAYMENT, 1, position.source, position.offset, payment.arrived_ms, *payment.attributes],
    )
    joined.keys.append(payment.keys)


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
    position = outcome.position
    missing = [0] * (kernel.ATTRIBUTE_COUNT - len(record.attributes))
    joined.rows.append(
        [kernel.LABEL, weight, position.source, position.offset, outcome.arrived_ms, *record.attributes, *missing]
    )
    # What an older catalogue knew of fewer kinds of entities.
    unknown = [b""] * (joined.entity_count - len(record.keys))
    joined.keys.append([*(entity_key.encode() for entity_key in record.keys), *unknown])


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


def apply(entity: int, events: EntityEvents, profiles: Mapping[bytes, bytes], engine: FeatureEngine) -> ProfileUpdates:
    """The touched profiles of one kind of entity as they are after the events. Raises UnreadableProfile."""
    if not events.keys:
        return ProfileUpdates({}, 0, replayed=0, late=0)
    numbers: dict[bytes, int] = {}
    codes = np.array([numbers.setdefault(key, len(numbers)) for key in events.keys])
    # Stable: events of a profile stay in order, which is the order of each source's offsets.
    order = np.argsort(codes, kind="stable")
    groups = np.searchsorted(codes[order], np.arange(len(numbers) + 1)).astype(np.int64)
    columns = events.rows[order, :ATTRIBUTES_AT].T.copy()
    kernel_events = Events(
        groups=groups,
        kind=columns[KIND].astype(np.uint8),
        payment=order.astype(np.int64),
        weight=columns[WEIGHT],
        source=columns[SOURCE],
        offset=columns[OFFSET],
        row=np.full(len(order), -1, dtype=np.int64),
    )
    attributes = np.ascontiguousarray(events.rows[:, ATTRIBUTES_AT:])
    states = [profiles.get(key) for key in numbers]
    result = engine.apply(entity, kernel_events, attributes, states, engine.new_slots(0))
    return ProfileUpdates(
        dict(zip(numbers, result.states, strict=True)),
        int(columns[ARRIVED_MS].max()),
        replayed=len(order) - int(result.applied.sum()),
        late=result.late,
    )


def merged(parts: Sequence[EntityEvents]) -> EntityEvents:
    """The events of one part after the other."""
    if len(parts) == 1:
        return parts[0]
    keys = list(itertools.chain.from_iterable(part.keys for part in parts))
    rows = [part.rows for part in parts] or [np.empty((0, ROW_WIDTH), dtype=np.int64)]
    return EntityEvents(keys, np.concatenate(rows))
