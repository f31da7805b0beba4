"""A store that is away or slow, on a real Kafka: everything stops with bounded memory and goes on without a loss."""

from __future__ import annotations

import pytest
from confluent_kafka.cimpl import NewTopic

from streams.consumer import BatchConsumer
from streams.kafka import KafkaSettings, make_consumer, make_producer
from tests.processes import wait_until
from tests.services.kafka import KafkaServer


@pytest.fixture
def settings(kafka: KafkaServer, topic_prefix: str) -> KafkaSettings:
    return KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)


def test_partitions_that_went_during_a_hold_are_read_when_they_come_back(
    kafka: KafkaServer, settings: KafkaSettings, topic_prefix: str
) -> None:
    """The client keeps a pause over assignments: they were assigned again, and read never again."""
    topic = settings.topic("numbers")
    kafka.create_topics(NewTopic(topic, num_partitions=4, replication_factor=1))
    producer = make_producer(settings, linger_ms=0)
    for number in range(40):
        producer.produce(topic, b"x", partition=number % 4)
    assert producer.flush(10) == 0
    group = f"{topic_prefix}group"
    first = BatchConsumer(make_consumer(settings, group_id=group, session_timeout_ms=6000))
    first.subscribe([topic])
    taken: list[tuple[int, int]] = []

    def take(consumer: BatchConsumer) -> int:
        records = consumer.take(100, 0.05).records
        taken.extend((record.partition, record.offset) for record in records)
        return len(records)

    wait_until(lambda: take(first) >= 0 and len(taken) == 40, "the first has all records")
    first.hold()
    second = BatchConsumer(make_consumer(settings, group_id=group, session_timeout_ms=6000))
    second.subscribe([topic])

    def is_lost() -> bool:
        second.take(1, 0.0)
        return not first.wait(0.05)

    wait_until(is_lost, "a partition of the batch has gone")
    first.release()
    first.abandon()
    wait_until(lambda: take(first) + take(second) >= 0 and len(second.places) == 2, "the second has its share")
    gone = set(second.places)
    # It leaves without a commit, so all of it is still to be read.
    second.close()
    taken.clear()
    wait_until(lambda: take(first) >= 0 and len(first.places) == 4, "all are the first's again")
    moved = {(partition, offset) for _, partition in gone for offset in range(10)}
    wait_until(lambda: take(first) >= 0 and moved <= set(taken), "what had moved is read again", timeout_s=20)
    first.close()
