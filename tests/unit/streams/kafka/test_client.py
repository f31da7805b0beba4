from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from paywarden.schemas.avro import TOPICS
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.kafka.admin import end_offsets, offsets_at, retry_until_leader
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import consume, records_between, records_to_end


class FakeMessage:
    def __init__(self, offset: int, error: KafkaError | None = None, value: bytes | None = b"v") -> None:
        self._offset, self._error, self._value = offset, error, value

    def topic(self) -> str:
        return "payments"

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return self._error

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return [("trace", None)]

    def timestamp(self) -> tuple[int, int]:
        return 0, -1


class FakeConsumer:
    def __init__(self, *messages: FakeMessage) -> None:
        self._messages = messages

    def consume(self, num_messages: int, timeout: float) -> list[FakeMessage]:  # noqa: ARG002
        return list(self._messages)


class FakeTopic(FakeConsumer):
    """Partition 3 of a topic that ends at `end`. It returns the batches one by one, then nothing."""

    def __init__(self, end: int, *batches: list[FakeMessage]) -> None:
        self._end, self._batches = end, list(batches)
        self.assigned: list[tuple[int, int]] = []

    def get_watermark_offsets(self, _: object, timeout: float) -> tuple[int, int]:  # noqa: ARG002
        return 0, self._end

    def assign(self, partitions: list[Any]) -> None:
        self.assigned = [(place.partition, place.offset) for place in partitions]

    def consume(self, num_messages: int, timeout: float) -> list[FakeMessage]:  # noqa: ARG002
        return self._batches.pop(0) if self._batches else []


def offsets_to_end(topic: FakeTopic, timeout_s: float = 30.0) -> list[int]:
    batches = records_to_end(cast(Consumer, topic), "payments", [3], timeout_s)
    return [record.offset for records in batches for record in records]


def consumed(*messages: FakeMessage) -> Any:
    return consume(cast(Consumer, FakeConsumer(*messages)), 10, 0.0)


END = KafkaError(KafkaError._PARTITION_EOF)


def test_a_partition_read_to_its_end_is_reported() -> None:
    assert consumed(FakeMessage(1), FakeMessage(2, END)).ended == {("payments", 3): 2}


def test_an_end_that_a_record_follows_is_not_reported() -> None:
    result = consumed(FakeMessage(1, END), FakeMessage(1))
    assert result.ended == {}
    assert [record.offset for record in result.records] == [1]


def test_a_record_without_timestamp_or_value_is_read() -> None:
    (record,) = consumed(FakeMessage(7, value=None)).records
    assert (record.timestamp_ms, record.value, record.headers) == (0, None, [("trace", None)])


def test_of_a_record_that_is_left_out_only_place_and_key_are_read() -> None:
    class Unread(FakeMessage):
        def key(self) -> bytes:
            return b"other host's"

        def value(self) -> bytes | None:
            pytest.fail("it is read")

        def headers(self) -> list[tuple[str, bytes | None]] | None:
            pytest.fail("it is read")

    asked: list[Any] = []

    def leave_out(keys: Any) -> set[bytes]:
        asked.append(list(keys))
        return {b"other host's"}

    client = cast(Consumer, FakeConsumer(FakeMessage(1), Unread(2), FakeMessage(3), FakeMessage(4, END)))
    result = consume(client, 10, 0.0, leave_out)
    assert asked == [[b"k", b"other host's", b"k"]]
    assert [(record.offset, record.value) for record in result.records] == [(1, b"v"), (2, None), (3, b"v")]
    assert (result.left_out, result.ended) == ({b"other host's"}, {("payments", 3): 4})


def test_only_a_permanent_error_is_raised() -> None:
    assert consumed(FakeMessage(0, KafkaError(KafkaError._TRANSPORT))).records == []
    with pytest.raises(BrokerUnavailable, match="refuses"):
        consumed(FakeMessage(0, KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))


def test_a_topic_is_read_to_the_end_it_had_at_the_start() -> None:
    topic = FakeTopic(3, [FakeMessage(0), FakeMessage(1)], [FakeMessage(2), FakeMessage(3), FakeMessage(4)])
    assert offsets_to_end(topic) == [0, 1, 2]
    assert topic.assigned == [(3, OFFSET_BEGINNING)]


def test_a_topic_whose_last_records_are_gone_is_read_to_its_end() -> None:
    """The last records are compacted or expired: the offset before the end holds no record."""
    assert offsets_to_end(FakeTopic(9, [FakeMessage(4)], [], [FakeMessage(9, END)])) == [4]
    assert offsets_to_end(FakeTopic(9, [FakeMessage(9, END)])) == []
    assert offsets_to_end(FakeTopic(0)) == []


def test_a_silent_broker_before_the_end_of_a_topic_is_an_error() -> None:
    with pytest.raises(BrokerUnavailable, match="did not give the end of payments"):
        offsets_to_end(FakeTopic(9, [FakeMessage(4)]), timeout_s=0.01)


class Elected:
    """A client whose partition has no leader for the first `refused` questions."""

    def __init__(self, refused: int, code: int = KafkaError.NOT_LEADER_FOR_PARTITION) -> None:
        self.left, self.code = refused, code

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        assert timeout > 0
        self.left -= 1
        if self.left >= 0:
            raise KafkaException(KafkaError(self.code))
        return 0, 10 + place.partition


def test_a_leader_is_waited_for_until_another_broker_can_be_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka takes a broker for dead after 9 s, and then elects another leader."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    elected = Elected(120)
    assert end_offsets(cast("Consumer", elected), "t", [0]) == {0: 10}
    assert clock[0] > 11


def test_waiting_for_a_leader_ends_and_other_errors_raise_at_once() -> None:
    elected = Elected(1000)
    with pytest.raises(BrokerUnavailable, match=r"does not say where t ends: .*[Ll]eader"):
        retry_until_leader(lambda: elected.get_watermark_offsets(TopicPartition("t", 0), 1.0), "where t ends", 0.3)
    assert 990 <= elected.left < 1000
    refused = Elected(1000, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(BrokerUnavailable, match="does not say where t begins and ends"):
        end_offsets(cast("Consumer", refused), "t", [0])
    assert refused.left == 999


def test_a_partition_without_a_leader_is_asked_again_for_its_offset() -> None:
    class Answering:
        def __init__(self) -> None:
            self.errors = [KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION), None]

        def offsets_for_times(self, places: list[TopicPartition], timeout: float) -> list[Any]:
            assert timeout > 0
            error = self.errors.pop(0)
            offset = -1001 if error else 5
            return [SimpleNamespace(partition=place.partition, offset=offset, error=error) for place in places]

    client = Answering()
    assert offsets_at(cast("Consumer", client), "t", {0: 9}, 1) == {0: 5}
    assert client.errors == []


def offsets_between(topic: FakeTopic, offsets: range, timeout_s: float = 30.0) -> list[int]:
    batches = records_between(cast(Consumer, topic), "payments", 3, offsets, timeout_s)
    return [record.offset for records in batches for record in records]


def test_a_range_of_offsets_is_read_and_later_records_are_not() -> None:
    topic = FakeTopic(9, [FakeMessage(4), FakeMessage(5)], [FakeMessage(6), FakeMessage(7)], [FakeMessage(8)])
    assert offsets_between(topic, range(4, 7)) == [4, 5, 6]
    assert topic.assigned == [(3, 4)]
    assert offsets_between(topic, range(8, 8)) == []


def test_a_range_may_end_with_offsets_that_hold_no_record() -> None:
    topic = FakeTopic(9, [FakeMessage(4)], [FakeMessage(9, END)])
    assert offsets_between(topic, range(4, 9)) == [4]


def test_an_end_before_the_range_is_complete_does_not_stop_it() -> None:
    topic = FakeTopic(9, [FakeMessage(4), FakeMessage(5, END)], [FakeMessage(5)], [FakeMessage(6)])
    assert offsets_between(topic, range(4, 7)) == [4, 5, 6]


def test_a_range_without_any_records_from_the_broker_is_an_error() -> None:
    with pytest.raises(BrokerUnavailable, match="Kafka did not give offset 4 of payments in 0 s"):
        offsets_between(FakeTopic(9), range(4, 9), timeout_s=0.0)


def test_a_partition_without_later_records_gets_its_end() -> None:
    class Timed:
        def offsets_for_times(self, places: list[Any], timeout: float) -> list[Any]:  # noqa: ARG002
            return [TopicPartition(one.topic, one.partition, 7 if one.partition == 0 else -1) for one in places]

    assert offsets_at(cast(Consumer, Timed()), "payments", {0: 9, 1: 5}, 1000) == {0: 7, 1: 5}


def test_only_internal_topics_use_the_internal_compression() -> None:
    settings = KafkaSettings(topic_prefix="eu-", compression="zstd", internal_compression="none")
    internal = {"profiles", "repartition-card", "repartition-card.next"}
    public = {*TOPICS, "schemas", "outbox-cursors"} - internal
    assert {settings.compression_of(f"eu-{name}") for name in internal} == {"none"}
    assert {settings.compression_of(f"eu-{name}") for name in public} == {"zstd"}


def test_a_second_deployment_may_read_the_sources_of_the_first() -> None:
    names = ("payments", "outcomes", "profiles", "shadow-decisions")
    own = KafkaSettings(topic_prefix="wide-")
    assert [own.topic(name) for name in names] == [f"wide-{name}" for name in names]
    shared = KafkaSettings(topic_prefix="wide-", source_prefix="")
    assert [shared.topic(name) for name in names] == ["payments", "outcomes", "wide-profiles", "wide-shadow-decisions"]


def test_records_that_the_broker_does_not_take_in_time_are_told() -> None:
    # Nobody listens there.
    sender = Sender(KafkaSettings(bootstrap="127.0.0.1:9"), linger_ms=0)
    for number in range(3):
        sender.send("payments", b"%d" % number, key=None)
    with pytest.raises(BrokerUnavailable, match=r"^Kafka did not take 3 records in 0\.1 s$"):
        sender.flush(0.1)
