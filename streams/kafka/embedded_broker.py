"""The embedded broker: librdkafka's mock cluster, for a demonstration on a laptop. Not for keeping anything.

It lives in the memory of the process that makes it, keeps a few megabytes a partition and makes topics on
first use. It writes the markers of transactions with a wrong checksum: who reads from it with aiokafka sets `[kafka]
check_crcs = false`. Anything that tests offsets, rebalances, compaction or transactions belongs on a real broker.
"""

from __future__ import annotations

from confluent_kafka import Producer

from paywarden.schemas.avro import TOPICS
from paywarden.streams.kafka.remembered_schemas import SCHEMAS_TOPIC
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC


class EmbeddedBroker:
    """Runs from construction to `close`; other processes can connect to `bootstrap`."""

    def __init__(self) -> None:
        # The cluster belongs to this producer, and goes with it.
        self._owner: Producer | None = Producer(
            {"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 3}
        )
        broker = next(iter(self._owner.list_topics(timeout=10).brokers.values()))
        self.bootstrap = f"{broker.host}:{broker.port}"
        # Asked for, a topic is there: consumers find what nobody has written to yet.
        for topic in (*TOPICS, CURSORS_TOPIC, SCHEMAS_TOPIC):
            self._owner.list_topics(topic, timeout=10)

    def close(self) -> None:
        self._owner = None
