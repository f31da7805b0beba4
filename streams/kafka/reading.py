"""Consumers, and how records are read from them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.kafka.admin import end_offsets
from paywarden.streams.kafka.client import KafkaSettings, PartitionId, named_options
from paywarden.streams.kafka.producers import RecordHeaders

_log = logging.getLogger(__name__)
# Reading a topic to its end: how long nothing may come, and how many records at once. Dead letters are large.
READ_TIMEOUT_S = 30.0
READ_BATCH = 200
# The same where records are small: payments, outcomes, decisions.
RANGE_BATCH = 5_000


def make_consumer(settings: KafkaSettings, *, group_id: str, session_timeout_ms: int = 10_000) -> Consumer:
    """A consumer that commits only what it is told to and says when it has reached a partition's end."""
    options = {
        **settings.connection(),
        "group.id": group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": session_timeout_ms,
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        "queued.max.messages.kbytes": 64 * 1024,
        "allow.auto.create.topics": True,
    }
    with named_options():
        return Consumer(options)


# The broker answers a fetch that has nothing after this long; what a consumer knows is never older.
FETCH_WAIT_MS = 100


class Record(NamedTuple):
    """A record as it was read. `timestamp_ms` is Kafka's own, 0 where the broker set none.

    A tuple: the stream makes one for each payment, in a third of the time a dataclass takes.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: RecordHeaders


@dataclass(frozen=True, slots=True)
class Consumed:
    """What one call to `consume` gave: records in order, and the partitions read to their end after them.

    `ended` has the offset that the next record of such a partition will have. `is_all`: the client had heard of nothing
    more when the call ended.
    """

    records: list[Record]
    ended: dict[PartitionId, int]
    is_all: bool


def consume(consumer: Consumer, count_max: int, timeout_s: float) -> Consumed:
    """What is there, at most `count_max` records, waited for at most `timeout_s`.

    Raises BrokerUnavailable for an error that does not pass; the client retries passing ones by itself.
    """
    messages = consumer.consume(count_max, timeout=timeout_s)
    consumed = Consumed([], {}, is_all=len(messages) < count_max)
    for message in messages:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF and topic is not None and partition is not None:
                consumed.ended[topic, partition] = offset or 0
            else:
                _check_passing(error)
            continue
        assert topic is not None
        assert partition is not None
        assert offset is not None
        # The end that was reached before this record is none any more.
        consumed.ended.pop((topic, partition), None)
        consumed.records.append(
            Record(
                topic,
                partition,
                offset,
                _as_bytes(message.key()),
                _as_bytes(message.value()),
                max(0, message.timestamp()[1]),
                _headers(message),
            )
        )
    return consumed


def records_to_end(consumer: Consumer, topic: str, partitions: Iterable[int]) -> Iterator[list[Record]]:
    """What a topic holds, from its beginning to its end as of now, in batches. Joins no group.

    Raises BrokerUnavailable when nothing more comes before the end.
    """
    ends = end_offsets(consumer, topic, partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in ends])
    left = {partition for partition, end in ends.items() if end > 0}
    deadline = time.monotonic() + READ_TIMEOUT_S
    while left:
        consumed = consume(consumer, READ_BATCH, 0.5)
        records = [record for record in consumed.records if record.offset < ends[record.partition]]
        if records:
            yield records
            # The caller's own time is none that Kafka took.
            deadline = time.monotonic() + READ_TIMEOUT_S
        # An end need not be a record's: what was compacted or expired leaves none behind.
        left -= {partition for _, partition in consumed.ended}
        left -= {record.partition for record in consumed.records if record.offset + 1 >= ends[record.partition]}
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"Kafka did not give the end of {topic} in {READ_TIMEOUT_S:g} s")


def records_between(consumer: Consumer, topic: str, partition: int, offsets: range) -> Iterator[list[Record]]:
    """What a partition holds at these offsets, in batches. Joins no group. They must lie before its end.

    Raises BrokerUnavailable when nothing more comes before the last.
    """
    consumer.assign([TopicPartition(topic, partition, offsets.start)])
    deadline = time.monotonic() + READ_TIMEOUT_S
    next_offset = offsets.start
    while next_offset < offsets.stop:
        consumed = consume(consumer, RANGE_BATCH, 0.5)
        records = [one for one in consumed.records if one.partition == partition and one.offset in offsets]
        if consumed.records:
            next_offset = max(next_offset, consumed.records[-1].offset + 1)
        # The last offsets may be of what no reader sees: a transaction's marks, or what was compacted.
        next_offset = max(next_offset, consumed.ended.get((topic, partition), 0))
        if records:
            yield records
            deadline = time.monotonic() + READ_TIMEOUT_S
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"Kafka did not give offset {next_offset} of {topic} in {READ_TIMEOUT_S:g} s")


def _headers(message: Message) -> list[tuple[str, bytes | None]]:
    headers = message.headers() or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return [(str(pair[0]), _as_bytes(pair[1])) for pair in pairs]


def _as_bytes(content: str | bytes | None) -> bytes | None:
    return content.encode() if isinstance(content, str) else content


def _check_passing(error: KafkaError) -> None:
    if error.fatal() or error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
        raise BrokerUnavailable(f"Kafka refuses: {error.str()}")
    _log.warning("Kafka: %s", error.str())
