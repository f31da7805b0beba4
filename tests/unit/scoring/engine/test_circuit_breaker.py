"""The circuit breaker by itself: which operations it lets through, at times that are passed in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.scoring.engine.circuit_breaker import BreakerState, CircuitBreaker

FAILURE_COUNT_MAX = 3
COOLDOWN_MS = 1_000


@pytest.fixture
def changes() -> list[BreakerState]:
    return []


@pytest.fixture
def breaker(changes: list[BreakerState]) -> CircuitBreaker:
    return CircuitBreaker(failure_count_max=FAILURE_COUNT_MAX, cooldown_ms=COOLDOWN_MS, on_change=changes.append)


def fail(breaker: CircuitBreaker, now_ms: int, *, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(ticket(breaker, now_ms), now_ms)


def state_of(breaker: CircuitBreaker) -> BreakerState:
    return breaker.state


def ticket(breaker: CircuitBreaker, now_ms: int) -> int:
    given_ticket = breaker.admit(now_ms)
    assert given_ticket is not None
    return given_ticket


def test_a_breaker_stays_open_for_the_cool_down_to_the_millisecond(breaker: CircuitBreaker) -> None:
    fail(breaker, 50, times=FAILURE_COUNT_MAX)
    assert breaker.wait_ms(50) == COOLDOWN_MS
    assert breaker.admit(50 + COOLDOWN_MS - 1) is None
    assert breaker.wait_ms(50 + COOLDOWN_MS - 1) == 1
    assert breaker.wait_ms(50 + COOLDOWN_MS) == 0
    assert breaker.admit(50 + COOLDOWN_MS) is not None
    assert state_of(breaker) is BreakerState.HALF_OPEN


def test_a_trial_that_is_abandoned_leaves_the_trial_to_the_next(breaker: CircuitBreaker) -> None:
    fail(breaker, 0, times=FAILURE_COUNT_MAX)
    breaker.abandoned(ticket(breaker, COOLDOWN_MS))
    assert state_of(breaker) is BreakerState.OPEN
    breaker.succeeded(ticket(breaker, COOLDOWN_MS))
    assert state_of(breaker) is BreakerState.CLOSED


@pytest.mark.parametrize("end", [lambda b, t: b.succeeded(t), lambda b, t: b.failed(t, 0), lambda b, t: b.abandoned(t)])
def test_an_operation_of_an_earlier_state_changes_nothing(
    breaker: CircuitBreaker, end: Callable[[CircuitBreaker, int], None]
) -> None:
    before = ticket(breaker, 0)
    fail(breaker, 0, times=FAILURE_COUNT_MAX)
    end(breaker, before)
    assert state_of(breaker) is BreakerState.OPEN
    trial = ticket(breaker, COOLDOWN_MS)
    end(breaker, before)
    assert state_of(breaker) is BreakerState.HALF_OPEN
    breaker.succeeded(trial)
    end(breaker, before)
    fail(breaker, COOLDOWN_MS, times=FAILURE_COUNT_MAX - 1)
    assert state_of(breaker) is BreakerState.CLOSED


def test_every_change_of_state_is_reported_once(breaker: CircuitBreaker, changes: list[BreakerState]) -> None:
    fail(breaker, 0, times=FAILURE_COUNT_MAX)
    breaker.admit(1)
    fail(breaker, COOLDOWN_MS)
    breaker.succeeded(ticket(breaker, 2 * COOLDOWN_MS))
    breaker.succeeded(ticket(breaker, 2 * COOLDOWN_MS))
    opened = [BreakerState.OPEN, BreakerState.HALF_OPEN]
    assert changes == [*opened, *opened, BreakerState.CLOSED]


def test_one_of_many_threads_gets_the_trial(breaker: CircuitBreaker) -> None:
    fail(breaker, 0, times=FAILURE_COUNT_MAX)
    with ThreadPoolExecutor(8) as threads:
        tickets = list(threads.map(breaker.admit, [COOLDOWN_MS] * 200))
    assert sum(one is not None for one in tickets) == 1


_STEPS = st.lists(
    st.tuples(st.sampled_from(["admit", "succeeded", "failed", "abandoned"]), st.integers(0, 400), st.integers(0, 3)),
    max_size=60,
)


@given(steps=_STEPS)
def test_a_breaker_is_never_stuck_and_never_floods_the_store(steps: list[tuple[str, int, int]]) -> None:
    """Calls may end in any order: while the breaker cools no call passes, and once all have ended one does."""
    breaker = CircuitBreaker(failure_count_max=2, cooldown_ms=COOLDOWN_MS)
    now_ms = 0
    under_way: list[int] = []
    opened_ms = -COOLDOWN_MS
    for what, passed_ms, which in steps:
        now_ms += passed_ms
        was_open = state_of(breaker) is BreakerState.OPEN
        if what == "admit":
            given_ticket = breaker.admit(now_ms)
            assert given_ticket is None or not was_open or now_ms >= opened_ms + COOLDOWN_MS
            under_way += [] if given_ticket is None else [given_ticket]
        elif under_way:
            ended = under_way.pop(which % len(under_way))
            if what == "succeeded":
                breaker.succeeded(ended)
            elif what == "failed":
                breaker.failed(ended, now_ms)
            else:
                breaker.abandoned(ended)
            if what == "failed" and not was_open and state_of(breaker) is BreakerState.OPEN:
                opened_ms = now_ms
    for one in under_way:
        breaker.abandoned(one)
    assert breaker.admit(now_ms + breaker.wait_ms(now_ms)) is not None
