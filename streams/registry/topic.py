"""The topic model-registry: entries in, entries out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient

from paywarden.models.registry.entries import Entry
from paywarden.schemas.avro import Decoder, Encoder, SchemaIds
from paywarden.schemas.errors import BrokerUnavailable, InvalidEvent, Misconfigured
from paywarden.streams.kafka.admin import make_admin, partitions_of, watermarks, written_end_offsets
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import make_consumer, records_between

REGISTRY_TOPIC: Final = "model-registry"
_FLUSH_TIMEOUT_S = 15.0


class RegistryTopic(Protocol):
    """The topic on which hosts share entries."""

    def read(self) -> Iterable[bytes]:
        """Yields the lines since the last call, all lines at first. Raises BrokerUnavailable, Misconfigured."""

    def send(self, entries: Iterable[Entry]) -> None:
        """Returns once the entries are on the topic, in order. Raises BrokerUnavailable, Misconfigured."""


class KafkaRegistryTopic:
    """The topic on Kafka. It joins no group and commits nothing. `close` it."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds) -> None:
        """Talks to nobody yet."""
        self._kafka, self._topic = kafka, kafka.topic(REGISTRY_TOPIC)
        self._encoder = Encoder(REGISTRY_TOPIC, ids.id_of(REGISTRY_TOPIC))
        self._decoder = Decoder(REGISTRY_TOPIC, ids)
        self._consumer: Consumer | None = None
        self._admin: AdminClient | None = None
        self._next_offset = 0

    def read(self) -> Iterator[bytes]:
        """See RegistryTopic. A record that cannot be decoded is yielded as it is: nobody can take it for an entry."""
        if self._consumer is None or self._admin is None:
            # Says which topic is missing.
            partitions_of(self._kafka, REGISTRY_TOPIC)
            self._consumer = make_consumer(self._kafka, group_id="paywarden-models")
            self._admin = make_admin(self._kafka)
        written = written_end_offsets(self._admin, self._topic, [0])[0]
        low, end = watermarks(self._consumer, self._topic, 0)
        if end < self._next_offset:
            raise Misconfigured(f"topic {self._topic} is shorter than it was: it was created again, start again")
        if end < written:
            # Later entries have been sent too, and cannot be read yet: nobody may take them for lost.
            raise BrokerUnavailable(
                f"an open transaction of a producer holds up topic {self._topic}: {written - end} records wait for its "
                "end, and count then"
            )
        offsets = range(max(low, self._next_offset), end)
        if offsets:
            for records in records_between(self._consumer, self._topic, 0, offsets):
                yield from (self._line(record.value or b"") for record in records)
        self._next_offset = end

    def send(self, entries: Iterable[Entry]) -> None:
        """See RegistryTopic."""
        sender = Sender(self._kafka, linger_ms=0)
        for entry in entries:
            record = {
                "digest": entry.digest,
                "kind": entry.kind,
                "by": entry.by,
                "time_ms": entry.time_ms,
                "why": entry.why,
                "entry": entry.line.decode(),
            }
            sender.send(self._topic, self._encoder.encode(record), key=entry.digest.encode(), partition=0)
        sender.flush(_FLUSH_TIMEOUT_S)

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()

    def _line(self, value: bytes) -> bytes:
        try:
            return str(self._decoder.decode(value)["entry"]).encode()
        except InvalidEvent:
            return value


class LazyRegistryTopic:
    """A topic that is opened when it is first used: a rollback is written before anybody asks Kafka. `close` it."""

    def __init__(self, make: Callable[[], KafkaRegistryTopic]) -> None:
        self._make = make
        self._made: KafkaRegistryTopic | None = None

    def read(self) -> Iterable[bytes]:
        """See RegistryTopic."""
        return self._opened().read()

    def send(self, entries: Iterable[Entry]) -> None:
        """See RegistryTopic."""
        self._opened().send(entries)

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def _opened(self) -> KafkaRegistryTopic:
        if self._made is None:
            self._made = self._make()
        return self._made
