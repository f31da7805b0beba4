"""Ship decisions from the outboxes to the decisions topic: every decision, in order, exactly once.

The shipper writes decisions and the cursors of their outboxes (streams/companion/cursors.py) in one Kafka transaction.
A reader of committed records sees both or neither. The transactional id belongs to the host, so the broker refuses
records that an earlier companion of this host still has on the way (fencing).

    outbox worker-0   …│ d41 d42 d43 │      one transaction:  d41 d42 d43 → decisions
                       ▲             ▲                        worker-0 = 4312 → outbox-cursors
                 shipped_to       read_to

1. Start: fence earlier companions (`init_transactions`), which also commits or aborts their open transaction. Then read
   the cursors: they say exactly which decisions are on the topic.
2. Send one transaction: the new decisions of every outbox, at most `transaction_max`, then the cursor of each outbox
   that has moved. At most one every TRANSACTION_EVERY_S, because each costs the broker a marker in every partition.
3. After the commit, move the positions on. At times write them beside the outbox: the writer reads there what is not
   shipped yet, and shipped decisions that are old enough are deleted.
4. If a transaction fails, abort it and send its decisions again. A producer ends when another one has fenced it, or the
   broker has given up its transaction: then make a new one and go back to step 1.

What can go wrong:

- The broker is down: every round tries for a moment only, and the outboxes keep the decisions.
- The companion is killed after a commit: the cursors on Kafka are right, and nothing is sent twice.
- A power loss cuts the outbox short of its cursor: `Shipment._start` finds the first decision after the cursor.
- Two hosts run from one copied outbox: they fence each other, and a companion ends after more than 10 lost producers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from confluent_kafka import KafkaException
from google.protobuf.message import DecodeError

from paywarden.schemas.avro import Encoder
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.state.outbox import Cursor, OutboxDamaged, OutboxReader, OutboxSettings, workers
from paywarden.streams.companion.cursors import (
    TRANSACTION_TIMEOUT_MS,
    HostIdentity,
    ShippedTo,
    boot_id,
    cursor_key,
    read_cursors,
)
from paywarden.streams.kafka.client import reason_of
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC

_log = logging.getLogger(__name__)

TRANSACTION_EVERY_S = 0.04
# Storing the cursor beside the outbox syncs it to disk, so it happens only this often.
CURSOR_EVERY_S = 0.2
# How long one round waits for the broker. The mirror waits for the same time.
_WAIT_S = 0.05
# More lost producers than this in a row, without a commit in between, are no accident.
_PRODUCERS_LOST_MAX = 10


class TransactionalProducer(Protocol):
    """The methods of confluent_kafka.Producer that the shipper uses. Each may raise KafkaException."""

    def init_transactions(self, timeout: float) -> None: ...
    def begin_transaction(self) -> None: ...
    def produce(self, topic: str, value: bytes, *, key: str | bytes) -> None: ...
    def commit_transaction(self, timeout: float) -> None: ...
    def abort_transaction(self, timeout: float) -> None: ...


@dataclass(frozen=True)
class ShippingOptions:
    """What the shipper keeps, what it adds to each decision, and how it is paced."""

    # How long the outbox keeps a decision after it is shipped.
    keep_s: float = 0.0
    # The name of what this host serves; it goes into every decision.
    variant: str = ""
    # At most this many decisions go into one transaction: about 5 MB, and a fraction of a second's work.
    transaction_max: int = 5_000
    # The pause after a failed start or a lost producer.
    again_after_s: float = 1.0


class Shipment:
    """One worker's outbox, with the positions up to which it is read and shipped."""

    def __init__(self, settings: OutboxSettings, worker: str, remote: ShippedTo | None, *, keep_s: float) -> None:
        self.worker = worker
        self._reader, self._cursor, self._keep_s = OutboxReader(settings, worker), Cursor(settings, worker), keep_s
        self.shipped_to = self.read_to = self._start(remote)
        # Whether the next transaction carries the cursor.
        self.is_moved = remote is None or remote.position != self.read_to
        self._kept: int | None = None
        self._keep_due = 0.0

    def read(self, count_max: int) -> list[OutboxEntry]:
        """Returns at most `count_max` new decisions. Raises OutboxDamaged, OutboxUnavailable."""
        entries = []
        for end, payload in self._reader.read(self.read_to, count_max):
            entries.append(_entry_of(payload))
            self.read_to, self.is_moved = end, True
        return entries

    def commit(self) -> None:
        """Note that everything read is on the topic."""
        self.shipped_to, self.is_moved = self.read_to, False

    def rewind(self) -> None:
        """Go back to the last commit: what was read since then is not on the topic."""
        self.read_to = self.shipped_to

    def keep(self, *, at_once: bool = False) -> None:
        """At times store the position beside the outbox and delete old decisions that are shipped."""
        now = time.monotonic()
        if not at_once and now < self._keep_due:
            return
        self._keep_due = now + CURSOR_EVERY_S
        if self.shipped_to != self._kept:
            self._cursor.store(self.shipped_to)
            self._kept = self.shipped_to
        self._reader.release(self.shipped_to, keep_s=self._keep_s)

    def waiting_bytes(self) -> int:
        """Returns how many bytes of the outbox are not on the topic. Raises OutboxUnavailable."""
        return max(0, self._reader.end() - self.shipped_to)

    def _start(self, remote: ShippedTo | None) -> int:
        """Returns the position to go on from: the cursor on Kafka, unless the outbox has lost those records.

        After a power loss or a restore from a copy, an outbox may end before the shipped position. Its writer has gone
        on from there, so the same positions now hold other decisions. The shipped ones were decided before the cursor
        was written, the new ones after it: the time tells them apart.
        """
        local = self._cursor.load()
        if remote is None or (local is not None and local > remote.position):
            return self._reader.start(self._cursor)
        if remote.boot_id == boot_id() and self._reader.end() >= remote.position:
            return remote.position
        position = self._reader.start(self._cursor)
        while records := self._reader.read(position, 1000):
            for end, payload in records:
                if end > remote.position or _entry_of(payload).decided_time_ms > remote.time_ms:
                    return position
                position = end
        return position


class _State(Enum):
    NEW = "new"
    IDLE = "idle"
    COMMITTING = "committing"
    ABORTING = "aborting"


class Shipper:
    """Ships the outboxes of all workers of this host; it finds workers that start later."""

    def __init__(
        self,
        settings: OutboxSettings,
        *,
        host: str,
        make_producer: Callable[[], TransactionalProducer],
        read_cursors: Callable[[], Mapping[str, ShippedTo]],
        topic: str,
        cursors_topic: str,
        encoder: Encoder,
        options: ShippingOptions,
    ) -> None:
        self._settings, self._host, self._options = settings, host, options
        self._make_producer, self._read_cursors = make_producer, read_cursors
        self._topic, self._cursors_topic, self._encoder = topic, cursors_topic, encoder
        self._producer: TransactionalProducer | None = None
        self._state = _State.NEW
        self._cursors: Mapping[str, ShippedTo] = {}
        self._shipments: dict[str, Shipment] = {}
        # The shipments whose cursors are in the open transaction.
        self._carried: list[Shipment] = []
        self._turns = 0
        self._due = 0.0
        self._lost_count = 0
        self._trouble = ""
        # Decisions in the open transaction, and decisions committed since the start.
        self.under_way = self.shipped = 0

    def advance(self) -> int:
        """Run one round over all workers; returns how many decisions were sent. It waits 50 ms for the broker at most.

        Raises BrokerUnavailable after more than 10 lost producers in a row, OutboxDamaged for a log that is not whole.
        """
        try:
            return self._advance()
        except KafkaException as error:
            self._fail(error)
            return 0

    def find_workers(self) -> None:
        """Look for new outboxes. It reads a directory, so do not call it in every round."""
        if self._state is _State.NEW:
            return
        for worker in workers(self._settings):
            if worker not in self._shipments:
                self._add(worker)

    def waiting_bytes(self) -> dict[str, int]:
        """Returns by worker the bytes that are not shipped. It reads directories, so do not call it in every round."""
        return {worker: shipment.waiting_bytes() for worker, shipment in self._shipments.items()}

    def drain(self, timeout_s: float) -> None:
        """Ship everything that is in the outboxes now, for at most `timeout_s`, and store the positions."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._due = 0.0
            if self.advance() == 0 and self._state is _State.IDLE and self.under_way == 0:
                break
        for shipment in self._shipments.values():
            shipment.keep(at_once=True)

    def _advance(self) -> int:
        now = time.monotonic()
        if self._state is _State.NEW:
            if now < self._due:
                return 0
            self._start()
        if self._state is _State.ABORTING:
            self._abort()
        if self._state is _State.COMMITTING:
            self._commit()
            return 0
        return self._send(now) if self._state is _State.IDLE and now >= self._due else 0

    def _start(self) -> None:
        if self._producer is None:
            self._producer = self._make_producer()
        self._producer.init_transactions(_WAIT_S)
        try:
            self._cursors = self._read_cursors()
        except BrokerUnavailable as error:
            self._say(str(error))
            self._producer, self._due = None, time.monotonic() + self._options.again_after_s
            return
        self._state = _State.IDLE
        # Also start the workers from before the lost producer again: the outcome of its transaction is known now.
        earlier_workers, self._shipments = list(self._shipments), {}
        for worker in earlier_workers:
            self._add(worker)
        self.find_workers()

    def _add(self, worker: str) -> None:
        _log.info("companion: shipping the outbox of %s", worker)
        remote = self._cursors.get(worker)
        self._shipments[worker] = Shipment(self._settings, worker, remote, keep_s=self._options.keep_s)

    def _send(self, now: float) -> int:
        """Send a transaction with the new decisions and begin its commit; returns how many there are."""
        assert self._producer is not None
        entries: list[OutboxEntry] = []
        for shipment in self._in_turn():
            # A round that failed before its transaction has read decisions that it did not send.
            shipment.rewind()
            entries += shipment.read(self._options.transaction_max - len(entries))
            shipment.keep()
        self._carried = [shipment for shipment in self._shipments.values() if shipment.is_moved]
        if not self._carried:
            return 0
        self._due = now + TRANSACTION_EVERY_S if len(entries) < self._options.transaction_max else now
        self._producer.begin_transaction()
        # The transaction is open from here on, and any failure aborts it.
        self._state, self.under_way = _State.ABORTING, len(entries)
        for entry in entries:
            value = self._encoder.encode(decision_of(entry, self._options.variant))
            self._producer.produce(self._topic, value, key=entry.request.payment_id)
        now_ms = time.time_ns() // 1_000_000
        for shipment in self._carried:
            shipped = ShippedTo(shipment.read_to, now_ms, boot_id())
            self._producer.produce(self._cursors_topic, shipped.to_bytes(), key=cursor_key(self._host, shipment.worker))
        self._state = _State.COMMITTING
        self._commit()
        return len(entries)

    def _in_turn(self) -> list[Shipment]:
        """Returns all shipments, another one first each time: a full outbox must not block the others."""
        self._turns += 1
        shipments = list(self._shipments.values())
        first = self._turns % max(1, len(shipments))
        return shipments[first:] + shipments[:first]

    def _commit(self) -> None:
        assert self._producer is not None
        self._producer.commit_transaction(_WAIT_S)
        for shipment in self._carried:
            shipment.commit()
            shipment.keep()
        self.shipped += self.under_way
        self._state, self.under_way, self._lost_count, self._trouble = _State.IDLE, 0, 0, ""

    def _abort(self) -> None:
        assert self._producer is not None
        self._producer.abort_transaction(_WAIT_S)
        for shipment in self._shipments.values():
            shipment.rewind()
        self._state, self.under_way = _State.IDLE, 0

    def _fail(self, error: KafkaException) -> None:
        """Choose by the error: abort, make a new producer, or try the same again."""
        kind, reason = error.args[0], reason_of(error)
        if kind.fatal():
            self._lose_producer(reason)
        elif kind.txn_requires_abort():
            self._say(f"a transaction has failed and is aborted: {reason}")
            self._state = _State.ABORTING
        elif kind.retriable():
            # The usual cause: it takes longer than a round waits.
            _log.debug("companion: shipping waits: %s", reason)
        else:
            self._lose_producer(reason)

    def _lose_producer(self, reason: str) -> None:
        self._lost_count += 1
        if self._lost_count > _PRODUCERS_LOST_MAX:
            raise BrokerUnavailable(f"decisions cannot be shipped (is there a copy of this host's outbox?): {reason}")
        self._say(f"the producer of decisions has ended and begins anew: {reason}")
        self._producer, self._state, self.under_way = None, _State.NEW, 0
        self._due = time.monotonic() + self._options.again_after_s

    def _say(self, trouble: str) -> None:
        """Log a trouble once, until a transaction is committed again."""
        if trouble != self._trouble:
            _log.warning("companion: %s", trouble)
            self._trouble = trouble


def shipper_of(
    settings: OutboxSettings,
    clients: KafkaClients,
    identity: HostIdentity,
    *,
    encoder: Encoder,
    options: ShippingOptions,
) -> Shipper:
    """Returns the shipper of this host to this cluster."""
    return Shipper(
        settings,
        host=identity.host,
        make_producer=lambda: clients.transactional_producer(
            f"{clients.settings.topic_prefix}paywarden-outbox-{identity.host}",
            linger_ms=5,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        ),
        read_cursors=lambda: read_cursors(clients, identity.host),
        topic=clients.topic("decisions"),
        cursors_topic=clients.topic(CURSORS_TOPIC),
        encoder=encoder,
        options=options,
    )


def _entry_of(payload: bytes) -> OutboxEntry:
    try:
        return OutboxEntry.FromString(payload)
    except DecodeError as error:
        raise OutboxDamaged("the outbox holds a record that is not a decision") from error


def decision_of(entry: OutboxEntry, variant: str = "") -> dict[str, Any]:
    """Returns the decision in the form of its topic (schemas/avsc/decisions.avsc)."""
    request, response = entry.request, entry.response
    optional = {
        name: getattr(request, name) if request.HasField(name) else None
        for name in ("device_id", "ip", "mcc", "country", "channel", "utc_offset_minutes")
    }
    return {
        "decision_id": response.decision_id,
        "decided_time_ms": entry.decided_time_ms,
        "payment_id": request.payment_id,
        "event_time_ms": request.event_time_ms,
        "card_id": request.card_id,
        "merchant_id": request.merchant_id,
        "amount_minor": request.amount_minor,
        "currency": request.currency,
        **optional,
        "score": response.score,
        "action": response.action,
        "reasons": list(response.reasons),
        "flags": list(response.flags),
        "model_version": response.model_version,
        "catalogue_digest": entry.catalogue_digest,
        "vector": entry.vector,
        "profile_age_ms": response.profile_age_ms if response.HasField("profile_age_ms") else None,
        "variant": variant,
    }
