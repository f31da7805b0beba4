"""The real broker under the other integration tests, and our records through it."""

from __future__ import annotations

import time
from pathlib import Path

from confluent_kafka import Message, Producer
from confluent_kafka.cimpl import NewTopic

from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from tests.patience import PATIENCE_S
from tests.services.servers.kafka import QUICK_COMPACTION, QUICK_RETURN, KafkaServer, consume, produce

IDS = LocalSchemaIds()


def payment(number: int) -> dict[str, object]:
    return {
        "payment_id": f"p-{number}",
        "event_time_ms": 1_700_000_000_000 + number,
        "card_id": f"c-{number % 7}",
        "merchant_id": "m-1",
        "device_id": None,
        "ip": None,
        "amount_minor": number,
        "currency": "EUR",
        "mcc": None,
        "country": None,
        "channel": "pos",
        "utc_offset_minutes": None,
        "declined": None,
    }


def value_of(message: Message) -> bytes:
    value = message.value()
    assert value is not None
    return bytes(value)


def gone(pid: int) -> bool:
    """Returns whether no process has this pid. A zombie, which its parent has not reaped yet, counts as gone."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_our_records_go_through_a_real_broker(kafka: KafkaServer, topic_prefix: str) -> None:
    topic = f"{topic_prefix}payments"
    kafka.create_topics(NewTopic(topic, num_partitions=3, replication_factor=1))
    encoder, decoder = Encoder("payments", IDS.id_of("payments")), Decoder("payments", IDS)
    payments = [payment(number) for number in range(500)]
    sent = produce(kafka.bootstrap, topic, [(str(p["card_id"]), encoder.encode(p)) for p in payments])
    assert sent == 500
    read = [decoder.decode(value_of(message)) for message in consume(kafka.bootstrap, topic, 500)]
    assert sorted(read, key=lambda p: int(p["amount_minor"])) == payments


def test_a_card_keeps_its_partition_and_its_order(kafka: KafkaServer, topic_prefix: str) -> None:
    topic = f"{topic_prefix}order"
    kafka.create_topics(NewTopic(topic, num_partitions=3, replication_factor=1))
    produce(kafka.bootstrap, topic, [(f"c-{n % 7}", str(n).encode()) for n in range(210)])
    seen: dict[bytes, list[tuple[int | None, int]]] = {}
    for message in consume(kafka.bootstrap, topic, 210):
        key = message.key()
        assert isinstance(key, bytes)
        seen.setdefault(key, []).append((message.partition(), int(value_of(message))))
    assert len(seen) == 7
    for places in seen.values():
        assert len({partition for partition, _ in places}) == 1
        assert [number for _, number in places] == sorted(number for _, number in places)


def test_a_killed_broker_restarts_with_every_acknowledged_record(tmp_path: Path) -> None:
    with KafkaServer(tmp_path, QUICK_RETURN) as server:
        server.create_topics(NewTopic("decisions", num_partitions=2, replication_factor=1))
        acknowledged: set[bytes] = set()

        def delivered(error: object, message: Message) -> None:
            if error is None:
                acknowledged.add(value_of(message))

        producer = Producer(
            {
                "bootstrap.servers": server.bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "log_level": 0,
            }
        )
        address, pid = server.bootstrap, server.pid
        for number in range(2_000):
            producer.produce("decisions", key=str(number), value=str(number).encode(), on_delivery=delivered)
            producer.poll(0)
            # Kill the broker while some records are acknowledged and others are on their way.
            if number == 1_000:
                assert producer.flush(PATIENCE_S) == 0
            if number == 1_500:
                server.kill()
        assert gone(pid)
        assert not server.running
        before = len(acknowledged)
        assert 1_001 <= before < 2_000
        server.restart()
        assert server.bootstrap == address
        assert producer.flush(PATIENCE_S) == 0
        assert acknowledged == {str(number).encode() for number in range(2_000)}
        read = [value_of(message) for message in consume(server.bootstrap, "decisions", 2_000)]
        assert sorted(read) == sorted(acknowledged)


def test_a_compacted_topic_keeps_the_newest_record_of_a_key(tmp_path: Path) -> None:
    with KafkaServer(tmp_path, QUICK_COMPACTION) as server:
        compacted = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
        server.create_topics(NewTopic("profiles", num_partitions=1, replication_factor=1, config=compacted))
        deadline = time.monotonic() + PATIENCE_S
        rounds = 0
        while True:
            rounds += 1
            # Each round closes the segment before it, which the cleaner may then touch.
            produce(server.bootstrap, "profiles", [("card:1", str(rounds).encode())])
            last = consume(server.bootstrap, "profiles", 1)[0].offset()
            if last is not None and last > 0:
                break
            assert time.monotonic() < deadline, "the cleaner did not run"
            time.sleep(0.2)
