"""Scores as probabilities: fitted, corrected for sampling, and measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.metrics.intervals import wilson_interval
from paywarden.models.training.calibration import (
    RELIABILITY_BINS,
    fit_calibration,
    reliability,
)
from paywarden.schemas.errors import Misconfigured


def drawn(log_odds: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draws labels; each row is a fraud with its own probability."""
    drawn_below = np.random.default_rng(seed).random(len(log_odds)) < 1 / (1 + np.exp(-log_odds))
    return np.asarray(drawn_below, dtype=np.int64)


def margins(count: int = 50_000, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


def test_a_calibration_finds_the_line_that_labels_were_drawn_by() -> None:
    label = drawn(2.0 * margins() - 3.0)
    slope, intercept = fit_calibration(margins(), label)
    assert slope == pytest.approx(2.0, abs=0.1)
    assert intercept == pytest.approx(-3.0, abs=0.1)


def test_on_the_rows_of_the_fit_the_mean_score_is_the_fraud_share() -> None:
    label = drawn(2.0 * margins() - 6.0)
    scores = calibrated(margins(), *fit_calibration(margins(), label))
    assert scores.mean() == pytest.approx(label.mean(), rel=1e-6)


def test_margins_that_separate_perfectly_have_a_finite_calibration() -> None:
    slope, intercept = fit_calibration(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert np.isfinite([slope, intercept]).all()


def test_margins_that_go_the_wrong_way_are_refused() -> None:
    with pytest.raises(Misconfigured, match="no better than chance"):
        fit_calibration(-margins(), drawn(margins()))


def test_a_reliability_table_has_mean_scores_and_fraud_shares() -> None:
    score = np.repeat(np.arange(10) / 10, 10)
    label = np.tile([1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 10)
    table = reliability(label, score)
    assert [one.count for one in table.bins] == [10] * RELIABILITY_BINS
    assert [one.mean_score for one in table.bins] == pytest.approx((np.arange(10) / 10).tolist())
    assert [one.observed_rate for one in table.bins] == pytest.approx([0.1] * 10)
    assert (table.bins[0].low, table.bins[0].high) == pytest.approx(wilson_interval(0.1, table.bins[0].count))
    # Distances 0.1, 0, 0.1 … 0.8, ten rows each.
    assert table.expected_calibration_error == pytest.approx((0.1 + sum(range(9)) / 10) / 10)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_a_reliability_table_holds_every_row_once_in_any_order(rows: list[tuple[float, bool]]) -> None:
    score, label = np.array([row[0] for row in rows]), np.array([int(row[1]) for row in rows])
    table = reliability(label, score)
    assert sum(one.count for one in table.bins) == len(rows)
    assert sum(one.observed_rate * one.count for one in table.bins) == pytest.approx(label.sum())
    order = np.argsort(score, kind="stable")[::-1]
    again = reliability(label[order], score[order])
    assert [one.count for one in again.bins] == [one.count for one in table.bins]
