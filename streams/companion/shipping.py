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
   that has moved. At most one every `transaction_every_s`, because each costs the broker a marker in every
   partition, and after one with few decisions the next waits twice as long.
3. After the commit, move the positions on. At times write them beside the outbox: the writer reads there how much is
   not shipped yet, and shipped decisions that are old enough are deleted.
4. If a transaction fails, abort it and send its decisions again. A producer ends when another one has fenced it, or the
   broker has given up its transaction: then make a new one and go back to step 1.

What can go wrong:

- One outbox cannot be read, or holds a record that is no decision: it waits, or goes on behind it, and the others are
  shipped meanwhile (streams/companion/shipment.py).
- The broker is down: every round tries for a moment only, and the outboxes keep the decisions.
- The companion is killed after a commit: the cursors on Kafka are right, and nothing is sent twice.
- A power loss cuts the outbox short of its cursor: `Shipment._start` finds the first decision after the cursor.
- Two hosts run from one copied outbox: they fence each other. After more than 10 lost producers shipping fails, which
  ends the process (streams/companion/shipping_thread.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Protocol, TypeVar

from confluent_kafka import KafkaException

from paywarden.schemas.avro import Encoder
from paywarden.schemas.durability import boot_id
from paywarden.schemas.errors import BrokerUnavailable, PaywardenError
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.requests.trace_context import traceparent_of
from paywarden.scoring.state.outbox import OutboxSettings, strangers, workers
from paywarden.streams.companion.cursors import (
    TRANSACTION_TIMEOUT_MS,
    HostIdentity,
    ShippedTo,
    cursor_key,
    read_cursors,
)
from paywarden.streams.companion.shipment import Decision, Shipment, ShippingOptions
from paywarden.streams.kafka.client import reason_of
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC

_log = logging.getLogger(__name__)

# How long one round waits for the broker. A call that gives up is made again. librdkafka 2.16 fails at that if its own
# thread got no CPU for the whole wait: it takes the end of a commit that nobody waits for as the end of an abort, and
# ends the process (rd_kafka_txn_endtxn_complete checks which call is in progress). Calls of 50 ms met that under load.
_WAIT_S = 2.0
# More lost producers than this in a row, without a commit in between, are no accident.
_PRODUCERS_LOST_MAX = 10

_Answer = TypeVar("_Answer")


class TransactionalProducer(Protocol):
    """The methods of confluent_kafka.Producer that the shipper uses. Each may raise KafkaException."""

    def init_transactions(self, timeout: float) -> None: ...
    def begin_transaction(self) -> None: ...
    def produce(self, topic: str, value: bytes, *, key: str | bytes) -> None: ...
    def commit_transaction(self, timeout: float) -> None: ...
    def abort_transaction(self, timeout: float) -> None: ...


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
        self._topic, self._cursors_topic = topic, cursors_topic
        self._encode: Callable[[OutboxEntry], bytes] = lambda entry: encoder.encode(decision_of(entry, options.variant))
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
        # Entries set aside by shipments before the last lost producer, by worker; and folders that were named.
        self._set_aside: dict[str, int] = {}
        self._ignored: set[str] = set()
        self._keep_troubles: set[str] = set()

    def advance(self) -> int:
        """Run one round over all workers; returns how many decisions were sent. It waits 2 s for the broker at most.

        Raises BrokerUnavailable after more than 10 lost producers in a row.
        """
        try:
            return self._advance()
        except KafkaException as error:
            self._fail(error)
            return 0

    def due_in_s(self) -> float:
        """Returns in how many seconds there may be something to do; 0: any time."""
        is_waiting = self._state in (_State.NEW, _State.IDLE)
        return max(0.0, self._due - time.monotonic()) if is_waiting else 0.0

    def find_workers(self) -> None:
        """Look for new outboxes. It reads a directory, so do not call it in every round. Raises OutboxUnavailable."""
        for name in strangers(self._settings):
            if name not in self._ignored:
                _log.info("companion: %r beside the outboxes is no worker's outbox, and is left alone", name)
                self._ignored.add(name)
        if self._state is _State.NEW:
            return
        for worker in workers(self._settings):
            if worker not in self._shipments:
                self._add(worker)

    def waiting_bytes(self) -> dict[str, int]:
        """Returns by worker the bytes that are not shipped. It reads directories, so do not call it in every round."""
        return self._of_each(Shipment.waiting_bytes)

    def set_aside(self) -> dict[str, tuple[int, int]]:
        """Returns by worker how many entries are set aside, and how many bytes they have. It reads directories."""
        return self._of_each(Shipment.set_aside)

    def set_aside_counts(self) -> dict[str, int]:
        """Returns by worker how many entries were set aside since the start."""
        counts = dict(self._set_aside)
        for worker, shipment in self._shipments.items():
            counts[worker] = counts.get(worker, 0) + shipment.set_aside_count
        return counts

    def drain(self, timeout_s: float) -> None:
        """Ship everything that is in the outboxes now, for at most `timeout_s`, and store the positions."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._due = 0.0
            if self.advance() == 0 and self._state is _State.IDLE and self.under_way == 0:
                break
        for shipment in self._shipments.values():
            self._keep(shipment, at_once=True)

    def _of_each(self, ask: Callable[[Shipment], _Answer]) -> dict[str, _Answer]:
        """Returns the answer of each shipment, without those whose folders cannot be read."""
        answers = {}
        for worker, shipment in self._shipments.items():
            with suppress(PaywardenError, OSError):
                answers[worker] = ask(shipment)
        return answers

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
        self._set_aside, self._shipments = self.set_aside_counts(), {}
        self.find_workers()

    def _add(self, worker: str) -> None:
        """Begin to ship a worker's outbox. If it cannot be read, the next look for workers tries again."""
        remote = self._cursors.get(worker)
        try:
            shipment = Shipment(self._settings, worker, remote, options=self._options, encode=self._encode)
        except (PaywardenError, OSError) as error:
            if worker not in self._ignored:
                _log.error("companion: the outbox of %s waits, the others do not: %s", worker, error)
                self._ignored.add(worker)
            return
        _log.info("companion: shipping the outbox of %s", worker)
        self._ignored.discard(worker)
        self._shipments[worker] = shipment

    def _send(self, now: float) -> int:
        """Send a transaction with the new decisions and begin its commit; returns how many there are."""
        assert self._producer is not None
        decisions: list[Decision] = []
        for shipment in self._in_turn():
            decisions += self._read(shipment, self._options.transaction_max - len(decisions))
            self._keep(shipment)
        self._carried = [shipment for shipment in self._shipments.values() if shipment.is_moved]
        if not self._carried:
            return 0
        self._due = now + self._pause_s(len(decisions))
        self._producer.begin_transaction()
        # The transaction is open from here on, and any failure aborts it.
        self._state, self.under_way = _State.ABORTING, len(decisions)
        for key, value in decisions:
            self._producer.produce(self._topic, value, key=key)
        now_ms = time.time_ns() // 1_000_000
        for shipment in self._carried:
            shipped = ShippedTo(shipment.read_to, now_ms, boot_id())
            self._producer.produce(self._cursors_topic, shipped.to_bytes(), key=cursor_key(self._host, shipment.worker))
        self._state = _State.COMMITTING
        self._commit()
        return len(decisions)

    def _pause_s(self, count: int) -> float:
        """Returns how much later than a transaction of `count` decisions the next one begins, at the earliest."""
        options = self._options
        if count >= options.transaction_max:
            return 0.0
        return options.transaction_every_s * (2 if count < options.few else 1)

    def _read(self, shipment: Shipment, count_max: int) -> list[Decision]:
        """Read one outbox. If it cannot be read, it waits, and the others are shipped."""
        # A round that failed before its transaction has read decisions that it did not send.
        shipment.rewind()
        try:
            decisions = shipment.read(count_max)
        except (PaywardenError, OSError) as error:
            shipment.say(str(error))
            return []
        shipment.say("")
        return decisions

    def _keep(self, shipment: Shipment, *, at_once: bool = False) -> None:
        """Store a position, delete old decisions. If that fails, Kafka has the position, and the next call does it."""
        try:
            shipment.keep(at_once=at_once)
        except (PaywardenError, OSError) as error:
            if str(error) not in self._keep_troubles:
                _log.warning("companion: the outbox of %s: %s", shipment.worker, error)
                self._keep_troubles.add(str(error))

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
            self._keep(shipment)
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
            # The usual cause: the broker takes longer than a round waits.
            _log.debug("companion: shipping waits: %s", reason)
        else:
            self._lose_producer(reason)

    def _lose_producer(self, reason: str) -> None:
        self._lost_count += 1
        if self._lost_count > _PRODUCERS_LOST_MAX:
            raise BrokerUnavailable(f"decisions cannot be shipped (is there a copy of this host's outbox?): {reason}")
        self._say(f"the producer of decisions has ended and starts again: {reason}")
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
        "caller": entry.caller,
        "bundle_digest": entry.bundle_digest.hex(),
        "policy_digest": entry.policy_digest.hex(),
        "rollout": entry.rollout,
        "arm": entry.arm,
        "propensity": entry.propensity if entry.HasField("propensity") else 1.0,
        "profile_set": entry.profile_set,
        "latency_us": entry.latency_us if entry.HasField("latency_us") else None,
        "traceparent": traceparent_of(entry.trace),
    }
