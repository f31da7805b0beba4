"""Keep registry ids and their schemas on Kafka, so that records stay readable without the registry.

    topic schemas (compacted, one partition)    key 17    value {"type": "record", "name": "Payment", …}

A process that uses a registry writes an id here before it writes a record with that id, and before it reads one.
The registry may then be turned off or be down: a process that can read records can read this topic too.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Final, Protocol

from confluent_kafka.admin import AdminClient

from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.admin import make_admin, partitions_of, stable_end_offsets
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import Record, make_consumer, records_to_end

_log = logging.getLogger(__name__)

SCHEMAS_TOPIC: Final = "schemas"
_FLUSH_TIMEOUT_S: Final = 30.0
# An id is a positive int of 32 bits.
_ID: Final = re.compile(rb"[0-9]{1,10}")


class RememberedSchemas(Protocol):
    """The ids that a registry has assigned, with the text of each schema."""

    def read(self) -> Mapping[int, str]:
        """Returns all of them, with those that other processes have added. Raises BrokerUnavailable."""

    def add(self, schemas: Mapping[int, str]) -> None:
        """Add these; returns when the broker has them. Raises BrokerUnavailable or Misconfigured."""


class MemoryRememberedSchemas:
    """Schemas in memory, for tests."""

    def __init__(self, schemas: Mapping[int, str] | None = None) -> None:
        self._schemas = dict(schemas or {})

    def read(self) -> Mapping[int, str]:
        """See RememberedSchemas."""
        return self._schemas

    def add(self, schemas: Mapping[int, str]) -> None:
        """See RememberedSchemas."""
        self._schemas |= schemas


class KafkaRememberedSchemas:
    """Schemas on the topic `schemas`. Opens no client before its first use. Thread-safe.

    A missing topic counts as empty; only `add` needs the topic.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka, self._topic = kafka, kafka.topic(SCHEMAS_TOPIC)
        self._admin: AdminClient | None = None
        self._partitions: list[int] = []
        self._schemas: dict[int, str] = {}
        self._read_to: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self) -> Mapping[int, str]:
        """See RememberedSchemas. It costs one request to the broker while nothing is new."""
        with self._lock:
            ends = self._ends()
            if ends != self._read_to:
                self._schemas = dict(self._read_all())
                self._read_to = ends
            return self._schemas

    def add(self, schemas: Mapping[int, str]) -> None:
        """See RememberedSchemas. Raises Misconfigured when the topic does not exist."""
        partitions_of(self._kafka, SCHEMAS_TOPIC)
        sender = Sender(self._kafka, linger_ms=0)
        for schema_id, text in schemas.items():
            sender.send(self._topic, text.encode(), key=str(schema_id).encode())
        sender.flush(_FLUSH_TIMEOUT_S)

    def _ends(self) -> dict[int, int]:
        if self._admin is None:
            try:
                self._partitions = partitions_of(self._kafka, SCHEMAS_TOPIC)
            except Misconfigured:
                return {}
            self._admin = make_admin(self._kafka)
        return stable_end_offsets(self._admin, self._topic, self._partitions)

    def _read_all(self) -> Iterator[tuple[int, str]]:
        last: dict[bytes | None, Record] = {}
        with closing(make_consumer(self._kafka, group_id="paywarden-schemas")) as consumer:
            for records in records_to_end(consumer, self._topic, self._partitions):
                last |= {record.key: record for record in records}
        for key, record in last.items():
            if record.value is None:
                continue
            if key is None or not _ID.fullmatch(key):
                _log.warning("topic %s, offset %d: the key is no schema id", self._topic, record.offset)
                continue
            yield int(key), record.value.decode("utf-8", errors="replace")
