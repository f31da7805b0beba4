"""The embedded broker: librdkafka's mock cluster, for a demonstration on a laptop. It keeps nothing on disk.

The broker lives in the memory of its process. It keeps a few megabytes for each partition and creates topics on first
use. It writes transaction markers with a wrong checksum, so a reader that uses aiokafka sets `[kafka] check_crcs =
false`. Tests of offsets, rebalances, compaction or transactions need a real broker.
"""

from __future__ import annotations

from confluent_kafka import Producer

from paywarden.schemas.avro import TOPICS
from paywarden.streams.kafka.schemas.remembered_schemas import SCHEMAS_TOPIC
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC


class EmbeddedBroker:
    """Runs from construction to `close`; other processes can connect to `bootstrap`."""

    def __init__(self) -> None:
        # This producer owns the cluster: the cluster ends with it.
        self._owner: Producer | None = Producer(
            {"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 3}
        )
        broker = next(iter(self._owner.list_topics(timeout=10).brokers.values()))
        self.bootstrap = f"{broker.host}:{broker.port}"
        # A question about a topic creates it, so consumers find topics that are still empty.
        for topic in (*TOPICS, CURSORS_TOPIC, SCHEMAS_TOPIC):
            self._owner.list_topics(topic, timeout=10)

    def close(self) -> None:
        self._owner = None
