from __future__ import annotations

import pytest

from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.progress.arrivals import Arrivals

PLACE = ("payments", 0)
HOUR_MS = 3_600_000
NOW_MS = 1_800_000_000_000


def record(offset: int, timestamp_ms: int, *, is_broker_time: bool = False) -> Record:
    return Record(*PLACE, offset, b"k", b"v", timestamp_ms, (), is_broker_time)


@pytest.fixture
def arrivals() -> Arrivals:
    """The partition ended at 100 two seconds before now, and at 150 just now."""
    arrivals = Arrivals()
    arrivals.ended({PLACE: 100}, asked_ms=NOW_MS - 2_010, answered_ms=NOW_MS - 2_000)
    arrivals.ended({PLACE: 150}, asked_ms=NOW_MS - 10, answered_ms=NOW_MS)
    return arrivals


def test_a_time_of_the_broker_stays(arrivals: Arrivals) -> None:
    at = record(120, NOW_MS - 1_500, is_broker_time=True)
    assert arrivals.arrived_ms(at, NOW_MS) == NOW_MS - 1_500


def test_a_right_clock_of_a_producer_stays(arrivals: Arrivals) -> None:
    assert arrivals.arrived_ms(record(120, NOW_MS - 1_500), NOW_MS) == NOW_MS - 1_500


def test_a_producer_an_hour_ahead_is_moved_back(arrivals: Arrivals) -> None:
    assert arrivals.arrived_ms(record(120, NOW_MS + HOUR_MS), NOW_MS + 50) == NOW_MS
    # After the last mark, and before the first one.
    assert arrivals.arrived_ms(record(170, NOW_MS + HOUR_MS), NOW_MS + 50) == NOW_MS + 50
    assert Arrivals().arrived_ms(record(3, NOW_MS + HOUR_MS), NOW_MS) == NOW_MS


def test_a_producer_an_hour_behind_is_moved_on(arrivals: Arrivals) -> None:
    assert arrivals.arrived_ms(record(120, NOW_MS - HOUR_MS), NOW_MS) == NOW_MS - 2_010
    # A record from before the worker's start may be as old as its producer says.
    assert arrivals.arrived_ms(record(20, NOW_MS - HOUR_MS), NOW_MS) == NOW_MS - HOUR_MS


def test_an_end_that_stays_moves_the_bounds_on(arrivals: Arrivals) -> None:
    arrivals.ended({PLACE: 150}, asked_ms=NOW_MS + 5_000, answered_ms=NOW_MS + 5_010)
    late = record(150, NOW_MS - HOUR_MS)
    assert arrivals.arrived_ms(late, NOW_MS + 6_000) == NOW_MS + 5_000


def test_records_that_are_read_again_have_wider_bounds(arrivals: Arrivals) -> None:
    arrivals.bounds(record(160, NOW_MS), NOW_MS)
    assert arrivals.bounds(record(20, NOW_MS), NOW_MS + 9) == (0, NOW_MS)


def test_a_partition_that_moved_has_no_bounds(arrivals: Arrivals) -> None:
    arrivals.forget(PLACE)
    assert arrivals.bounds(record(120, NOW_MS), NOW_MS) == (0, NOW_MS)


def test_a_record_without_a_time_stays_without(arrivals: Arrivals) -> None:
    assert arrivals.arrived_ms(record(120, 0), NOW_MS) == 0
