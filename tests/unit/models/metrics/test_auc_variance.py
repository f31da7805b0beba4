"""The variance of an area: against the definition over all pairs, the worked example, and what bootstraps say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.metrics.auc_variance import auc_variance
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.evaluation import auc_roc
from paywarden.models.metrics.intervals import DELONG_PAYMENTS_MIN, auc_interval
from paywarden.models.metrics.segments import DecidedPayments, by_group

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.sampled_from([1.0, 2.0, 4.0])), min_size=1, max_size=40)


def over_all_pairs(fraud: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    """Returns the variance by its definition: the losses of each payment from its comparison with every other one."""
    beaten = (score[:, None] < score[None, :]) + 0.5 * (score[:, None] == score[None, :])
    total = 0.0
    for rows, others, wins in ((fraud, ~fraud, beaten), (~fraud, fraud, beaten.T)):
        own, their = weight[rows], weight[others]
        loss = wins[np.ix_(rows, others)] @ their / their.sum()
        size = own.sum() ** 2 / (own @ own)
        if size <= 1.0:
            return math.nan
        distance = loss - own @ loss / own.sum()
        total += (own**2 @ distance**2) / own.sum() ** 2 * size / (size - 1)
    return total


@given(ROWS)
def test_sums_over_runs_equal_the_definition_over_all_pairs(rows: list[tuple[bool, int, float]]) -> None:
    fraud, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    for weights in (np.ones(len(rows)), weight):
        found = auc_variance(fraud, score / 6, weights)
        if not 0 < fraud.sum() < len(rows):
            assert math.isnan(found)
            continue
        wanted = over_all_pairs(fraud, score, weights)
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True)
    assert auc_variance(fraud, score) == pytest.approx(
        auc_variance(fraud, score, np.full(len(rows), 3.0)), rel=1e-9, abs=1e-12, nan_ok=True
    )


def test_a_report_has_the_interval_of_its_scores_in_any_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    fraud = random.random(6000) < 0.1
    score = np.round(1 / (1 + np.exp(-random.normal(2.5 * fraud, 1))), 3)
    decided = DecidedPayments(np.zeros(6000, np.uint8), score, fraud, np.full(6000, 100, np.int64), has_outcomes=True)
    area = auc_roc(fraud.astype(np.int8), score)
    wanted = auc_interval(area, int(fraud.sum()), int((~fraud).sum()), auc_variance(fraud, score))
    for part in (1 << 18, 64, 7):
        monkeypatch.setattr("paywarden.models.metrics.segments._ROWS", part)
        (whole,) = by_group(["all"], np.zeros(6000, np.uint8), decided, CostSettings())
        assert whole.auc_roc_interval == pytest.approx(wanted, rel=1e-9)


def test_an_interval_near_1_is_that_of_bootstraps_and_holds_the_truth() -> None:
    """Scores are normal, 3.3 apart: the true area is 0.9902. Hanley's and McNeil's interval is twice as wide."""
    frauds = DELONG_PAYMENTS_MIN
    random, held, widths = np.random.default_rng(11), 0, []
    for draw in range(100):
        fraud = np.arange(frauds + 2000) < frauds
        score = random.normal(3.3 * fraud, 1.0)
        area = auc_roc(fraud.astype(np.int8), score)
        low, high = auc_interval(area, frauds, 2000, auc_variance(fraud, score))
        held += low <= 0.990184 <= high
        if draw == 0:
            of_any = auc_interval(area, frauds, 2000)
            again = [
                auc_roc(
                    fraud.astype(np.int8), np.concatenate([random.choice(score[rows], len(rows)) for rows in parts])
                )
                for parts in [(np.flatnonzero(fraud), np.flatnonzero(~fraud))] * 200
            ]
            spread = float(np.quantile(again, 0.975) - np.quantile(again, 0.025))
            widths.append(((high - low) / spread, (of_any[1] - of_any[0]) / (high - low)))
    assert 0.88 <= held / 100 <= 0.99
    assert all(0.75 <= of_bootstrap <= 1.5 and wider > 1.5 for of_bootstrap, wider in widths)
