from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from paywarden.streams.kafka.stalls.end_offsets import AWAY_AFTER_S, EndsWatch


class FakeAdmin:
    """An admin client whose requests wait until the test answers them."""

    def __init__(self) -> None:
        self.waiting: list[dict[TopicPartition, Future[Any]]] = []
        self.asked = 0

    def list_offsets(self, wanted: Mapping[TopicPartition, Any], **_: Any) -> dict[TopicPartition, Future[Any]]:
        self.asked += 1
        answers: dict[TopicPartition, Future[Any]] = {place: Future() for place in wanted}
        self.waiting.append(answers)
        return answers

    def answer(self, *ends: int) -> None:
        for future, end in zip(self.waiting.pop(0).values(), ends, strict=True):
            future.set_result(SimpleNamespace(offset=end))

    def fail(self) -> None:
        first, *others = self.waiting.pop(0).values()
        first.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
        for future in others:
            future.set_result(SimpleNamespace(offset=1))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def admin() -> FakeAdmin:
    return FakeAdmin()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(admin: Any, clock: Clock) -> EndsWatch:
    return EndsWatch(admin, "profiles", lambda: [("profiles", 0), ("profiles", 1)], clock)


def test_an_answer_is_returned_once_and_look_never_blocks(watch: EndsWatch, admin: FakeAdmin, clock: Clock) -> None:
    assert watch.look() is None
    assert watch.look() is None
    admin.answer(5, 7)
    clock.now += 1
    assert watch.look() == {("profiles", 0): 5, ("profiles", 1): 7}
    assert watch.look() is None


def test_at_most_one_request_is_in_flight(watch: EndsWatch, admin: FakeAdmin, clock: Clock) -> None:
    for _ in range(5):
        watch.look()
        clock.now += 10
    assert admin.asked == 1
    admin.answer(1, 1)
    assert watch.look() == {("profiles", 0): 1, ("profiles", 1): 1}
    assert admin.asked == 2


def test_kafka_counts_as_down_after_a_silence_and_up_after_an_answer(
    watch: EndsWatch, admin: FakeAdmin, clock: Clock
) -> None:
    assert watch.trouble() == ""
    watch.look()
    admin.fail()
    clock.now += AWAY_AFTER_S
    assert watch.look() is None
    # A partition without a leader for a moment is no trouble yet.
    assert watch.trouble() == ""
    clock.now += 1
    assert watch.trouble().startswith("for 7 s Kafka has not said where profiles ends: ")
    assert "timed out" in watch.trouble().lower()
    admin.answer(1, 1)
    assert watch.look() is not None
    assert watch.trouble() == ""


def test_time_before_the_first_look_does_not_count_as_silence(watch: EndsWatch, clock: Clock) -> None:
    clock.now += 1000
    assert watch.trouble() == ""
    watch.look()
    assert watch.trouble() == ""
