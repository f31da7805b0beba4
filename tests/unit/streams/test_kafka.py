from __future__ import annotations

from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError

from schemas.errors import BrokerUnavailable
from streams.kafka import KafkaSettings, consume


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


def consumed(*messages: FakeMessage) -> Any:
    return consume(cast(Consumer, FakeConsumer(*messages)), 10, 0.0)


END = KafkaError(KafkaError._PARTITION_EOF)


def test_a_partition_read_to_its_end_is_reported() -> None:
    assert consumed(FakeMessage(1), FakeMessage(2, END)).ended == {("payments", 3): 2}


def test_an_end_with_a_record_behind_it_is_none() -> None:
    result = consumed(FakeMessage(1, END), FakeMessage(1))
    assert result.ended == {}
    assert [record.offset for record in result.records] == [1]


def test_a_record_without_a_timestamp_or_a_value_is_whole() -> None:
    (record,) = consumed(FakeMessage(7, value=None)).records
    assert (record.timestamp_ms, record.value, record.headers) == (0, None, [("trace", None)])


def test_an_error_that_does_not_pass_is_raised_and_another_is_not() -> None:
    assert consumed(FakeMessage(0, KafkaError(KafkaError._TRANSPORT))).records == []
    with pytest.raises(BrokerUnavailable, match="refuses"):
        consumed(FakeMessage(0, KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))


def test_no_password_is_in_the_settings_repr() -> None:
    shown = repr(KafkaSettings(sasl_password="s3cret", ssl_key_password="t0psecret"))
    assert "s3cret" not in shown
    assert "t0psecret" not in shown
