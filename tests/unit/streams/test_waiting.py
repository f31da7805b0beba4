from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.kafka import Record
from streams.waiting import WaitingOutcomes


def outcome(partition: int, offset: int, timestamp_ms: int) -> Record:
    return Record("outcomes", partition, offset, b"p", b"v", timestamp_ms, ())


def test_an_outcome_waits_until_the_payments_are_complete_past_its_arrival() -> None:
    waiting = WaitingOutcomes()
    waiting.add([outcome(0, 0, 1000)], now_ms=5000)
    assert waiting.take_due(999) == []
    # A payment of the same millisecond may not have been read yet.
    assert waiting.take_due(1000) == []
    assert waiting.take_due(1001) == [outcome(0, 0, 1000)]
    assert len(waiting) == 0


def test_an_outcome_dated_in_the_future_waits_no_longer_than_one_that_arrived_now() -> None:
    waiting = WaitingOutcomes()
    waiting.add([outcome(0, 0, 9_000_000)], now_ms=5000)
    assert len(waiting.take_due(5001)) == 1


def test_an_outcome_does_not_overtake_another_of_its_partition() -> None:
    waiting = WaitingOutcomes()
    waiting.add([outcome(0, 0, 2000), outcome(0, 1, 1000), outcome(1, 0, 1000)], now_ms=5000)
    assert waiting.take_due(1500) == [outcome(1, 0, 1000)]
    assert waiting.take_due(2500) == [outcome(0, 0, 2000), outcome(0, 1, 1000)]


def test_outcomes_of_a_partition_that_is_gone_are_forgotten() -> None:
    waiting = WaitingOutcomes()
    waiting.add([outcome(0, 0, 1), outcome(1, 0, 1)], now_ms=5000)
    waiting.drop({0})
    assert waiting.take_due(10) == [outcome(1, 0, 1)]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=40),
    st.lists(st.integers(0, 60), max_size=10),
)
def test_every_outcome_comes_out_once_and_in_the_order_of_its_partition(
    arrivals: list[tuple[int, int]], moments: list[int]
) -> None:
    waiting = WaitingOutcomes()
    records = [outcome(partition, offset, time_ms) for offset, (partition, time_ms) in enumerate(arrivals)]
    waiting.add(records, now_ms=100)
    taken = [record for moment in sorted(moments) for record in waiting.take_due(moment)] + waiting.take_due(1000)
    for partition in range(3):
        assert [r for r in taken if r.partition == partition] == [r for r in records if r.partition == partition]
