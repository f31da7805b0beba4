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


def test_one_call_beside_a_heap_is_a_chunk_of_its_own_unless_chunks_are_filled() -> None:
    for fills, wanted in ((False, [b"quiet"]), (True, [b"quiet"] + [b"noisy"] * 15)):
        queues = filled((b"noisy", 1000))
        queues.take(8)
        put(queues, Asked(b"quiet"))
        assert [call.caller for call in queues.take(16, fills=fills)] == wanted


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(1, 12)), min_size=1, max_size=200),
    st.sampled_from([8, 16, 32]),
    st.booleans(),
)
def test_every_caller_who_waits_gets_his_share(more: list[tuple[bytes, int]], chunk: int, fills: bool) -> None:
    """While `a` always has calls, no other gets more than he does, but for a quantum and two calls."""
    queues, weights, shares = filled((b"a", 1)), dict[int, int](), {b"a": 0, b"b": 0, b"c": 0}

    def take() -> None:
        for call in queues.take(chunk, fills=fills):
            shares[call.caller] += weights.get(call.number, 1)

    for number, (caller, weight) in enumerate(more, 1):
        weights[number] = weight
        put(queues, Asked(caller, number), weight)
        if caller != b"a":
            weights[-number] = 1
            put(queues, Asked(b"a", -number))
        if queues.of(b"a").payments > chunk:
            take()
            assert max(shares[b"b"], shares[b"c"]) <= shares[b"a"] + QUANTUM + 2 * 12


def test_a_caller_pays_for_a_large_batch_with_the_rounds_that_follow() -> None:
    queues = filled((b"batches", 3), weight=10 * QUANTUM)
    for number in range(100):
        put(queues, Asked(b"single", number))
    taken = callers_of(queues, 103)
    assert taken[0] == b"batches"
    assert taken.index(b"batches", 1) >= 9 * QUANTUM


def test_what_stands_before_a_call_is_what_is_taken_before_it() -> None:
    queues = filled((b"noisy", 1000))
    noisy, quiet = queues.of(b"noisy"), queues.of(b"quiet")
    assert (queues.ahead_of(noisy), queues.callers_with(noisy)) == (1000, 1)
    queues.take(8)
    assert (queues.ahead_of(quiet), queues.callers_with(quiet)) == (0, 2)
    for number in range(20):
        put(queues, Asked(b"quiet", number))
    ahead = queues.ahead_of(quiet)
    put(queues, Asked(b"quiet", 20))
    taken = callers_of(queues, 100)
    place = [index for index, caller in enumerate(taken) if caller == b"quiet"][20]
    assert abs(ahead - place) <= QUANTUM
    assert queues.callers_with(noisy) == 1


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


def test_a_rate_lets_payments_through_as_they_come() -> None:
    rates = CallerRates(10)
    assert [rates.spend(b"a", 1, 5.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert rates.spend(b"b", 1, 5.0)
    assert [rates.spend(b"a", 1, 5.25) for _ in range(4)] == [True] * 2 + [False] * 2
    # A batch of more payments than the bucket holds needs a full one, and leaves a debt.
    assert rates.spend(b"a", 30, 7.0)
    assert not rates.spend(b"a", 1, 8.9)
    assert rates.spend(b"a", 1, 9.2)


@pytest.mark.parametrize(("per_second", "at_once"), [(10, 10), (1000, 256), (20_000, 1000)])
def test_at_once_a_rate_lets_through_little_but_a_full_batch(per_second: int, at_once: int) -> None:
    """A second's payments at once kept the other callers waiting for a third of a second."""
    rates = CallerRates(per_second)
    assert sum(rates.spend(b"a", 1, 5.0) for _ in range(30_000)) == at_once
    assert rates.spend(b"b", 256, 5.0)


@pytest.mark.parametrize("count", [1, 100_000])
def test_no_rate_is_no_limit_and_remembers_nobody(count: int) -> None:
    rates = CallerRates(0)
    assert all(rates.spend(b"%d" % number, 1000, 0.0) for number in range(count))
    assert not rates._buckets
