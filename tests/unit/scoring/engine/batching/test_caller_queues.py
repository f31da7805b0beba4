from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.scoring.engine.batching.caller_queues import QUANTUM, CallerQueues, CallerRates


@dataclass
class Asked:
    caller: bytes
    number: int = 0


def filled(*callers: tuple[bytes, int], weight: int = 1) -> CallerQueues[Asked]:
    """Returns queues with this many calls of each caller."""
    queues: CallerQueues[Asked] = CallerQueues()
    for caller, count in callers:
        for number in range(count):
            put(queues, Asked(caller, number), weight)
    return queues


def put(queues: CallerQueues[Asked], call: Asked, weight: int = 1) -> None:
    queues.append(queues.of(call.caller), call, weight)


def callers_of(queues: CallerQueues[Asked], count: int) -> list[bytes]:
    """Returns the callers of the next calls, taken in chunks of 32 payments."""
    taken: list[bytes] = []
    while queues and len(taken) < count:
        taken += [call.caller for call in queues.take(32)]
    return taken[:count]


def test_a_caller_with_one_call_waits_for_one_round_of_the_noisy_one() -> None:
    queues = filled((b"noisy", 1000), (b"quiet", 1))
    taken = callers_of(queues, QUANTUM + 1)
    assert taken == [b"noisy"] * QUANTUM + [b"quiet"]


def test_callers_get_equal_shares_while_they_have_calls() -> None:
    queues = filled((b"a", 100), (b"b", 300), (b"c", 200))
    taken = callers_of(queues, 240)
    assert [taken.count(caller) for caller in (b"a", b"b", b"c")] == [80, 80, 80]


def test_a_caller_pays_for_a_large_batch_with_the_rounds_that_follow() -> None:
    queues = filled((b"batches", 3), weight=10 * QUANTUM)
    for number in range(100):
        put(queues, Asked(b"single", number))
    taken = callers_of(queues, 103)
    assert taken[0] == b"batches"
    assert taken.index(b"batches", 1) >= 9 * QUANTUM


def test_what_stands_before_a_call_is_the_share_of_its_caller() -> None:
    queues = filled((b"noisy", 1000))
    noisy, quiet = queues.of(b"noisy"), queues.of(b"quiet")
    assert (queues.ahead_of(noisy), queues.callers_with(noisy)) == (1000, 1)
    assert (queues.ahead_of(quiet), queues.callers_with(quiet)) == (QUANTUM, 2)
    put(queues, Asked(b"quiet"))
    assert (queues.ahead_of(quiet), queues.callers_with(quiet)) == (1 + 1 + QUANTUM, 2)
    assert (queues.ahead_of(noisy), queues.callers_with(noisy)) == (1001, 2)


def test_the_queues_of_callers_that_are_gone_are_not_kept_for_ever() -> None:
    queues = filled((b"there", 1))
    for number in range(10_000):
        queues.of(b"%d" % number)
    assert len(queues.known) <= 4096
    assert callers_of(queues, 5) == [b"there"]


@given(st.lists(st.tuples(st.sampled_from([b"", b"a", b"b", b"c"]), st.integers(1, 300), st.booleans())))
def test_every_call_is_taken_once_and_each_callers_in_order(steps: list[tuple[bytes, int, bool]]) -> None:
    queues: CallerQueues[Asked] = CallerQueues()
    sent: dict[bytes, list[int]] = {}
    taken: dict[bytes, list[int]] = {}

    def take() -> None:
        for call in queues.take(16):
            taken.setdefault(call.caller, []).append(call.number)

    for number, (caller, weight, takes) in enumerate(steps):
        put(queues, Asked(caller, number), weight)
        sent.setdefault(caller, []).append(number)
        if takes:
            take()
    while queues:
        take()
    assert taken == sent
    assert queues.payments == 0
    assert queues.ahead_of(queues.of(b"a")) == 0


def test_a_rate_lets_through_a_second_of_payments_and_then_as_they_come() -> None:
    rates = CallerRates(10)
    assert [rates.spend(b"a", 1, 5.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert rates.spend(b"b", 1, 5.0)
    assert [rates.spend(b"a", 1, 5.25) for _ in range(4)] == [True] * 2 + [False] * 2
    # A batch of more than a second's payments needs a full bucket, and leaves a debt.
    assert rates.spend(b"a", 30, 7.0)
    assert not rates.spend(b"a", 1, 8.9)
    assert rates.spend(b"a", 1, 9.2)


@pytest.mark.parametrize("count", [1, 100_000])
def test_no_rate_is_no_limit_and_remembers_nobody(count: int) -> None:
    rates = CallerRates(0)
    assert all(rates.spend(b"%d" % number, 1000, 0.0) for number in range(count))
    assert not rates._buckets
