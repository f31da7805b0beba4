"""From the outbox to the decisions topic: every decision, in order, and a note of how far that got.

Records are produced by an idempotent producer and acknowledged in any order over partitions; the cursor of a
worker moves to the end of the longest run without a gap. A crash between an acknowledgement and the cursor
sends a few decisions again, under their own decision_id, by which readers tell.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from confluent_kafka import KafkaError, Message, Producer
from google.protobuf.message import DecodeError

from schemas.avro import Encoder
from schemas.errors import BrokerUnavailable
from schemas.outbox_pb2 import OutboxEntry
from scoring.outbox import Cursor, OutboxDamaged, OutboxReader, OutboxSettings, workers

_log = logging.getLogger(__name__)

# Decisions under way to the broker, for each worker: about 5 MB. While the broker is away the outbox holds them.
UNDER_WAY_MAX = 10_000
READ_MAX = 1_000
# The cursor is synced to disk each time it is stored; a crash sends again what was acknowledged since.
CURSOR_EVERY_S = 0.2


class Shipment:
    """The shipping of one worker's outbox."""

    def __init__(
        self, settings: OutboxSettings, worker: str, *, producer: Producer, topic: str, encoder: Encoder
    ) -> None:
        self._reader = OutboxReader(settings, worker)
        self._cursor = Cursor(settings, worker)
        self._producer, self._topic, self._encoder = producer, topic, encoder
        self._read_to = self._reader.start(self._cursor)
        self._arrived_to = self._kept = self._read_to
        self._cursor_due = 0.0
        # The end of each record under way, in order; and those of them that are acknowledged.
        self._under_way: deque[int] = deque()
        self._acknowledged: set[int] = set()
        self._failure: KafkaError | None = None
        self.shipped = 0

    def advance(self) -> int:
        """Produce what is new, note what has arrived. Returns how many records were produced.

        Raises BrokerUnavailable when the producer has given up for good, OutboxDamaged when the log is not whole.
        """
        if self._failure is not None:
            raise BrokerUnavailable(f"decisions cannot be shipped: {self._failure.str()}")
        room = min(READ_MAX, UNDER_WAY_MAX - len(self._under_way))
        produced = 0
        for end, payload in self._reader.read(self._read_to, room) if room > 0 else ():
            if not self._produce(end, payload):
                break
            produced += 1
        self._note_arrived()
        if time.monotonic() >= self._cursor_due:
            self._keep_cursor()
        return produced

    @property
    def under_way(self) -> int:
        """Decisions given to the producer that the broker has not acknowledged, or only after one it has not."""
        return len(self._under_way)

    def waiting_bytes(self) -> int:
        """What the outbox holds that the broker has not acknowledged. Raises OutboxUnavailable."""
        # After a loss of power the log may end before its cursor.
        return max(0, self._reader.end() - self._arrived_to)

    def drain(self, timeout_s: float) -> None:
        """Wait for what is under way, at most `timeout_s`, and note it."""
        self._producer.flush(timeout_s)
        self._note_arrived()
        self._keep_cursor()

    def _produce(self, end: int, payload: bytes) -> bool:
        try:
            entry = OutboxEntry.FromString(payload)
        except DecodeError as error:
            raise OutboxDamaged("the outbox holds a record that is not a decision") from error
        try:
            self._producer.produce(
                self._topic,
                self._encoder.encode(decision_of(entry)),
                key=entry.request.payment_id,
                on_delivery=lambda error, _: self._on_delivery(end, error, _),
            )
        except BufferError:
            return False
        self._under_way.append(end)
        self._read_to = end
        return True

    def _on_delivery(self, end: int, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failure = error
        else:
            self._acknowledged.add(end)

    def _note_arrived(self) -> None:
        """Move past every record that is acknowledged and has none before it that is not."""
        while self._under_way and self._under_way[0] in self._acknowledged:
            self._arrived_to = self._under_way.popleft()
            self._acknowledged.remove(self._arrived_to)
            self.shipped += 1

    def _keep_cursor(self) -> None:
        self._cursor_due = time.monotonic() + CURSOR_EVERY_S
        if self._arrived_to != self._kept:
            self._cursor.store(self._arrived_to)
            self._reader.release(self._arrived_to)
            self._kept = self._arrived_to


class Shipper:
    """The shipping of every worker of this host. Workers that start later are found."""

    def __init__(self, settings: OutboxSettings, *, producer: Producer, topic: str, encoder: Encoder) -> None:
        self._settings, self._producer, self._topic, self._encoder = settings, producer, topic, encoder
        self._shipments: dict[str, Shipment] = {}

    def advance(self) -> int:
        """One round over all workers; returns how many decisions were produced."""
        self._producer.poll(0)
        return sum(shipment.advance() for shipment in self._shipments.values())

    def find_workers(self) -> None:
        """Look for outboxes that are new. Reads a directory: not for every round."""
        for worker in workers(self._settings):
            if worker not in self._shipments:
                _log.info("companion: shipping the outbox of %s", worker)
                self._shipments[worker] = Shipment(
                    self._settings, worker, producer=self._producer, topic=self._topic, encoder=self._encoder
                )

    @property
    def shipped(self) -> int:
        """Decisions acknowledged by the broker since the start."""
        return sum(shipment.shipped for shipment in self._shipments.values())

    @property
    def under_way(self) -> int:
        """Decisions that the broker has yet to acknowledge. How many are behind them only reading them would tell."""
        return sum(shipment.under_way for shipment in self._shipments.values())

    def waiting_bytes(self) -> dict[str, int]:
        """By worker, the bytes in its outbox that are not shipped. Reads directories: not for every round."""
        return {worker: shipment.waiting_bytes() for worker, shipment in self._shipments.items()}

    def drain(self, timeout_s: float) -> None:
        """Ship what is there now, wait for the broker, at most `timeout_s` for each worker."""
        while self.advance():
            self._producer.poll(0)
        for shipment in self._shipments.values():
            shipment.drain(timeout_s)


def decision_of(entry: OutboxEntry) -> dict[str, Any]:
    """The decision as it is on the topic (schemas/decisions.avsc)."""
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
    }
