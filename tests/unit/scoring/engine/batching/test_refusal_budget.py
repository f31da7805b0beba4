"""Refusals take a bounded share of a worker's time, whatever they cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paywarden.scoring.engine.batching.refusal_budget import REFUSING_SHARE, RefusalBudget


@given(st.floats(2e-6, 50e-6), st.floats(1e-6, 1e-3))
def test_refusals_take_at_most_their_share_of_the_time(cost_s: float, every_s: float) -> None:
    budget, now, refused = RefusalBudget(0.0), 0.0, 0
    while now < 1.0:
        now += every_s
        refused += budget.spend(now, cost_s)
    # The bucket was full at the beginning.
    assert refused * cost_s <= REFUSING_SHARE * now + 0.0126


def test_a_burst_after_calm_is_refused_without_holding_anybody() -> None:
    budget = RefusalBudget(0.0)
    assert all(budget.spend(100.0, 12e-6) for _ in range(1000))
    assert not all(budget.spend(100.0, 12e-6) for _ in range(200))
