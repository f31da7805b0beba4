from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from prometheus_client import CollectorRegistry

from paywarden.streams.kafka.client import KafkaSettings, PartitionId
from paywarden.streams.kafka.stalls.open_transactions import (
    TOLD_AFTER_MS,
    OpenTransaction,
    OpenTransactions,
    TransactionWatch,
)

A, B = ("t", 0), ("u", 1)


class Broker:
    """Answers where partitions end: written to, and readable to."""

    def __init__(self) -> None:
        self.ends: dict[PartitionId, tuple[int, int]] = {}
        self.is_away = False
        self.now_ms = 1_000_000_000_000

    def list_offsets(
        self, wanted: dict[TopicPartition, Any], isolation_level: IsolationLevel, **_: object
    ) -> dict[TopicPartition, Future[Any]]:
        if self.is_away:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        answers: dict[TopicPartition, Future[Any]] = {place: Future() for place in wanted}
        for place, answer in answers.items():
            written, readable = self.ends[place.topic, place.partition]
            is_stable = isolation_level == IsolationLevel.READ_COMMITTED
            answer.set_result(SimpleNamespace(offset=readable if is_stable else written))
        return answers


def watch_of(broker: Broker) -> OpenTransactions:
    admin: Any = broker
    return OpenTransactions(admin, lambda: broker.ends, now_ms=lambda: broker.now_ms)


def looks(watch: OpenTransactions, broker: Broker, seconds: int) -> None:
    for _ in range(seconds):
        broker.now_ms += 1000
        watch.look()


def test_a_transaction_that_is_left_open_is_told_with_its_beginning_and_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    broker = Broker()
    broker.ends = {A: (9, 5), B: (7, 7)}
    watch = watch_of(broker)
    watch.look()
    since_ms = broker.now_ms
    looks(watch, broker, TOLD_AFTER_MS // 1000 - 1)
    assert (watch.held, watch.line(), watch.since_ms()) == ({}, "", 0)
    looks(watch, broker, 5)
    assert watch.held == {A: OpenTransaction(since_ms, 4)}
    broker.ends[A] = (12, 5)
    looks(watch, broker, 5)
    line = "an open transaction of a producer holds up t/0 since 2001-09-09 01:46:40 UTC: 7 records wait for its end"
    assert (watch.line(), watch.since_ms()) == (line, since_ms)
    broker.ends[A] = (13, 13)
    looks(watch, broker, 5)
    assert watch.held == {}
    assert [record.message for record in caplog.records] == [
        line.replace("7 records", "4 records"),
        "t/0: the open transaction has ended",
    ]


def test_transactions_that_follow_each_other_hold_nothing_up() -> None:
    broker = Broker()
    watch = watch_of(broker)
    for number in range(60):
        # Each look meets the next one, which is open.
        broker.ends = {A: (10 * number + 10, 10 * number)}
        looks(watch, broker, 5)
        assert watch.held == {}


def test_while_kafka_is_away_nothing_is_told_to_have_ended() -> None:
    broker = Broker()
    broker.ends = {A: (9, 5)}
    watch = watch_of(broker)
    looks(watch, broker, 30)
    held = watch.held
    assert held
    broker.is_away = True
    looks(watch, broker, 30)
    assert watch.held == held


def test_a_clock_that_is_set_back_puts_no_look_off() -> None:
    broker = Broker()
    broker.ends = {A: (9, 9)}
    watch = watch_of(broker)
    watch.look()
    broker.now_ms -= 3_600_000
    broker.ends = {A: (9, 5)}
    looks(watch, broker, 30)
    assert watch.held


def test_the_gauge_of_each_topic_says_for_how_long_it_is_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, registry = Broker(), CollectorRegistry()
    broker.ends = {("x.t", 0): (9, 5), ("x.t", 1): (5, 5), ("x.u", 0): (7, 7)}
    monkeypatch.setattr(
        "paywarden.streams.kafka.stalls.open_transactions.time",
        SimpleNamespace(time_ns=lambda: broker.now_ms * 1_000_000),
    )
    partitions = {"t": [0, 1], "u": [0]}
    clients: Any = SimpleNamespace(
        topic=lambda name: KafkaSettings(topic_prefix="x.").topic(name), partitions=partitions.__getitem__, admin=broker
    )
    watch = TransactionWatch(clients, ["t", "u"], registry)

    def gauge(topic: str) -> float | None:
        return registry.get_sample_value("paywarden_open_transaction_seconds", {"topic": topic})

    assert (gauge("x.t"), gauge("x.u")) == (0.0, 0.0)
    for _ in range(60):
        watch.look()
        broker.now_ms += 1000
    watch.look()
    assert (gauge("x.t"), gauge("x.u")) == (60.0, 0.0)
    broker.ends["x.t", 0] = (9, 9)
    broker.now_ms += 5000
    watch.look()
    assert gauge("x.t") == 0.0
