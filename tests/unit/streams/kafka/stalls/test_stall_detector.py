from __future__ import annotations

import re
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import IsolationLevel, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.kafka.stalls.end_offsets import ASK_EVERY_S
from paywarden.streams.kafka.stalls.stall_detector import NOTHING_HEARD, StallWatch, named

A, B = ("t", 0), ("t", 1)
STALLED = re.compile(r"t/(\d)")


class StableEnds:
    """An admin client for which readers of committed records come to these offsets."""

    def __init__(self, ends: dict[PartitionId, int]) -> None:
        self._ends = ends

    def list_offsets(
        self, wanted: dict[TopicPartition, Any], isolation_level: IsolationLevel, **_: object
    ) -> dict[TopicPartition, Future[Any]]:
        assert isolation_level == IsolationLevel.READ_COMMITTED
        answers: dict[TopicPartition, Future[Any]] = {place: Future() for place in wanted}
        for place, answer in answers.items():
            answer.set_result(SimpleNamespace(offset=self._ends[place.topic, place.partition]))
        return answers


def watch_of(count: int, stable: dict[PartitionId, int]) -> StallWatch:
    """Returns a watch that allows this many looks."""
    admin: Any = StableEnds(stable)
    return StallWatch(admin, count * ASK_EVERY_S)


def checked(watch: StallWatch, ends: dict[PartitionId, int], positions: dict[PartitionId, int]) -> list[PartitionId]:
    """Returns the partitions that a check calls stalled."""
    try:
        watch.check(ends, positions)
    except BrokerUnavailable as error:
        return [("t", int(number)) for number in STALLED.findall(str(error))]
    return []


def looks(
    watch: StallWatch, ends: dict[PartitionId, int], *positions: dict[PartitionId, int]
) -> list[list[PartitionId]]:
    """Check after the client has handed out everything it had, once for each of `positions`."""
    found = []
    for each in positions:
        watch.gave(is_all=True)
        found.append(checked(watch, ends, each))
    return found


def test_a_paused_or_revoked_partition_never_counts_as_stalled() -> None:
    watch = watch_of(1, {A: 9})
    assert looks(watch, {A: 9}, {A: 5}, {}, {A: 5}, {}, {A: 5}) == [[]] * 5
    assert looks(watch, {}, {A: 5}, {A: 5}, {A: 5}) == [[]] * 3


def test_records_that_wait_in_the_client_have_not_stalled() -> None:
    watch = watch_of(1, {A: 9})
    for _ in range(9):
        watch.gave(is_all=False)
        assert checked(watch, {A: 9}, {A: 5}) == []
    watch.gave(is_all=True)
    watch.gave(is_all=False)
    assert [checked(watch, {A: 9}, {A: 5}) for _ in range(3)] == [[]] * 3
    assert looks(watch, {A: 9}, {A: 5}) == [[A]]


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 4)), max_size=40), st.integers(1, 4))
def test_stalled_means_at_one_offset_for_the_allowed_looks_plus_one(seen: list[tuple[int, int]], count: int) -> None:
    watch = watch_of(count, {A: 5})
    for number, (position, end) in enumerate(seen):
        (stalled,) = looks(watch, {A: end}, {A: position})
        last = seen[max(0, number - count) : number + 1]
        expected = len(last) == count + 1 and all(then == position and then < at for then, at in last)
        assert stalled == ([A] if expected else [])


def test_a_log_line_names_the_first_few() -> None:
    places = [("t", number) for number in range(5)]
    assert named(places[:2]) == "t/0, t/1"
    assert named(places) == "t/0, t/1, t/2 and 2 more"


def test_a_partition_held_up_by_an_open_transaction_has_not_stalled(caplog: pytest.LogCaptureFixture) -> None:
    stable = {A: 5, B: 8}
    watch = watch_of(2, stable)
    ends, positions = {A: 9, B: 9}, {A: 5, B: 6}
    assert looks(watch, ends, *[positions] * 3) == [[], [], [B]]
    assert "an open transaction of a producer holds up t/0: 4 records wait for its end" in caplog.text
    # Its time starts again, and that of the stalled one goes on.
    stable[A] = 8
    assert looks(watch, ends, *[positions] * 3) == [[B], [B], [A, B]]


def test_a_partition_of_which_nothing_was_heard_is_not_held_up() -> None:
    assert looks(watch_of(1, {A: 0}), {A: 9}, *[{A: NOTHING_HEARD}] * 2) == [[], [A]]
