from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.outcome_gate import WaitingOutcomes


def outcome(partition: int, offset: int) -> Record:
    return Record("outcomes", partition, offset, b"p", b"v", 0, ())


def test_an_outcome_waits_for_the_commit_of_all_earlier_payments() -> None:
    waiting = WaitingOutcomes()
    waiting.add([outcome(0, 0)])
    waiting.wait_for({0: 10, 1: 3, 2: 0})
    assert waiting.take_due({0: 10, 1: 2}) == []
    # Nothing was ever committed of an empty partition.
    assert waiting.take_due({0: 10, 1: 3}) == [outcome(0, 0)]
    assert len(waiting) == 0


def test_an_outcome_without_known_ends_is_not_due() -> None:
    waiting = WaitingOutcomes()
    assert not waiting.asks_for_ends()
    waiting.add([outcome(0, 0)])
    assert waiting.asks_for_ends()
    assert waiting.take_due({0: 1_000_000}) == []


def test_a_later_outcome_waits_for_later_payments() -> None:
    waiting = WaitingOutcomes()
    waiting.add([outcome(0, 0)])
    waiting.wait_for({0: 10})
    waiting.add([outcome(0, 1)])
    waiting.wait_for({0: 20})
    assert waiting.take_due({0: 10}) == [outcome(0, 0)]
    assert waiting.take_due({0: 19}) == []
    assert waiting.take_due({0: 20}) == [outcome(0, 1)]


def test_outcomes_of_a_revoked_partition_are_forgotten() -> None:
    waiting = WaitingOutcomes()
    waiting.add([outcome(0, 0), outcome(1, 0)])
    waiting.wait_for({})
    waiting.drop({0})
    assert waiting.take_due({}) == [outcome(1, 0)]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=40), st.lists(st.integers(0, 60), max_size=10)
)
def test_every_outcome_comes_out_once_in_the_order_of_its_partition(
    arrivals: list[tuple[int, int]], moments: list[int]
) -> None:
    waiting, end, records = WaitingOutcomes(), 0, []
    for offset, (partition, more_payments) in enumerate(arrivals):
        end += more_payments
        records.append(outcome(partition, offset))
        waiting.add(records[-1:])
        waiting.wait_for({0: end})
    taken = [record for moment in sorted(moments) for record in waiting.take_due({0: moment})]
    taken += waiting.take_due({0: end})
    for partition in range(3):
        assert [r for r in taken if r.partition == partition] == [r for r in records if r.partition == partition]
