"""Refusals take a bounded share of a worker's time, whatever they cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.scoring.engine.batching.refusal_budget import REFUSING_SHARE, RefusalBudget


@given(st.floats(2e-6, 50e-6), st.floats(1e-6, 1e-3))
def test_refusals_take_at_most_their_share_of_the_time(cost_s: float, every_s: float) -> None:
    budget, now, refused = RefusalBudget(0.0), 0.0, 0
    for _ in range(200):
        budget.note_turn(100, 100 * cost_s)
    while now < 1.0:
        now += every_s
        refused += budget.spend(now)
    # The bucket was full, and the learnt cost comes close to the real one.
    assert refused * cost_s <= 1.01 * (REFUSING_SHARE * now + 0.01)


def test_a_burst_after_calm_is_refused_without_holding_anybody() -> None:
    budget = RefusalBudget(0.0)
    assert all(budget.spend(100.0) for _ in range(900))
    assert not all(budget.spend(100.0) for _ in range(200))


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_one_odd_turn_changes_the_cost_of_a_refusal_little(seconds: float) -> None:
    budget = RefusalBudget(0.0)
    budget.note_turn(1000, seconds)
    assert 500 < sum(budget.spend(1.0) for _ in range(5000)) < 1500
