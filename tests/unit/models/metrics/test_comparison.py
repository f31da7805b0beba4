from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from paywarden.models.metrics.comparison import DIFFERENCE_EDGES, agreement, population_stability_index, score_shift

RANDOM = np.random.default_rng(3)
BEFORE = RANDOM.random(5000) ** 3
AFTER = np.clip(BEFORE + RANDOM.normal(0, 0.05, 5000), 0, 1).round(3)


def test_agreement_counts_pairs_of_actions_and_the_frauds_among_them() -> None:
    result = agreement(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 2]), np.array([True, False, False, True, True]))
    assert result.payments == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert result.frauds == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert result.share == 0.6


def test_a_shift_says_how_scores_differ() -> None:
    shift = score_shift(BEFORE, AFTER)
    difference = AFTER - BEFORE
    assert shift.mean == pytest.approx(difference.mean())
    assert shift.quantiles["p50"] == pytest.approx(np.median(difference))
    assert (shift.largest_fall, shift.largest_rise) == (difference.min(), difference.max())
    assert sum(shift.counts) == len(BEFORE)
    middle = DIFFERENCE_EDGES.index(-0.005)
    assert shift.counts[middle] == ((difference >= -0.005) & (difference < 0.005)).sum()
    assert shift.rank_correlation == pytest.approx(spearmanr(BEFORE, AFTER).statistic)


def test_the_stability_index_of_two_known_distributions() -> None:
    before = np.repeat([0.05, 0.95], [80, 20])
    after = np.repeat([0.05, 0.95], [50, 50])
    wanted = (0.5 - 0.8) * math.log(0.5 / 0.8) + (0.5 - 0.2) * math.log(0.5 / 0.2)
    assert population_stability_index(before, after) == pytest.approx(wanted)
