"""Records that cannot be used: kept whole on a topic of their own, with why."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from confluent_kafka import Consumer, TopicPartition

from paywarden.schemas.avro import Decoder, Encoder, SchemaIds
from paywarden.schemas.errors import BrokerUnavailable, InvalidEvent, Misconfigured
from paywarden.streams.kafka.admin import partitions_of, watermarks
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import READ_TIMEOUT_S, Record, consume, make_consumer, records_to_end

# Written by `paywarden dead-letters retry`, for whoever reads the record next.
RETRY_OF_HEADER = "paywarden-retry-of"
RETRY_COUNT_HEADER = "paywarden-retry-count"
# A count of more digits is none of ours.
_COUNT = re.compile(rb"[0-9]{1,9}")
_LETTER_ID = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")


class DeadLetters:
    """Writes to the dead-letters topic; the caller flushes the sender before it commits."""

    def __init__(self, sender: Sender, kafka: KafkaSettings, ids: SchemaIds) -> None:
        self._sender = sender
        self._topic = kafka.topic("dead-letters")
        self._encoder = Encoder("dead-letters", ids.id_of("dead-letters"))

    def send(self, record: Record, reason: str, now_ms: int) -> None:
        """Queue one record as it came. `reason` must not quote it."""
        letter = {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "key": record.key,
            "value": record.value,
            "headers": [{"name": name, "value": value} for name, value in record.headers],
            "timestamp_ms": record.timestamp_ms or None,
            "reason": reason,
            "failed_time_ms": now_ms,
        }
        self._sender.send(self._topic, self._encoder.encode(letter), key=record.key)


@dataclass(frozen=True, slots=True, order=True)
class LetterId:
    """Where a letter stands on the dead-letters topic; as text `0-17`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"

    @classmethod
    def of(cls, text: str) -> LetterId:
        """Raises Misconfigured for what is no id of a letter."""
        match = _LETTER_ID.fullmatch(text)
        if match is None:
            raise Misconfigured(f"wanted a letter's id, such as 0-17, got {text!r}")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Letter:
    """A record that could not be used, as it was, and why. `written_time_ms` is Kafka's own of the letter."""

    letter_id: LetterId
    written_time_ms: int
    record: Record
    reason: str
    failed_time_ms: int

    @property
    def retry_count(self) -> int:
        """How often the record had been sent back before it became this letter."""
        counts = [value or b"" for name, value in self.record.headers if name == RETRY_COUNT_HEADER]
        return int(counts[-1]) if counts and _COUNT.fullmatch(counts[-1]) else 0

    @property
    def size_bytes(self) -> int:
        """Of key, value and headers."""
        headers = sum(len(name.encode()) + len(value or b"") for name, value in self.record.headers)
        return len(self.record.key or b"") + len(self.record.value or b"") + headers


@dataclass(frozen=True, slots=True)
class DamagedLetter:
    """A record of the dead-letters topic that cannot be read as a letter: its bytes, and why."""

    letter_id: LetterId
    written_time_ms: int
    value: bytes | None
    reason: str

    @property
    def failed_time_ms(self) -> int:
        """When it was given up, as nearly as that is known."""
        return self.written_time_ms

    @property
    def size_bytes(self) -> int:
        return len(self.value or b"")


AnyLetter: TypeAlias = Letter | DamagedLetter


class LetterDecoder:
    """Records of the dead-letters topic to letters."""

    def __init__(self, ids: SchemaIds) -> None:
        self._decoder = Decoder("dead-letters", ids)

    def letter(self, record: Record) -> AnyLetter:
        """The letter; what is damaged is one too. Raises TemporaryFailure when its schema could not be asked for."""
        letter_id = LetterId(record.partition, record.offset)
        try:
            fields = self._decoder.decode(record.value or b"")
        except InvalidEvent as error:
            return DamagedLetter(letter_id, record.timestamp_ms, record.value, str(error))
        return Letter(
            letter_id, record.timestamp_ms, _original(fields), str(fields["reason"]), int(fields["failed_time_ms"])
        )


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

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds) -> None:
        """Raises BrokerUnavailable, or Misconfigured when there is no such topic."""
        self._topic = kafka.topic("dead-letters")
        self._partitions = partitions_of(kafka, "dead-letters")
        self._consumer: Consumer = make_consumer(kafka, group_id="paywarden-dead-letters")
        self._decoder = LetterDecoder(ids)

    def all(self) -> Iterator[AnyLetter]:
        """Every letter that is there now, each partition in its order. Raises BrokerUnavailable."""
        for records in records_to_end(self._consumer, self._topic, self._partitions):
            yield from map(self._decoder.letter, records)

    def some(self, letter_ids: Sequence[LetterId]) -> Iterator[AnyLetter]:
        """These letters, in this order. Raises Misconfigured for one that is not there, BrokerUnavailable."""
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
