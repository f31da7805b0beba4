"""Refusals take a bounded share of a worker's time, whatever they cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paywarden.scoring.engine.batching.refusal_budget import REFUSING_SHARE, RefusalBudget

# The bucket is full at the beginning. It holds the refusals of a burst.
_BURST_S = 0.025


@given(st.floats(2e-6, 500e-6), st.floats(1e-6, 1e-3))
def test_refusals_take_at_most_their_share_of_the_time(cost_s: float, every_s: float) -> None:
    budget, now, refused = RefusalBudget(0.0), 0.0, 0
    while now < 1.0:
        now += every_s
        refused += budget.spend(now, cost_s)
    assert refused * cost_s <= REFUSING_SHARE * now + _BURST_S * 1.001


def test_a_burst_after_calm_is_refused_without_holding_anybody() -> None:
    budget = RefusalBudget(0.0)
    cost_s = 25e-6
    assert all(budget.spend(100.0, cost_s) for _ in range(int(_BURST_S / cost_s) - 1))
    assert not all(budget.spend(100.0, cost_s) for _ in range(2))
