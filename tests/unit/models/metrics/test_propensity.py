"""Weights of propensities: what they are, and that weighted figures are those of the payments they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from paywarden.models.metrics.curves import mean_calibration
from paywarden.models.metrics.evaluation import auc_roc, average_precision
from paywarden.models.metrics.intervals import auc_interval
from paywarden.models.metrics.propensity import (
    effective_size,
    inverse_weights,
    require_weight_max,
    weight_counts,
)
from paywarden.models.metrics.weighted_measures import weighted_measures
from paywarden.models.training.calibration import brier_score, fit_calibration, log_loss
from paywarden.schemas.errors import Misconfigured

RANDOM = np.random.default_rng(8)
ROWS = 2000
SCORE = RANDOM.random(ROWS)
LABEL = (RANDOM.random(ROWS) < SCORE).astype(np.int64)
# Each row stands for 1, 2 or 4 rows.
PROPENSITY = RANDOM.choice([1.0, 0.5, 0.25], ROWS)
WEIGHT = inverse_weights(PROPENSITY, 20.0)
REPEATED = np.repeat(np.arange(ROWS), WEIGHT.astype(np.int64))


def test_a_weight_is_the_inverse_of_the_propensity_up_to_its_bound() -> None:
    assert inverse_weights(np.array([1.0, 0.5, 0.01]), 20.0).tolist() == [1.0, 2.0, 20.0]
    assert inverse_weights(np.array([1.0, 0.5]), 1.0).tolist() == [1.0, 1.0]


def test_few_large_weights_are_as_certain_as_few_payments() -> None:
    assert effective_size(np.ones(7)) == 7
    assert effective_size(np.concatenate((np.ones(900), np.full(100, 10.0)))) == pytest.approx(331, abs=1)
    counts = weight_counts(np.array([1.0, 0.5, 0.01]), np.array([False, True, True]), 20.0)
    assert (counts.payments, counts.weighted, counts.clipped) == (3, 2, 1)
    assert counts.effective_frauds == pytest.approx(22**2 / 404)
    assert counts.in_words().startswith("propensity: 2 of 3 payments weigh more, 1 of them the most, 20; ")


def test_weighted_measures_are_those_of_the_repeated_payments() -> None:
    many = LABEL[REPEATED], SCORE[REPEATED]
    for measure in (auc_roc, average_precision, brier_score, log_loss):
        assert measure(LABEL, SCORE, WEIGHT) == pytest.approx(measure(*many), rel=1e-9)
    assert fit_calibration(SCORE, LABEL, WEIGHT) == pytest.approx(fit_calibration(SCORE[REPEATED], LABEL[REPEATED]))
    whole, weighted = (
        mean_calibration(LABEL[rows] == 1, SCORE[rows], rows, weight)
        for rows, weight in ((REPEATED, None), (np.arange(ROWS), WEIGHT))
    )
    assert weighted.ratio == pytest.approx(whole.ratio)
    # The interval is no narrower than that of the payments that there are.
    alone = mean_calibration(LABEL == 1, SCORE, np.arange(ROWS))
    assert weighted.ratio_high - weighted.ratio_low > alone.ratio_high - alone.ratio_low


@pytest.mark.parametrize("wrong", [-1.0, 0.5, float("inf"), float("nan")])
def test_a_bound_below_1_is_refused(wrong: float) -> None:
    require_weight_max(0.0)
    with pytest.raises(Misconfigured, match=r"training.propensity_weight_max: wanted 0, or at least 1, got"):
        require_weight_max(wrong)


def test_replays_tell_weighted_measures_with_the_intervals_of_fewer_payments() -> None:
    fraud = LABEL == 1
    found = weighted_measures(PROPENSITY, fraud, SCORE, np.arange(ROWS, dtype=np.int32), 3.0)
    weight = np.minimum(1 / PROPENSITY, 3.0)
    assert found.clipped == np.count_nonzero(PROPENSITY == 0.25)
    assert found.fraud_share == found.calibration.fraud_share == pytest.approx(np.average(fraud, weights=weight))
    assert found.auc_roc == auc_roc(LABEL, SCORE, weight)
    assert found.average_precision == average_precision(LABEL, SCORE, weight)
    plain = auc_interval(found.auc_roc, int(fraud.sum()), int((~fraud).sum()))
    assert found.auc_roc_interval[0] < plain[0] < plain[1] < found.auc_roc_interval[1]
