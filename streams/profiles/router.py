"""The first half of the stream: turn payments and outcomes into events, and send them to the profiles' owners.

    payment p1 ─► store: payment:p1 (its offset, attributes, keys) ─► frames for card c, merchant m, device d

The router writes the payment's record to the store before it sends the events. After a crash between the two the same
records come again. Their offsets in the store show that they are a replay and not a duplicate payment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from paywarden.features import kernel
from paywarden.features.profiles.payment_tags import PaymentTags
from paywarden.features.profiles.plan import Plan
from paywarden.features.stores.base import ABSENT, ProfileStore, StoreConflict
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.decoder import EventDecoder
from paywarden.streams.profiles.events import (
    ATTRIBUTES_AT,
    ROW_WIDTH,
    EntityEvents,
    Joined,
    OutcomeEvent,
    RecordLayout,
)
from paywarden.streams.profiles.guards.broker_clock import BrokerClock
from paywarden.streams.profiles.payment_columns import PaymentColumns, PaymentEvent, Position
from paywarden.streams.profiles.repartition import encode_frame, frames_of

_DAY_S = 86_400
_NO_EVENTS = EntityEvents([], np.empty((0, ROW_WIDTH), dtype=np.int64))


@dataclass
class Decoded:
    """The events of a batch. `refused`: unusable records with the reason; `origin`: the record of each outcome."""

    payments: Sequence[PaymentEvent] = ()
    outcomes: list[OutcomeEvent] = field(default_factory=list)
    origin: dict[Position, Record] = field(default_factory=dict)
    refused: list[tuple[Record, str]] = field(default_factory=list)


class Router:
    """Decodes records, joins outcomes to payments, stores both and sends events. The caller flushes, then commits."""

    def __init__(
        self,
        *,
        intake: EventDecoder,
        store: ProfileStore,
        sender: Sender,
        plan: Plan,
        routes: Mapping[str, tuple[str, int]],
        outcome_days: int,
        clock: BrokerClock,
        names_payments: bool = False,
    ) -> None:
        """`routes`: by kind of entity, its repartition topic on the cluster and the number of its partitions.

        `clock` hears the broker's time of each frame. `names_payments`: whether events carry the tags of payments, for
        overlays.
        """
        self._tag_of = PaymentTags(plan.key).of if names_payments else None
        self._intake, self._store, self._sender, self._clock = intake, store, sender, clock
        self._entity_count = plan.entity_count
        self._routes = [routes[name] for name in plan.entity_names]
        self._ttl_s = outcome_days * _DAY_S
        # Whether payments' records are read before they are written: after a batch with a payment that was known.
        self._reads_first = False
        self.payments_base = self.outcomes_base = 0
        """The numbers added to the stored offsets of payments and outcomes (streams/kafka/source_register.py)."""
        self.sent: list[Record] = []
        """The frames that the broker has, as their owners read them, in order. The caller removes them."""
        self._layout = RecordLayout(plan.fields, counts_labels=plan.counts_labels)
        declared = range(kernel.ATTRIBUTE_COUNT + 1, plan.row_width, 2)
        identities = (*range(kernel.CODE_COUNT, kernel.ATTRIBUTE_COUNT), *declared)
        self._unused = [
            [ATTRIBUTES_AT + column for column in identities if column not in used] for used in plan.entity_identities
        ]

    def decode(
        self,
        payments: Sequence[Record],
        outcomes: Sequence[Record],
        now_ms: int,
        arrived_ms: Mapping[tuple[int, int], int] = MappingProxyType({}),
    ) -> Decoded:
        """Returns the events of these records, and the records that are refused.

        `arrived_ms`: by partition and offset, when payments reached Kafka whose timestamp is not their arrival. Whether
        a payment's own time is within bounds still goes by the timestamp, so that each reading has the same result.
        """
        events, refused = self._intake.columns(payments, now_ms, self.payments_base)
        decoded = Decoded(events, refused=[(payments[number], str(error)) for number, error in refused.items()])
        if arrived_ms:
            good = [record for number, record in enumerate(payments) if number not in refused]
            for number, record in enumerate(good):
                arrived = arrived_ms.get((record.partition, record.offset))
                if arrived is not None:
                    events.arrived_ms[number] = arrived
        for record in outcomes:
            position = Position(batch.outcomes_source(record.partition), self.outcomes_base + record.offset)
            try:
                decoded.outcomes.append(self._intake.outcome(record.value, position, min(record.timestamp_ms, now_ms)))
                decoded.origin[position] = record
            except InvalidEvent as error:
                decoded.refused.append((record, str(error)))
        return decoded

    def keep(self, decoded: Decoded, confirm: Callable[[], object] = lambda: None) -> Joined:
        """Join the events to the payments' records in the store, and write new and changed records.

        Nearly all payments are new, so their records are written without being read, each only if there is none. If
        there is one, all are read, and the next batch reads first as well.

        If outcomes have no payment, `confirm` is called before anything is written. Its errors go to the caller.
        A record that another worker has changed since the read is not overwritten. Raises StoreUnavailable or
        StoreConflict; the caller may always try again.
        """
        if not self._reads_first:
            try:
                return self._keep(decoded, confirm, reads_payments=False)
            except StoreConflict:
                # Some payments are known: they came again, or an earlier try of this batch wrote a part.
                self._reads_first = True
        return self._keep(decoded, confirm, reads_payments=True)

    def _keep(self, decoded: Decoded, confirm: Callable[[], object], *, reads_payments: bool) -> Joined:
        """Without `reads_payments`, a payment without an outcome is taken for a new one. The store knows better."""
        record_keys = _record_keys(decoded.payments)
        read = [batch.record_key(event.payment_id) for event in decoded.outcomes]
        known, versions = read_for_update(self._store, [*record_keys, *read] if reads_payments else read)
        joined = batch.join(decoded.payments, decoded.outcomes, known, self._entity_count, self._layout, self._tag_of)
        if joined.orphans:
            confirm()
        # A record that has this batch's changes already is written once more: features/stores/base.py says why.
        if records := known | joined.records:
            if not reads_payments:
                versions = dict.fromkeys(records, ABSENT) | versions
            self._store.write(records, ttl_s=self._ttl_s, versions=versions)
        if reads_payments and known.keys().isdisjoint(record_keys):
            self._reads_first = False
        return joined

    def send(self, joined: Joined) -> None:
        """Queue the events for their owners. Raises BrokerUnavailable."""
        for (topic, partition_count), events, unused in zip(
            self._routes, joined.of_entities(), self._unused, strict=True
        ):
            # Hashes do not compress, and zeros do.
            for partition, frame in frames_of(events, partition_count, unused):
                self._send(topic, partition, frame)

    def _send(self, topic: str, partition: int, frame: bytes) -> None:
        sent_ms = self._clock.clock_ms()

        def note(offset: int, stamp_ms: int) -> None:
            self._clock.heard(stamp_ms, sent_ms)
            self.sent.append(Record(topic, partition, offset, None, frame, 0, None))

        self._sender.send(topic, frame, key=None, partition=partition, on_sent=note)

    def ask_time(self) -> None:
        """Send a frame without events, for the broker's time in its acknowledgement. Raises BrokerUnavailable."""
        topic, partition_count = self._routes[0]
        self._send(topic, 0, encode_frame(_NO_EVENTS, partition_count))


def _record_keys(payments: Sequence[PaymentEvent]) -> list[bytes]:
    if isinstance(payments, PaymentColumns):
        return payments.record_keys
    return [batch.record_key(payment.payment_id) for payment in payments]


def read_for_update(store: ProfileStore, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], dict[bytes, int]]:
    """Returns the values of these keys, and the version of every key, absent ones included. Raises StoreUnavailable."""
    unique = list(dict.fromkeys(keys))
    versioned = store.read_versioned(unique)
    values = {key: value for key, (value, _) in zip(unique, versioned, strict=True) if value is not None}
    return values, {key: version for key, (_, version) in zip(unique, versioned, strict=True)}
