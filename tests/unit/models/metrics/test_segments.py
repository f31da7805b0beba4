from __future__ import annotations

import math

import numpy as np
import pytest

from paywarden.models.metrics.costs import CostSettings, money_of
from paywarden.models.metrics.evaluation import auc_roc, average_precision
from paywarden.models.metrics.segments import DecidedPayments, by_group
from paywarden.models.metrics.tally import tally

RANDOM = np.random.default_rng(8)
ROWS = 3000
GROUP = RANDOM.integers(0, 3, ROWS) * 2
NAMES = ["a", "unused", "b", "unused too", "c"]
FRAUD = RANDOM.random(ROWS) < 0.1
SCORE = np.clip(FRAUD * 0.3 + RANDOM.random(ROWS) * 0.7, 0, 1)
ACTION = ((SCORE > 0.5).astype(np.int8) + (SCORE > 0.8)).astype(np.int8)
AMOUNT = RANDOM.integers(1, 10_000, ROWS)
DECIDED = DecidedPayments(ACTION, SCORE, FRAUD, AMOUNT, has_outcomes=True)


def test_each_group_is_measured_as_if_it_were_alone() -> None:
    groups = by_group(NAMES, GROUP, DECIDED, CostSettings())
    assert [group.name for group in groups] == ["a", "b", "c"]
    for number, group in zip((0, 2, 4), groups, strict=True):
        here = np.equal(GROUP, number)
        stopped = ACTION[here] > 0
        assert (group.payments, group.frauds) == (here.sum(), FRAUD[here].sum())
        assert group.frauds_stopped == (stopped & FRAUD[here]).sum()
        assert (group.reviewed, group.declined) == ((ACTION[here] == 1).sum(), (ACTION[here] == 2).sum())
        assert group.precision == FRAUD[here][stopped].mean()
        assert group.recall == stopped[FRAUD[here]].mean()
        assert group.mean_score == pytest.approx(SCORE[here].mean())
        assert group.auc_roc == pytest.approx(auc_roc(FRAUD[here].astype(int), SCORE[here]), rel=1e-12)
        assert group.average_precision == pytest.approx(
            average_precision(FRAUD[here].astype(int), SCORE[here]), rel=1e-12
        )
        assert (group.amount_minor, group.fraud_minor) == (AMOUNT[here].sum(), AMOUNT[here & FRAUD].sum())
        alone = tally(np.zeros(here.sum(), dtype=np.int64), 1, ACTION[here], FRAUD[here], AMOUNT[here])
        assert group.money == money_of(alone.count[0], alone.amount_minor[0], CostSettings())


@pytest.mark.parametrize("digits", [0, 1, 2, 17])
def test_areas_are_those_of_the_evaluation_however_many_scores_are_equal(digits: int) -> None:
    score = SCORE.round(digits)
    decided = DecidedPayments(ACTION, score, FRAUD, AMOUNT, has_outcomes=True)
    (group,) = by_group(["all"], np.zeros(ROWS, np.int64), decided, CostSettings())
    label = FRAUD.astype(np.int64)
    assert group.auc_roc == pytest.approx(auc_roc(label, score), rel=1e-12)
    assert group.average_precision == pytest.approx(average_precision(label, score), rel=1e-12)


def test_a_group_of_frauds_alone_has_an_average_precision_and_no_auc() -> None:
    decided = DecidedPayments(np.ones(2, np.int8), np.array([0.1, 0.3]), np.ones(2, bool), np.ones(2, np.int64), True)
    (group,) = by_group(["a"], np.zeros(2, np.int64), decided, CostSettings())
    assert math.isnan(group.auc_roc)
    assert group.average_precision == 1.0
