from __future__ import annotations

import math

import numpy as np
import pytest

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.training.calibration import fit_calibration
from paywarden.models.training.later_days import calibrate

ROWS, DAYS = 30_000, 30
RANDOM = np.random.default_rng(3)
DAY = np.sort(RANDOM.integers(0, DAYS, ROWS))
TRUTH = RANDOM.normal(-4.0, 1.5, ROWS)
NEWEST = DAY >= 20


def label_of(log_odds: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    probability = 1 / (1 + np.exp(-log_odds))
    return (np.random.default_rng(4).random(len(log_odds)) < probability).astype(np.int64)


def test_scores_follow_the_fraud_of_the_newest_days() -> None:
    """From day 15 on there is twice the fraud that the margins say: pooled calibration is too low on later days."""
    label = label_of(TRUTH + np.where(DAY >= 15, math.log(2.0), 0.0))
    found = calibrate(TRUTH, label, DAY, NEWEST, follow=True)
    mean = calibrated(TRUTH[NEWEST], found.slope, found.intercept).mean()
    plain = calibrated(TRUTH[NEWEST], found.slope, found.intercept - found.shift).mean()
    assert plain / label[NEWEST].mean() < 0.9
    assert mean / label[NEWEST].mean() == pytest.approx(1.0, abs=0.05)
    assert found.later is not None
    assert found.later.low <= 1.0 <= found.later.high
    assert (found.later.first_day, found.later.last_day) == ("1970-01-26", "1970-01-30")


def test_the_days_it_is_measured_on_have_no_part_in_its_calibration() -> None:
    """The second half of the newest days turns into pure fraud: the scores it is measured with cannot know."""
    label = label_of(TRUTH)
    spoilt = np.where(DAY >= 25, np.int64(1), label)
    honest, found = (calibrate(TRUTH, labels, DAY, NEWEST, follow=True).later for labels in (label, spoilt))
    assert honest is not None
    assert found is not None
    assert found.fraud_share == 1.0
    assert found.mean_score == honest.mean_score


def test_a_handful_of_frauds_decides_nothing_and_says_so() -> None:
    label = label_of(TRUTH)
    rare = np.where((DAY >= 20) & (np.arange(ROWS) % 40 != 0), np.int64(0), label)
    found = calibrate(TRUTH, rare, DAY, NEWEST, follow=True)
    assert (found.shift, found.later) == (0.0, None)
    assert "frauds in their halves, and 20 are needed" in found.left_out


def test_without_following_the_newest_days_are_only_measured() -> None:
    """The calibration is that of all rows; the measure is of a calibration that never saw the newest days."""
    label = label_of(TRUTH + np.where(DAY >= 20, math.log(2.0), 0.0))
    found = calibrate(TRUTH, label, DAY, NEWEST)
    assert (found.slope, found.intercept) == fit_calibration(TRUTH, label)
    assert found.later is not None
    assert (found.later.first_day, found.later.last_day) == ("1970-01-21", "1970-01-30")
    assert found.later.high < 0.8
    rare = np.where(NEWEST, np.int64(0), label)
    assert "and 0 on the newest days, and 20 each are needed" in calibrate(TRUTH, rare, DAY, NEWEST).left_out


def test_weighted_scores_are_probabilities_among_the_payments_that_the_rows_stand_for() -> None:
    label = label_of(TRUTH)
    weight = np.where(label == 1, 3.0, 1.0)
    found = calibrate(TRUTH, label, DAY, NEWEST, weight=weight)
    score = calibrated(TRUTH, found.slope, found.intercept)
    share = np.average(label, weights=weight)
    assert np.average(score, weights=weight) == pytest.approx(share, rel=1e-3)
    assert found.later is not None
    assert found.later.fraud_share == pytest.approx(np.average(label[NEWEST], weights=weight[NEWEST]))
    assert found.later.low <= 1.0 <= found.later.high
    assert sum(one.count for one in found.bins) == NEWEST.sum()
    assert all(one.low <= one.observed_rate <= one.high for one in found.bins)
