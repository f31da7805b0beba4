from __future__ import annotations

import pytest

from paywarden.schemas.avro import TOPICS
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.topics import TopicSettings, _new_topic, create_topics, wanted_topics
from tests.patience import PATIENCE_S


@pytest.mark.parametrize(("replication", "in_sync"), [(1, "1"), (2, "1"), (3, "2"), (5, "4")])
def test_every_topic_needs_all_but_one_replica_and_has_the_brokers_time(replication: int, in_sync: str) -> None:
    for name in (*TOPICS, "outbox-cursors", "schemas", "repartition-card"):
        config = _new_topic(name, name, TopicSettings(replication=replication)).config or {}
        assert config["min.insync.replicas"] == in_sync
        assert config["message.timestamp.type"] == "LogAppendTime"
        assert config["cleanup.policy"]


def test_a_broker_that_creates_topics_itself_is_named_and_not_called_absent() -> None:
    broker = EmbeddedBroker()
    try:
        with pytest.raises(Misconfigured, match=r"embedded broker.*nothing needs to be created"):
            create_topics(KafkaSettings(bootstrap=broker.bootstrap), TopicSettings(), ["card"])
    finally:
        broker.close()


def test_the_embedded_broker_has_the_partitions_of_topics_create() -> None:
    """All its topics had four, and a consumer of the single partition of `catalogues` found no names of features."""
    broker = EmbeddedBroker()
    try:
        listed = make_producer(KafkaSettings(bootstrap=broker.bootstrap), linger_ms=0).list_topics(timeout=PATIENCE_S)
        wanted = wanted_topics(KafkaSettings(), TopicSettings(), [])
        assert {name: len(topic.partitions) for name, topic in listed.topics.items()} == {
            topic.topic: topic.num_partitions for topic in wanted
        }
    finally:
        broker.close()
