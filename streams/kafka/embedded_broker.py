"""The embedded broker: librdkafka's mock cluster, for a demonstration on a laptop. It keeps nothing on disk.

The broker lives in the memory of its process. It keeps a few megabytes for each partition. Topics are there from the
start, as `paywarden topics create` makes them; it creates others on first use, with four partitions. It writes
transaction markers with a wrong checksum, so a reader that uses aiokafka sets `[kafka] check_crcs = false`. Tests of
offsets, rebalances, compaction or transactions need a real broker.
"""

from __future__ import annotations

import ctypes

from confluent_kafka import cimpl

from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topics import TopicSettings, wanted_topics

_PRODUCER = 0


class EmbeddedBroker:
    """Runs from construction to `close`; other processes can connect to `bootstrap`."""

    def __init__(self) -> None:
        # The package of Python makes a mock cluster whose topics all have four partitions. The public functions of its
        # library (rdkafka_mock.h) make one whose topics have the partitions that their readers expect.
        self._library = library = ctypes.CDLL(cimpl.__file__)
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(library, name).restype = ctypes.c_void_p
        library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        reason = ctypes.create_string_buffer(512)
        options = ctypes.c_void_p(library.rd_kafka_conf_new())
        library.rd_kafka_conf_set(options, b"log_level", b"3", reason, ctypes.c_size_t(len(reason)))
        # The cluster lives in a client that connects to nothing.
        self._client = ctypes.c_void_p(library.rd_kafka_new(_PRODUCER, options, reason, ctypes.c_size_t(len(reason))))
        assert self._client, reason.value.decode()
        self._cluster: ctypes.c_void_p | None = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(self._client, 1))
        self.bootstrap: str = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        for topic in wanted_topics(KafkaSettings(), TopicSettings(), ()):
            library.rd_kafka_mock_topic_create(self._cluster, topic.topic.encode(), topic.num_partitions, 1)

    def close(self) -> None:
        if self._cluster is not None:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._client)
            self._cluster = None
