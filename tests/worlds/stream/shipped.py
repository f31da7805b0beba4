"""A shipper with an outbox, and a broker in memory whose calls fail on request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.streams.companion.cursors import ShippedTo
from paywarden.streams.companion.shipment import ShippingOptions
from paywarden.streams.companion.shipping import Shipper


class FakeBroker:
    """Keeps committed records, and how long each call was ready to wait, in seconds.

    `fails` has, by the name of a call, the errors that its next calls raise.
    """

    def __init__(self) -> None:
        self.decisions: list[str] = []
        self.cursors: dict[str, ShippedTo] = {}
        self.fails: dict[str, list[KafkaException]] = {}
        self.producers = 0
        self.waits_s: list[float] = []

    def producer(self) -> FakeProducer:
        self.producers += 1
        return FakeProducer(self)

    def call(self, name: str) -> None:
        if self.fails.get(name):
            raise self.fails[name].pop(0)


class FakeProducer:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._open: list[tuple[str, bytes, str | bytes]] = []

    def init_transactions(self, timeout: float) -> None:
        self._broker.waits_s.append(timeout)
        self._broker.call("init")

    def begin_transaction(self) -> None:
        self._broker.call("begin")
        self._open = []

    def produce(self, topic: str, value: bytes, *, key: str | bytes) -> None:
        self._broker.call("produce")
        self._open.append((topic, value, key))

    def commit_transaction(self, timeout: float) -> None:
        self._broker.waits_s.append(timeout)
        self._broker.call("commit")
        for topic, value, key in self._open:
            if isinstance(key, str):
                assert topic == "decisions"
                self._broker.decisions.append(key)
            else:
                self._broker.cursors[key.decode().removeprefix("host/")] = ShippedTo.from_bytes(value)
        self._open = []
        self._broker.call("committed")

    def abort_transaction(self, timeout: float) -> None:
        self._broker.waits_s.append(timeout)
        self._broker.call("abort")
        self._open = []


class World:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = replace(OutboxSettings(directory=str(folder)), **settings)
        self.broker = FakeBroker()
        self.writer = OutboxWriter(self.settings, "worker-0")
        self.shipper = self.new_shipper()

    def new_shipper(
        self,
        *,
        transaction_max: int = 5_000,
        keep_s: float = 0.0,
        damage_confirm_s: float = 0.0,
        transaction_every_s: float = 0.5,
    ) -> Shipper:
        return Shipper(
            self.settings,
            host="host",
            make_producer=self.broker.producer,
            read_cursors=lambda: dict(self.broker.cursors),
            topic="decisions",
            cursors_topic="outbox-cursors",
            encoder=Encoder("decisions", LocalSchemaIds().id_of("decisions")),
            options=ShippingOptions(
                keep_s=keep_s,
                transaction_max=transaction_max,
                again_after_s=0.0,
                damage_confirm_s=damage_confirm_s,
                transaction_every_s=transaction_every_s,
            ),
        )

    def decide(self, *payment_ids: str, decided_time_ms: int = 1) -> list[int]:
        return [self.writer.append(entry(payment_id, decided_time_ms)) for payment_id in payment_ids]

    def settle(self) -> None:
        """Ship everything, and store the positions beside the outboxes."""
        self.rounds()
        self.shipper.drain(5)

    def rounds(self, count: int = 5) -> None:
        for _ in range(count):
            self.shipper._due = 0.0
            self.shipper.find_workers()
            self.shipper.advance()


def entry(payment_id: str, decided_time_ms: int) -> bytes:
    return OutboxEntry(
        request=ScoreRequest(payment_id=payment_id),
        response=ScoreResponse(action="approve"),
        decided_time_ms=decided_time_ms,
    ).SerializeToString()
