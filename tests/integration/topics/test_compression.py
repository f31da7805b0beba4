"""The compression of our producers, read from the broker's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka.cimpl import NewTopic

from paywarden.streams.kafka.client import COMPRESSIONS, KafkaSettings
from paywarden.streams.kafka.producers import Sender, make_transactional_producer
from tests.patience import PATIENCE_S
from tests.services.servers.kafka import KafkaServer

# A batch of records begins with 21 bytes. The codec is in the lowest three bits of the next two.
_CODEC_AT = 22


@pytest.fixture
def topic(kafka: KafkaServer, settings: KafkaSettings) -> str:
    name = settings.topic("compressed")
    kafka.create_topics(NewTopic(name, num_partitions=1, replication_factor=1))
    return name


def codec_on_disk(kafka: KafkaServer, topic: str) -> str:
    (segment,) = Path(kafka.data / f"{topic}-0").glob("*.log")
    return COMPRESSIONS[segment.read_bytes()[_CODEC_AT] & 7]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_both_kinds_of_producers_use_the_configured_compression(
    compression: str, kafka: KafkaServer, settings: KafkaSettings, topic: str
) -> None:
    settings = KafkaSettings(settings.bootstrap, topic_prefix=settings.topic_prefix, compression=compression)
    producer = make_transactional_producer(settings, topic, linger_ms=0, transaction_timeout_ms=600_000)
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    producer.produce(topic, bytes(1000), key=b"k")
    producer.commit_transaction(PATIENCE_S)
    assert codec_on_disk(kafka, topic) == compression
    other = f"{topic}-2"
    kafka.create_topics(NewTopic(other, num_partitions=1, replication_factor=1))
    sender = Sender(settings, linger_ms=0)
    sender.send(other, bytes(1000), key=b"k")
    sender.flush(PATIENCE_S)
    assert codec_on_disk(kafka, other) == compression
