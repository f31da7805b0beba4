"""The topic model-registry: entries in, entries out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
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

    def __init__(self, connect: Callable[[], tuple[KafkaSettings, SchemaIds]]) -> None:
        """Calls `connect` at its first use: a rollback is written before anybody asks Kafka."""
        self._connect = connect
        self._consumer: Consumer | None = None
        self._admin: AdminClient | None = None
        self._next_offset = 0

    @cached_property
    def _connected(self) -> tuple[KafkaSettings, Encoder, Decoder]:
        kafka, ids = self._connect()
        return kafka, Encoder(REGISTRY_TOPIC, ids.id_of(REGISTRY_TOPIC)), Decoder(REGISTRY_TOPIC, ids)

    def read(self) -> Iterator[bytes]:
        """See RegistryTopic. A record that cannot be decoded is yielded as it is: nobody can take it for an entry."""
        kafka, _, decoder = self._connected
        topic = kafka.topic(REGISTRY_TOPIC)
        if self._consumer is None or self._admin is None:
            # Says which topic is missing.
            partitions_of(kafka, REGISTRY_TOPIC)
            self._consumer = make_consumer(kafka, group_id="paywarden-models")
            self._admin = make_admin(kafka)
        written = written_end_offsets(self._admin, topic, [0])[0]
        low, end = watermarks(self._consumer, topic, 0)
        if end < self._next_offset:
            raise Misconfigured(f"topic {topic} is shorter than it was: it was created again, start again")
        if end < written:
            # Later entries have been sent too, and cannot be read yet: nobody may take them for lost.
            raise BrokerUnavailable(
                f"an open transaction of a producer holds up topic {topic}: {written - end} records wait for its "
                "end, and count then"
            )
        offsets = range(max(low, self._next_offset), end)
        if offsets:
            for records in records_between(self._consumer, topic, 0, offsets):
                yield from (_line(decoder, record.value or b"") for record in records)
        self._next_offset = end

    def send(self, entries: Iterable[Entry]) -> None:
        """See RegistryTopic."""
        kafka, encoder, _ = self._connected
        sender = Sender(kafka, linger_ms=0)
        for entry in entries:
            record = {
                "digest": entry.digest,
                "kind": entry.kind,
                "by": entry.by,
                "time_ms": entry.time_ms,
                "why": entry.why,
                "entry": entry.line.decode(),
            }
            sender.send(kafka.topic(REGISTRY_TOPIC), encoder.encode(record), key=entry.digest.encode(), partition=0)
        sender.flush(_FLUSH_TIMEOUT_S)

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()


def _line(decoder: Decoder, value: bytes) -> bytes:
    try:
        return str(decoder.decode(value)["entry"]).encode()
    except InvalidEvent:
        return value
