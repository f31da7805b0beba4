"""Keep records that cannot be used as dead letters: the whole record with the reason, on a topic of their own.

payments/3, offset 812: currency "EURO"    ─►    dead-letters/0, offset 17: letter 0-17, reason "currency: …"
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from confluent_kafka import Consumer, TopicPartition

from paywarden.schemas.avro import Decoder, Encoder, SchemaIds
from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import BrokerUnavailable, InvalidEvent, Misconfigured
from paywarden.streams.kafka.admin import partitions_of, watermarks
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import READ_TIMEOUT_S, Record, consume, make_consumer, records_to_end

# `paywarden admin dead-letters --retry` writes these headers for the next reader of the record.
RETRY_OF_HEADER = "paywarden-retry-of"
RETRY_COUNT_HEADER = "paywarden-retry-count"
# Ends the reason of a letter whose record had a header with a name that is not UTF-8.
NO_HEADERS = " (its headers could not be read and are not kept)"
# We never write a count with more digits.
_COUNT = re.compile(rb"[0-9]{1,9}")
_LETTER_ID = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")


class DeadLetters:
    """Writes to the dead-letters topic; the caller flushes the sender before it commits."""

    def __init__(self, sender: Sender, kafka: KafkaSettings, ids: SchemaIds) -> None:
        self._sender = sender
        self._topic = kafka.topic("dead-letters")
        self._encoder = Encoder("dead-letters", ids.id_of("dead-letters"))

    def send(self, record: Record, reason: str, now_ms: int) -> None:
        """Queue one record unchanged. `reason` must not quote the record.

        Headers that the client could not read are left out, and the reason says so: key and value are there.
        """
        letter = {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "key": record.key,
            "value": record.value,
            "headers": [{"name": name, "value": value} for name, value in record.headers or ()],
            "timestamp_ms": record.timestamp_ms or None,
            "reason": reason if record.headers is not None else f"{reason}{NO_HEADERS}",
            "failed_time_ms": now_ms,
        }
        self._sender.send(self._topic, self._encoder.encode(letter), key=record.key)


@dataclass(frozen=True, slots=True, order=True)
class LetterId:
    """The place of a letter on the dead-letters topic; its text is partition and offset, such as `0-17`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"

    @classmethod
    def of(cls, text: str) -> LetterId:
        """Parses an id. Raises Misconfigured for any other text."""
        match = _LETTER_ID.fullmatch(text)
        if match is None:
            raise Misconfigured(f"wanted a letter's id, such as 0-17, got {text!r}")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Letter:
    """A record that could not be used, unchanged, and the reason. `written_time_ms` is the letter's Kafka time."""

    letter_id: LetterId
    written_time_ms: int
    record: Record
    reason: str
    failed_time_ms: int

    @property
    def retry_count(self) -> int:
        """The number of retries of the record before it became this letter."""
        counts = [value or b"" for name, value in self.record.headers or () if name == RETRY_COUNT_HEADER]
        return int(counts[-1]) if counts and _COUNT.fullmatch(counts[-1]) else 0

    @property
    def size_bytes(self) -> int:
        """The size of key, value and headers."""
        headers = sum(len(name.encode()) + len(value or b"") for name, value in self.record.headers or ())
        return len(self.record.key or b"") + len(self.record.value or b"") + headers


@dataclass(frozen=True, slots=True)
class DamagedLetter:
    """A record of the dead-letters topic that is no readable letter: its bytes, and the reason."""

    letter_id: LetterId
    written_time_ms: int
    value: bytes | None
    reason: str

    @property
    def failed_time_ms(self) -> int:
        """The nearest known time of the failure: Kafka's own time of the letter."""
        return self.written_time_ms

    @property
    def size_bytes(self) -> int:
        return len(self.value or b"")


AnyLetter: TypeAlias = Letter | DamagedLetter


class LetterDecoder:
    """Decodes records of the dead-letters topic.

    With `keys` a payment of an erased card gives no letter: nobody exports it or sends it back. `payments` is the name
    of that topic on the cluster.
    """

    def __init__(self, ids: SchemaIds, keys: ErasureKeys | None = None, payments: str = "payments") -> None:
        self._decoder, self._keys, self._payments = Decoder("dead-letters", ids), keys, payments

    def letter(self, record: Record) -> AnyLetter:
        """Returns the letter, or a DamagedLetter. Raises TemporaryFailure when its schema could not be looked up."""
        letter_id = LetterId(record.partition, record.offset)
        try:
            fields = self._decoder.decode(record.value or b"")
        except InvalidEvent as error:
            return DamagedLetter(letter_id, record.timestamp_ms, record.value, str(error))
        original = _original(fields)
        if self._is_erased(original):
            return DamagedLetter(letter_id, record.timestamp_ms, None, "its card was erased")
        return Letter(letter_id, record.timestamp_ms, original, str(fields["reason"]), int(fields["failed_time_ms"]))

    def _is_erased(self, record: Record) -> bool:
        """Whether the record is a payment, whose key is its card, from before the card's erasure."""
        if self._keys is None or record.topic != self._payments or record.key is None:
            return False
        until_ms = self._keys.erased_until_ms(record.key.decode(errors="replace"))
        return until_ms > 0 and record.timestamp_ms <= until_ms


def _original(fields: dict[str, Any]) -> Record:
    return Record(
        topic=fields["topic"],
        partition=fields["partition"],
        offset=fields["offset"],
        key=fields["key"],
        value=fields["value"],
        timestamp_ms=fields["timestamp_ms"] or 0,
        headers=[(header["name"], header["value"]) for header in fields["headers"]],
    )


class LetterReader:
    """Reads the dead-letters topic: joins no group, commits nothing. `close` it."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds, keys: ErasureKeys | None = None) -> None:
        """Raises BrokerUnavailable, or Misconfigured if the topic does not exist. `keys`: see LetterDecoder."""
        self._topic = kafka.topic("dead-letters")
        self._partitions = partitions_of(kafka, "dead-letters")
        self._consumer: Consumer = make_consumer(kafka, group_id="paywarden-dead-letters")
        self._decoder = LetterDecoder(ids, keys, kafka.topic("payments"))

    def all(self) -> Iterator[AnyLetter]:
        """Yields every letter on the topic, in the order of each partition. Raises BrokerUnavailable."""
        for records in records_to_end(self._consumer, self._topic, self._partitions):
            yield from map(self._decoder.letter, records)

    def some(self, letter_ids: Sequence[LetterId]) -> Iterator[AnyLetter]:
        """Yields these letters, in this order. Raises Misconfigured for a missing letter, BrokerUnavailable."""
        for letter_id in letter_ids:
            yield self._decoder.letter(self._record(letter_id))

    def close(self) -> None:
        self._consumer.close()

    def _record(self, letter_id: LetterId) -> Record:
        if letter_id.partition not in self._partitions:
            raise Misconfigured(f"there is no letter {letter_id}: {self._topic} has no partition {letter_id.partition}")
        first, end = watermarks(self._consumer, self._topic, letter_id.partition)
        if not first <= letter_id.offset < end:
            held = (
                f"letters {letter_id.partition}-{first} to {letter_id.partition}-{end - 1}" if first < end else "none"
            )
            raise Misconfigured(f"there is no letter {letter_id}: {self._topic} holds {held}")
        self._consumer.assign([TopicPartition(self._topic, letter_id.partition, letter_id.offset)])
        deadline = time.monotonic() + READ_TIMEOUT_S
        while time.monotonic() < deadline:
            for record in consume(self._consumer, 1, 0.5).records:
                if (record.partition, record.offset) == (letter_id.partition, letter_id.offset):
                    return record
        raise BrokerUnavailable(f"Kafka did not give letter {letter_id} in {READ_TIMEOUT_S:g} s")
