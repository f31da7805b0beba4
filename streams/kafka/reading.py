"""Consumers with explicit options, and ways to read records: a batch, a topic to its end, a range of offsets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from operator import methodcaller
from typing import NamedTuple, TypeAlias

from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    Message,
    TopicPartition,
)

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.kafka.admin import end_offsets
from paywarden.streams.kafka.client import KafkaSettings, PartitionId, named_options
from paywarden.streams.kafka.producers import RecordHeaders

_log = logging.getLogger(__name__)
# For reading a topic to its end: the longest silence, and the records in a batch. Dead letters are large.
READ_TIMEOUT_S = 30.0
READ_BATCH = 200
# The batch for small records: payments, outcomes, decisions.
RANGE_BATCH = 5_000
_DISPLACED = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION})


def make_consumer(
    settings: KafkaSettings,
    *,
    group_id: str,
    session_timeout_ms: int = 10_000,
    tells_lost_offsets: bool = False,
    gather_ms: int = 0,
) -> Consumer:
    """Returns a consumer that commits only on request and reports the end of each partition.

    Where the broker does not have the next offset, it goes to the first one that the broker has. With
    `tells_lost_offsets` it stops there and reports the partition (`Consumed.displaced`). With `gather_ms` the broker
    holds an answer back for this long, unless it has `GATHER_BYTES`: records come later, and in fewer answers. Raises
    Misconfigured for options that the client refuses.
    """
    options = {
        **settings.connection(),
        "group.id": group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error" if tells_lost_offsets else "earliest",
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": session_timeout_ms,
        "fetch.wait.max.ms": gather_ms or FETCH_WAIT_MS,
        "fetch.min.bytes": GATHER_BYTES if gather_ms else 1,
        "queued.max.messages.kbytes": 64 * 1024,
        "allow.auto.create.topics": True,
    }
    with named_options():
        return Consumer(options)


# The broker answers an empty fetch after this long, so a consumer's view of a partition is never older.
FETCH_WAIT_MS = 100
# An answer of this size is worth its price. At 2,000 payments a second a stream worker gets as much in some 100 ms.
GATHER_BYTES = 64 * 1024


class Record(NamedTuple):
    """A record as it was read. `timestamp_ms` is Kafka's own, 0 if the broker set none.

    `headers` is None if the name of one of them is not UTF-8. The client can then read none of them.

    It is a tuple because the stream makes one for each payment: a dataclass takes three times as long.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: RecordHeaders | None
    # Whether `timestamp_ms` is by the broker's clock (LogAppendTime), and not by the producer's.
    is_broker_time: bool = False


@dataclass(frozen=True, slots=True)
class Consumed:
    """The result of one call to `consume`: records in order, and the partitions that were read to their end.

    `ended` maps such a partition to the offset of its next record. `is_all` is True if the client had nothing more to
    hand out when the call ended. `displaced`: partitions whose next offset the broker does not have, and the client's
    error; it reads no more of them. `left_out`: keys whose records have no value, headers and time here, because the
    caller wanted none.
    """

    records: list[Record]
    ended: dict[PartitionId, int]
    is_all: bool
    displaced: dict[PartitionId, str] = field(default_factory=dict)
    left_out: Set[bytes] = frozenset()

    def without(self, places: Container[PartitionId]) -> Consumed:
        """Returns the result without the records of these partitions."""
        records = [record for record in self.records if (record.topic, record.partition) not in places]
        ended = {place: end for place, end in self.ended.items() if place not in places}
        displaced = {place: why for place, why in self.displaced.items() if place not in places}
        return Consumed(records, ended, self.is_all, displaced, self.left_out)

    def followed_by(self, more: Consumed) -> Consumed:
        """Returns the result of this call and the next as if they had been one."""
        # A record after an end: the partition has gone on, so that end no longer holds.
        gone_on = {(record.topic, record.partition) for record in more.records}
        ended = {place: end for place, end in self.ended.items() if place not in gone_on}
        records, displaced = [*self.records, *more.records], {**self.displaced, **more.displaced}
        return Consumed(records, {**ended, **more.ended}, more.is_all, displaced, self.left_out | more.left_out)


LeaveOut: TypeAlias = Callable[[Sequence[bytes | None]], Set[bytes]]
"""Returns which of these keys the caller has no use for: always the same answer for a key within a batch."""


def consume_when_there(
    consumer: Consumer, count_max: int, timeout_s: float, first_s: float, leave_out: LeaveOut | None = None
) -> Consumed:
    """Like `consume`, but waits `first_s` for the first record, and after that `timeout_s` for more.

    A caller without records sleeps until there is one, and not from one `timeout_s` to the next.
    """
    first = consume(consumer, 1, first_s, leave_out)
    if first.is_all or count_max == 1:
        return first
    return first.followed_by(consume(consumer, count_max - 1, timeout_s, leave_out))


def consume(consumer: Consumer, count_max: int, timeout_s: float, leave_out: LeaveOut | None = None) -> Consumed:
    """Returns at most `count_max` records, after at most `timeout_s` seconds.

    If a record's key is in `leave_out`, only its place and key are read, which takes a third of the time.

    Raises BrokerUnavailable for a permanent error; the client retries after a temporary one by itself.
    """
    messages = consumer.consume(count_max, timeout=timeout_s)
    left_out: Set[bytes] = frozenset()
    if leave_out is not None:
        left_out = leave_out([message.key() for message in messages if message.error() is None])
    consumed = Consumed([], {}, is_all=len(messages) < count_max, left_out=left_out)
    records, ended = consumed.records, consumed.ended
    for message in messages:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if message.error() is not None:
            _note_event(message, topic, partition, offset, consumed)
            continue
        assert topic is not None
        assert partition is not None
        assert offset is not None
        if ended:
            # A record after an end: the partition has gone on, so that end no longer holds.
            ended.pop((topic, partition), None)
        key = message.key()
        if left_out and key in left_out:
            records.append(Record(topic, partition, offset, key, None, 0, None))
            continue
        time_kind, timestamp_ms = message.timestamp()
        value = message.value()
        records.append(
            Record(
                topic,
                partition,
                offset,
                key if key.__class__ is bytes else _as_bytes(key),
                value if value.__class__ is bytes else _as_bytes(value),
                timestamp_ms if timestamp_ms > 0 else 0,
                _headers(message),
                time_kind == TIMESTAMP_LOG_APPEND_TIME,
            )
        )
    return consumed


def _note_event(
    message: Message, topic: str | None, partition: int | None, offset: int | None, consumed: Consumed
) -> None:
    """Note in `consumed` an event of the client: a message that is no record."""
    error = message.error()
    assert error is not None
    if topic is None or partition is None:
        _check_passing(error)
    elif error.code() == KafkaError._PARTITION_EOF:
        consumed.ended[topic, partition] = offset or 0
    elif error.code() in _DISPLACED:
        consumed.displaced[topic, partition] = error.str()
    else:
        _check_passing(error)


def records_to_end(
    consumer: Consumer, topic: str, partitions: Iterable[int], timeout_s: float = READ_TIMEOUT_S
) -> Iterator[list[Record]]:
    """Yields the records of a topic in batches, from its beginning to its present end. Joins no group.

    Raises BrokerUnavailable if Kafka gives nothing for `timeout_s` before the end is reached.
    """
    ends = end_offsets(consumer, topic, partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in ends])
    left = {partition for partition, end in ends.items() if end > 0}
    deadline = time.monotonic() + timeout_s
    while left:
        consumed = consume(consumer, READ_BATCH, 0.5)
        records = [record for record in consumed.records if record.offset < ends[record.partition]]
        if records:
            yield records
            # The time that the caller took does not count against Kafka.
            deadline = time.monotonic() + timeout_s
        # The last offset need not have a record: compaction or expiry may have removed it.
        left -= {partition for _, partition in consumed.ended}
        left -= {record.partition for record in consumed.records if record.offset + 1 >= ends[record.partition]}
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"Kafka did not give the end of {topic} in {timeout_s:g} s")


def records_between(
    consumer: Consumer, topic: str, partition: int, offsets: range, timeout_s: float = READ_TIMEOUT_S
) -> Iterator[list[Record]]:
    """Yields the records of a partition at these offsets, in batches. They must lie before its end. Joins no group.

    Raises BrokerUnavailable if Kafka gives nothing for `timeout_s` before the last offset is reached.
    """
    consumer.assign([TopicPartition(topic, partition, offsets.start)])
    deadline = time.monotonic() + timeout_s
    next_offset = offsets.start
    while next_offset < offsets.stop:
        consumed = consume(consumer, RANGE_BATCH, 0.5)
        records = [record for record in consumed.records if record.partition == partition and record.offset in offsets]
        if consumed.records:
            next_offset = max(next_offset, consumed.records[-1].offset + 1)
        # The last offsets may hold nothing that a reader sees: transaction markers, or compacted records.
        next_offset = max(next_offset, consumed.ended.get((topic, partition), 0))
        if records:
            yield records
            deadline = time.monotonic() + timeout_s
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"Kafka did not give offset {next_offset} of {topic} in {timeout_s:g} s")


# Calls `headers()` from C, where the interpreter checks the result. If a header's name is not UTF-8, confluent-kafka
# returns a list with a hole in it and an exception beside it. The interpreter's own call of a method leaves that check
# out once it has run a few times, and the first look at the name then kills the process.
_read_headers = methodcaller("headers")


def _headers(message: Message) -> RecordHeaders | None:
    try:
        headers = _read_headers(message)
    except SystemError:
        return None
    if headers is None:
        return []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return [(str(pair[0]), _as_bytes(pair[1])) for pair in pairs]


def _as_bytes(content: str | bytes | None) -> bytes | None:
    return content.encode() if isinstance(content, str) else content


def _check_passing(error: KafkaError) -> None:
    if error.fatal() or error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
        raise BrokerUnavailable(f"Kafka refuses: {error.str()}")
    _log.warning("Kafka: %s", error.str())
