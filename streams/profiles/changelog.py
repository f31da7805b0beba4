"""The changelog: the newest state of every profile, on the compacted topic `profiles`.

Records are encoded many at a time: what is the same in all of a batch is encoded once.

A `profiles` record is the entity's name, the state, then moments and nothing else that differs. So Avro's own encoder
writes one record with an empty state, and each state, behind its length, is put where that one's is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from paywarden.features.kernel.varint import encode_varint, encode_zigzag
from paywarden.schemas.avro import Encoder, SchemaIds
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender


class Changelog:
    """Writes to the topic; the caller flushes the sender."""

    def __init__(self, sender: Sender, kafka: KafkaSettings, ids: SchemaIds, entities: Iterable[str]) -> None:
        """Raises BrokerUnavailable, or Misconfigured when there is no such topic."""
        self._sender, self._topic = sender, kafka.topic("profiles")
        self._partitions = partitions_of(kafka, "profiles")
        self._encoder = Encoder("profiles", ids.id_of("profiles"))
        self._state_encoders = {entity: ChangelogEncoder(self._encoder, entity) for entity in entities}

    def send(
        self, entity: str, states: Mapping[bytes, bytes], written_time_ms: int, arrived_time_ms: int | None = None
    ) -> None:
        """Queue new states by key. Raises BrokerUnavailable."""
        for key, value in self._state_encoders[entity].encode(states, written_time_ms, arrived_time_ms):
            self._sender.send(self._topic, value, key=key)

    def erase(self, keys: Iterable[bytes]) -> None:
        """Queue a tombstone for each key. Raises BrokerUnavailable."""
        for key in keys:
            self._sender.send(self._topic, None, key=key)

    def send_progress(self, moments: Mapping[bytes, int], now_ms: int) -> None:
        """Queue how complete the changelog now is, by progress key, into each of its partitions.

        Raises BrokerUnavailable.
        """
        for key, complete_to_ms in moments.items():
            record = {
                "entity": "progress",
                "state": b"",
                "written_time_ms": now_ms,
                "complete_to_time_ms": complete_to_ms,
            }
            value = self._encoder.encode(record)
            for partition in self._partitions:
                self._sender.send(self._topic, value, key=key, partition=partition)


class ChangelogEncoder:
    """Encodes states of one kind of entity."""

    def __init__(self, encoder: Encoder, entity: str) -> None:
        """`encoder`: of topic `profiles`."""
        self._encoder, self._entity = encoder, entity
        # The first byte that differs between these two is the state's length.
        empty, other = self._record(b"", 0, None), self._record(b"x", 0, None)
        self._state_at = next(at for at, pair in enumerate(zip(empty, other, strict=False)) if pair[0] != pair[1])
        assert empty[self._state_at] == 0

    def encode(
        self, states: Mapping[bytes, bytes], written_time_ms: int, arrived_time_ms: int | None
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of each state, the bytes that the Avro encoder would write."""
        empty = self._record(b"", written_time_ms, arrived_time_ms)
        head, tail = empty[: self._state_at], empty[self._state_at + 1 :]
        for key, state in states.items():
            yield key, b"".join((head, _length(len(state)), state, tail))

    def _record(self, state: bytes, written_time_ms: int, arrived_time_ms: int | None) -> bytes:
        return self._encoder.encode(
            {
                "entity": self._entity,
                "state": state,
                "written_time_ms": written_time_ms,
                "complete_to_time_ms": None,
                "arrived_time_ms": arrived_time_ms,
            }
        )


def _length(length: int) -> bytes:
    """A length as Avro writes a long."""
    return encode_varint(encode_zigzag(length))
