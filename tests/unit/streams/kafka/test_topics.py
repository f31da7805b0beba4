from __future__ import annotations

import pytest

from paywarden.schemas.avro import TOPICS
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.topics import TopicSettings, _new_topic, create_topics


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
