from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.training.calibration import fit_calibration
from paywarden.models.training.later_days import ORIGINS, blocks_ahead, calibrate

ROWS, DAYS = 60_000, 40
RANDOM = np.random.default_rng(3)
DAY = np.sort(RANDOM.integers(0, DAYS, ROWS))
TRUTH = RANDOM.normal(-4.0, 1.5, ROWS)
BLOCK = blocks_ahead(DAY)
NEWEST = BLOCK == ORIGINS - 1


def label_of(log_odds: NDArray[np.float64]) -> NDArray[np.int64]:
    probability = 1 / (1 + np.exp(-log_odds))
    return (np.random.default_rng(4).random(len(log_odds)) < probability).astype(np.int64)


def test_each_block_is_an_eighth_of_the_window_at_its_end() -> None:
    assert [np.unique(DAY[number == BLOCK]).tolist() for number in range(ORIGINS)] == [
        list(range(first, first + 5)) for first in range(15, 40, 5)
    ]
    assert (BLOCK[DAY < 15] == -1).all()
    assert (blocks_ahead(np.array([1, 2, 3])) == -1).all()


def test_steady_fraud_is_promised_within_an_interval_around_the_truth() -> None:
    label = label_of(TRUTH)
    found = calibrate(TRUTH, label, DAY, TRUTH)
    assert (found.slope, found.intercept) == fit_calibration(TRUTH, label)
    assert found.later is not None
    assert 0.6 < found.later.low < 1.0 < found.later.high < 1.6
    assert (found.later.first_day, found.later.last_day) == ("1970-01-16", "1970-02-09")
    assert found.prior_shift is None
    assert sum(one.count for one in found.bins) == (BLOCK >= 0).sum()


def test_fraud_that_changes_from_block_to_block_widens_the_promise() -> None:
    steady = calibrate(TRUTH, label_of(TRUTH), DAY, TRUTH).later
    restless = calibrate(TRUTH, label_of(TRUTH + 0.5 * (-1.0) ** BLOCK), DAY, TRUTH).later
    assert steady is not None
    assert restless is not None
    assert math.log(restless.high / restless.low) > 3 * math.log(steady.high / steady.low)


def test_a_shift_of_the_prior_is_named_with_its_day_and_size() -> None:
    found = calibrate(TRUTH, label_of(TRUTH + np.where(DAY >= 35, math.log(2.0), 0.0)), DAY, TRUTH)
    assert found.prior_shift is not None
    assert found.prior_shift.first_day == "1970-02-05"
    assert found.prior_shift.times == pytest.approx(1.5, abs=0.15)
    assert "prior shift: from 1970-02-05 on, frauds were" in found.prior_shift.in_words()


def test_fraud_that_the_scores_no_longer_find_is_no_prior_shift() -> None:
    label = label_of(TRUTH + np.where(DAY >= 35, math.log(2.0), 0.0))
    blind = np.where(DAY >= 35, RANDOM.permutation(TRUTH), TRUTH)
    found = calibrate(TRUTH, label, DAY, blind)
    assert found.later is not None
    assert found.later.origins[-1] < 0.75
    assert found.prior_shift is None


def test_scores_follow_the_fraud_of_the_newest_days() -> None:
    """From day 30 on there is twice the fraud that the margins say: pooled calibration is too low on later days."""
    label = label_of(TRUTH + np.where(DAY >= 30, math.log(2.0), 0.0))
    found = calibrate(TRUTH, label, DAY, TRUTH, follow=True)
    mean = calibrated(TRUTH[NEWEST], found.slope, found.intercept).mean()
    plain = calibrated(TRUTH[NEWEST], found.slope, found.intercept - found.shift).mean()
    assert plain / label[NEWEST].mean() < 0.9
    assert mean / label[NEWEST].mean() == pytest.approx(1.0, abs=0.05)
    assert found.later is not None
    assert found.later.low <= 1.0 <= found.later.high


def test_a_handful_of_frauds_decides_nothing_and_says_so() -> None:
    rare = np.where(NEWEST, np.int64(0), label_of(TRUTH))
    for follow in (False, True):
        found = calibrate(TRUTH, rare, DAY, TRUTH, follow=follow)
        assert (found.shift, found.later) == (0.0, None)
        assert "at least 3 each and 20 in all are needed" in found.left_out


def test_weighted_scores_are_probabilities_among_the_payments_that_the_rows_stand_for() -> None:
    label = label_of(TRUTH)
    weight = np.where(label == 1, 3.0, 1.0)
    found = calibrate(TRUTH, label, DAY, TRUTH, weight=weight)
    score = calibrated(TRUTH, found.slope, found.intercept)
    share = np.average(label, weights=weight)
    assert np.average(score, weights=weight) == pytest.approx(share, rel=1e-3)
    assert found.later is not None
    assert found.later.fraud_share == pytest.approx(np.average(label[BLOCK >= 0], weights=weight[BLOCK >= 0]))
    assert found.later.low <= 1.0 <= found.later.high
    assert all(one.low <= one.observed_rate <= one.high for one in found.bins)
