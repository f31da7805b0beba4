"""Shares of exploration that follow its yield: what they find, what they cost, and what may rest on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.policy_value import gains, policy_value
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.models.replay.explored_shares import (
    BOUND,
    EXPLORED_MIN,
    BandYield,
    ExploredPayments,
    configured_shares,
    propose_shares,
)
from paywarden.schemas.errors import Misconfigured

SHARE, DECLINED_FROM = 0.05, 0.5
RUNS = 100


def declined(seed: int, payments: int, width: float = 0.1) -> ExploredPayments:
    """Payments that a policy declines, all of them; near the threshold, many are genuine."""
    rng = np.random.default_rng(seed)
    score = DECLINED_FROM + (1 - DECLINED_FROM) * rng.random(payments)
    genuine = rng.random(payments) < 0.6 * np.exp(-(score - DECLINED_FROM) / width)
    amount = np.exp(rng.normal(8.3, 1.0, payments)).astype(np.int64)
    return ExploredPayments(score, genuine, amount, np.ones(payments))


def part_of(payments: ExploredPayments, rows: NDArray[Any] | slice) -> ExploredPayments:
    score, genuine, amount, propensity = payments
    return ExploredPayments(score[rows], genuine[rows], amount[rows], propensity[rows])


def explored(payments: ExploredPayments, share: NDArray[np.float64], seed: int) -> ExploredPayments:
    kept = np.random.default_rng((seed, 1)).random(len(share)) < share
    return part_of(payments, kept)._replace(propensity=share[kept])


def proposed(seed: int, width: float = 0.1) -> list[BandYield]:
    payments = declined(seed, 20_000, width)
    return propose_shares(explored(payments, np.full(20_000, SHARE), seed), SHARE)


def shares_of(bands: list[BandYield], score: NDArray[np.float64]) -> NDArray[np.float64]:
    starts = [band.score_from for band in bands]
    return np.array([band.share for band in bands])[np.searchsorted(starts, score, side="right") - 1]


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_each_explored_payment_yields_more_at_the_same_money_at_risk(width: float) -> None:
    for seed in range(10):
        later = declined(1_000 + seed, 200_000, width)
        share = shares_of(proposed(seed, width), later.score)
        assert share @ later.genuine / share.sum() > 1.3 * later.genuine.mean()
        # What the coin of the first days says of the money in each band is an estimate.
        assert share @ later.amount == pytest.approx(SHARE * later.amount.sum(), rel=0.15)
        assert share.min() >= SHARE / BOUND
        assert share.max() <= SHARE * BOUND


def test_the_value_of_a_policy_holds_the_truth_in_93_of_100_worlds() -> None:
    bands, costs, tried = proposed(7), CostSettings(), 0.65

    def gain_of(payments: ExploredPayments) -> NDArray[np.float64]:
        action = np.where(payments.score >= tried, 2, 0).astype(np.int8)
        return gains(action, ~payments.genuine, payments.amount, costs)

    truth, held = 1000 * gain_of(declined(99, 2_000_000)).mean(), 0
    for seed in range(RUNS):
        payments = declined(5_000 + seed, 20_000)
        seen = explored(payments, shares_of(bands, payments.score), seed)
        value = policy_value(gain_of(seen), seen.propensity, np.arange(len(seen.score), dtype=np.int32))
        assert value is not None
        low, high = value.value_minor_interval
        held += low <= truth <= high
    assert held >= 0.93 * RUNS


def test_what_was_explored_with_proposed_shares_gives_the_same_yields() -> None:
    payments = declined(3, 400_000)
    bands = propose_shares(explored(payments, np.full(400_000, SHARE), 1), SHARE)
    again = propose_shares(explored(payments, shares_of(bands, payments.score), 2), SHARE)
    for found in (bands, again):
        starts = [band.score_from for band in found]
        of_band = np.searchsorted(starts, payments.score, side="right") - 1
        for place, band in enumerate(found):
            assert band.genuine_share == pytest.approx(payments.genuine[of_band == place].mean(), abs=0.03)


def test_where_nothing_was_learnt_anywhere_all_shares_stay() -> None:
    fraud = declined(3, 2_000)._replace(genuine=np.zeros(2_000, np.bool_))
    bands = propose_shares(explored(fraud, np.full(2_000, SHARE), 3), SHARE)
    assert {band.genuine for band in bands} == {0}
    assert [band.share for band in bands] == pytest.approx([SHARE] * len(bands), rel=0.1)


def test_the_same_payments_in_another_order_give_the_same_shares() -> None:
    payments = explored(declined(3, 10_000), np.full(10_000, SHARE), 3)
    order = np.random.default_rng(0).permutation(len(payments.score))
    other = propose_shares(part_of(payments, order), SHARE)
    assert configured_shares(other) == configured_shares(propose_shares(payments, SHARE))


def test_too_few_explored_payments_propose_nothing() -> None:
    payments = explored(declined(3, 10_000), np.full(10_000, SHARE), 3)
    few = part_of(payments, slice(2 * EXPLORED_MIN - 1))
    with pytest.raises(Misconfigured, match="wanted at least 40 explored payments with a known label, got 39"):
        propose_shares(few, SHARE)


def test_payments_of_one_score_are_one_band() -> None:
    payments = explored(declined(3, 10_000), np.full(10_000, SHARE), 3)
    (band,) = propose_shares(payments._replace(score=np.ones(len(payments.score))), SHARE)
    assert (band.score_from, band.share) == (0.0, SHARE)


def test_a_band_sets_the_share_from_its_score_on() -> None:
    bands = [replace(proposed(1)[0], score_from=start, share=share) for start, share in ((0.6, 0.1), (0.8, 0.01))]
    policy = Policy(PolicySettings(explored=configured_shares(bands)), review_at=0.1, decline_at=0.5)
    asked = (None, 0.59, 0.6, 0.79, 0.8, 1.0)
    assert [policy.explored_share(score, 0.02) for score in asked] == [0.02, 0.02, 0.1, 0.1, 0.01, 0.01]
