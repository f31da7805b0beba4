"""Ship decisions from outboxes to a real broker: a reader of committed records sees each exactly once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.durability import boot_id
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.streams.companion.cursors import HostIdentity, ShippedTo, cursor_key, read_cursors
from paywarden.streams.companion.shipment import ShippingOptions
from paywarden.streams.companion.shipping import Shipper, shipper_of
from paywarden.streams.kafka.admin import make_admin, partitions_of, stable_end_offsets, written_end_offsets
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import make_transactional_producer
from paywarden.streams.kafka.reading import consume, make_consumer
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from tests.patience import PATIENCE_S
from tests.services.product.processes import wait_until
from tests.services.servers.kafka import QUICK_RETURN, KafkaServer
from tests.unit.scoring.state.outboxes import append_all


@pytest.fixture
def kafka_settings(kafka: KafkaServer, topic_prefix: str) -> KafkaSettings:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
    create_topics(settings, TopicSettings(partitions=4), [])
    return settings


class World:
    """An outbox with its writer, and companions that ship it one after the other."""

    def __init__(self, folder: Path, kafka: KafkaSettings) -> None:
        self.kafka, self.clients = kafka, KafkaClients.of(kafka)
        self.settings = OutboxSettings(directory=str(folder))
        self.writer = OutboxWriter(self.settings, "worker-0")
        self.identity = HostIdentity(folder)
        self.shipper = self.new_shipper()
        self.decided: list[str] = []

    def new_shipper(self) -> Shipper:
        encoder = Encoder("decisions", LocalSchemaIds().id_of("decisions"))
        return shipper_of(self.settings, self.clients, self.identity, encoder=encoder, options=ShippingOptions())

    def decide(self, count: int) -> None:
        ids = [f"p{len(self.decided) + number}" for number in range(count)]
        self.decided += ids
        append_all(
            self.writer,
            [
                OutboxEntry(
                    request=ScoreRequest(payment_id=payment_id),
                    response=ScoreResponse(payment_id=payment_id, decision_id=f"d-{payment_id}", action="approve"),
                    decided_time_ms=time.time_ns() // 1_000_000,
                    vector=bytes(240),
                ).SerializeToString()
                for payment_id in ids
            ],
        )

    def ship(self) -> int:
        """Ship until no decision waits. Returns the number of transactions with decisions."""
        transactions = 0

        def is_done() -> bool:
            nonlocal transactions
            self.shipper.find_workers()
            before = self.shipper.shipped
            self.shipper.advance()
            transactions += self.shipper.shipped > before
            return self.shipper.under_way == 0 and self.shipper.waiting_bytes() == {"worker-0": 0}

        wait_until(is_done, "all is shipped", every_s=0)
        return transactions

    def close(self) -> None:
        self.writer.close()
        self.identity.close()


@pytest.fixture
def world(tmp_path: Path, kafka_settings: KafkaSettings) -> Iterator[World]:
    made = World(tmp_path, kafka_settings)
    yield made
    made.close()


def committed(kafka: KafkaSettings, count: int) -> list[str]:
    """Returns the committed payments on the topic, once at least `count` are there and no more come."""
    consumer = make_consumer(kafka, group_id="unused")
    consumer.assign([TopicPartition(kafka.topic("decisions"), n, 0) for n in partitions_of(kafka, "decisions")])
    decoder = Decoder("decisions", LocalSchemaIds())
    found: list[str] = []

    def more() -> int:
        records = consume(consumer, 10_000, 0.2).records
        found.extend(decoder.decode(record.value)["payment_id"] for record in records if record.value is not None)
        return len(records)

    try:
        wait_until(lambda: more() >= 0 and len(found) >= count, f"{count} decisions")
    except AssertionError as error:
        # Say whether the records are missing, not committed, or not delivered.
        admin, topic = make_admin(kafka), kafka.topic("decisions")
        read = {place.partition: place.offset for place in consumer.position(consumer.assignment())}
        stable, written = stable_end_offsets(admin, topic, read), written_end_offsets(admin, topic, read)
        raise AssertionError(
            f"{len(found)} of {count} decisions: read to {read}, committed to {stable}, written to {written}"
        ) from error
    for _ in range(5):
        more()
    consumer.close()
    return found


def exactly(world: World) -> None:
    assert sorted(committed(world.kafka, len(world.decided))) == sorted(world.decided)


def test_a_companion_killed_before_noting_its_cursor_resends_nothing(world: World) -> None:
    world.decide(500)
    world.ship()
    (Path(world.settings.directory) / "worker-0" / "cursor").unlink()
    world.shipper = world.new_shipper()
    world.decide(10)
    world.ship()
    exactly(world)


def test_uncommitted_decisions_of_a_killed_companion_are_read_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.decide(300)
    world.ship()
    world.decide(200)
    with monkeypatch.context() as patched:
        # Every request but the commit reaches the broker.
        patched.setattr(Shipper, "_commit", lambda shipper: shipper._producer.flush(PATIENCE_S))
        wait_until(lambda: world.shipper.advance() == 200, "the transaction is open")
    zombie, world.shipper = world.shipper, world.new_shipper()
    world.ship()
    # The killed companion goes on after all, and the broker refuses its commit.
    zombie.advance()
    assert zombie.shipped == 300
    exactly(world)


def test_a_fenced_producer_starts_anew_and_goes_on_shipping(world: World) -> None:
    world.decide(100)
    world.ship()
    other = make_transactional_producer(
        world.kafka,
        f"{world.kafka.topic_prefix}paywarden-outbox-{world.identity.host}",
        linger_ms=5,
        transaction_timeout_ms=10_000,
    )
    other.init_transactions(PATIENCE_S)
    world.decide(100)
    world.ship()
    exactly(world)


def test_a_cursor_behind_another_hosts_open_transaction_is_read(world: World) -> None:
    """The committed cursor lies behind uncommitted records, where readers of committed records do not see it."""
    producer = make_transactional_producer(world.kafka, "another", linger_ms=5, transaction_timeout_ms=2000)
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    topic = world.kafka.topic(CURSORS_TOPIC)
    producer.produce(topic, ShippedTo(1, 2, "b").to_bytes(), key=cursor_key("another", "worker-0"))
    producer.flush(PATIENCE_S)
    world.decide(10)
    world.ship()
    cursor = read_cursors(world.clients, world.identity.host)["worker-0"]
    assert (cursor.position, cursor.boot_id) == (world.writer.position, boot_id())
    assert "another" not in read_cursors(world.clients, "another")


def test_a_broker_away_longer_than_a_transaction_loses_nothing(
    tmp_path: Path, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction is open when the broker is killed, and every earlier transaction has its markers.

    The test does not kill the broker between a commit and its markers. In that moment Kafka 4.3 may take a transaction
    for complete although it has no markers, if no other broker has the partition. Readers then lose the transaction, as
    docs/limits.md says.
    """
    with KafkaServer(tmp_path / "kafka", QUICK_RETURN) as kafka:
        settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
        create_topics(settings, TopicSettings(partitions=4), [])
        world = World(tmp_path / "outbox", settings)
        world.decide(100)
        world.ship()
        exactly(world)
        world.decide(100)
        with monkeypatch.context() as patched:
            patched.setattr(Shipper, "_commit", lambda shipper: shipper._producer.flush(PATIENCE_S))
            wait_until(lambda: world.shipper.advance() == 100, "the transaction is open")
        kafka.kill()
        until = time.monotonic() + 13
        while time.monotonic() < until:
            world.decide(1)
            began = time.monotonic()
            world.shipper.advance()
            # The mirror goes on meanwhile.
            assert time.monotonic() - began < 5
            time.sleep(0.05)
        kafka.restart()
        world.ship()
        exactly(world)
        world.close()
