from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.curves import (
    POINTS_MAX,
    SCORE_EDGES,
    at_capacity,
    mean_calibration,
    reliability,
    threshold_curve,
)

RANDOM = np.random.default_rng(5)
ROWS = 20_000
FRAUD = RANDOM.random(ROWS) < 0.03
# Many equal scores: two decimals.
SCORE = np.clip(np.where(FRAUD, 0.3, 0.05) + RANDOM.exponential(0.1, ROWS), 0, 1).round(2)
AMOUNT = RANDOM.integers(1, 100_000, ROWS)


def test_each_point_is_what_its_threshold_gives() -> None:
    costs = CostSettings(review_cost_minor=200, fraud_loss_share=0.9, declined_margin_share=0.1)
    curve = threshold_curve(FRAUD, SCORE, AMOUNT, costs)
    for place, threshold in enumerate(curve.threshold):
        above = threshold <= SCORE
        assert curve.share[place] == above.mean()
        assert curve.precision[place] == pytest.approx(precision_score(FRAUD, above))
        assert curve.recall[place] == pytest.approx(recall_score(FRAUD, above))
        stopped, declined = AMOUNT[above & FRAUD].sum(), AMOUNT[above & ~FRAUD].sum()
        assert curve.amount_recall[place] == pytest.approx(stopped / AMOUNT[FRAUD].sum())
        assert curve.net_if_declined_minor[place] == pytest.approx(0.9 * stopped - 0.1 * declined, abs=1)
        assert curve.net_if_reviewed_minor[place] == pytest.approx(0.9 * stopped - 200 * above.sum(), abs=1)


def test_thresholds_fall_to_the_lowest_score_in_few_steps() -> None:
    curve = threshold_curve(FRAUD, SCORE, AMOUNT, CostSettings())
    assert curve.threshold == sorted(set(curve.threshold), reverse=True)
    assert curve.threshold[0] == SCORE.max()
    assert curve.threshold[-1] == SCORE.min()
    assert curve.share[-1] == curve.recall[-1] == 1.0
    distinct = RANDOM.permutation(ROWS) / ROWS
    assert len(threshold_curve(FRAUD, distinct, AMOUNT, CostSettings()).threshold) <= POINTS_MAX


def test_capacity_takes_the_highest_scores_of_each_day() -> None:
    day = np.array([7, 9, 7, 7, 9, 9])
    score = np.array([0.1, 0.9, 0.5, 0.5, 0.2, 0.3])
    fraud = np.array([True, True, False, True, False, True])
    amount = np.array([10, 200, 3000, 40_000, 5, 600])
    found = at_capacity(day, fraud, score, amount, 2)
    assert (found.reviews, found.frauds_found) == (4, 3)
    assert (found.precision, found.recall) == (0.75, 0.75)
    assert found.amount_recall == (200 + 40_000 + 600) / (10 + 200 + 40_000 + 600)
    assert (found.days, found.found_per_day) == ([7, 9], [1, 2])


def test_with_equal_scores_the_earlier_payment_is_reviewed() -> None:
    day, score = np.zeros(2, dtype=np.int64), np.array([0.5, 0.5])
    assert at_capacity(day, np.array([True, False]), score, np.ones(2, dtype=np.int64), 1).frauds_found == 1
    assert at_capacity(day, np.array([False, True]), score, np.ones(2, dtype=np.int64), 1).frauds_found == 0


def test_reliability_is_the_share_of_frauds_by_score() -> None:
    result = reliability(FRAUD, SCORE)
    assert sum(result.payments) == ROWS
    number = result.payments.index(max(result.payments))
    mean = result.mean_score[number]
    edge = max(edge for edge in SCORE_EDGES if edge <= mean)
    upper = min(edge for edge in SCORE_EDGES if edge > mean)
    inside = (edge <= SCORE) & (upper > SCORE)
    assert result.payments[number] == inside.sum()
    assert mean == pytest.approx(SCORE[inside].mean())
    assert result.fraud_share[number] == FRAUD[inside].mean()
    assert result.low[number] <= result.fraud_share[number] <= result.high[number]
    assert result.brier_score == pytest.approx(np.mean((SCORE - FRAUD) ** 2))


def test_a_calibrated_score_has_a_small_error_and_intervals_that_hold_it() -> None:
    score = RANDOM.random(200_000) ** 4
    fraud = RANDOM.random(200_000) < score
    result = reliability(fraud, score)
    assert result.calibration_error < 0.005
    held = [low <= mean <= high for low, mean, high in zip(result.low, result.mean_score, result.high, strict=True)]
    assert sum(held) >= len(held) - 2


def test_scores_of_twice_the_true_fraud_share_are_far_off() -> None:
    fraud = RANDOM.random(50_000) < 0.01
    found = mean_calibration(fraud, np.full(50_000, 0.02), np.arange(50_000))
    assert found.mean_score == pytest.approx(0.02)
    assert found.fraud_share == fraud.mean()
    assert found.ratio == pytest.approx(0.02 / fraud.mean())
    assert 1.25 < found.ratio_low < found.ratio < found.ratio_high < 3
    assert found.is_far_off
    assert mean_calibration(fraud, np.full(50_000, 0.005), np.arange(50_000)).is_far_off


def test_frauds_of_one_card_count_as_fewer_than_their_number() -> None:
    card = np.arange(40_000) // 20
    fraud = card < 20
    score = np.full(40_000, 0.015)
    together = mean_calibration(fraud, score, card)
    apart = mean_calibration(fraud, score, RANDOM.permutation(40_000))
    assert together.ratio == apart.ratio == pytest.approx(1.5)
    assert together.ratio_high - together.ratio_low > 3 * (apart.ratio_high - apart.ratio_low)
    assert apart.is_far_off
    assert not together.is_far_off
