"""E-values of counts of cards: how often they mislead, what they find, and the intervals they give."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.rollout.rollout_evidence import (
    WeightedEvidence,
    log_evidence,
    log_share_evidence,
    log_threshold,
    ratio_interval,
)

ALPHA = 0.05
ROUNDS, CARDS = 400, 600
# Three standard deviations of a share of ALPHA among ROUNDS.
_SLACK = 3 * math.sqrt(ALPHA * (1 - ALPHA) / ROUNDS)


def ever_share(log_values: np.ndarray) -> float:
    """Returns the share of rounds whose evidence ever reaches log(1 / ALPHA); shape (rounds, looks)."""
    return float((log_values >= log_threshold(ALPHA)).any(axis=1).mean())


def running_counts(share: float, ratio: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the event cards of candidate and champion after each, shape (ROUNDS, CARDS, 1)."""
    coin = share * ratio / (share * ratio + 1 - share)
    ours = np.cumsum(np.random.default_rng(seed).random((ROUNDS, CARDS)) < coin, axis=1)
    return ours[..., None], np.arange(1, CARDS + 1)[:, None] - ours[..., None]


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_nothing_differs_and_looking_at_every_card_misleads_at_most_alpha(share: float) -> None:
    ours, theirs = running_counts(share)
    for falls in (False, True):
        assert ever_share(log_evidence(ours, theirs, share, falls=falls)) <= ALPHA + _SLACK
    assert ever_share(log_share_evidence(ours, theirs, share)) <= ALPHA + _SLACK


def test_an_interval_covers_the_true_ratio_at_all_looks_at_once() -> None:
    ours, theirs = running_counts(0.1, ratio=1.5, seed=1)
    too_low = log_evidence(ours, theirs, 0.1, ratio=1.5)
    too_high = log_evidence(ours, theirs, 0.1, ratio=1.5, falls=True)
    assert ever_share(too_low) <= ALPHA + _SLACK
    assert ever_share(too_high) <= ALPHA + _SLACK


@given(st.integers(0, 400), st.integers(0, 4_000), st.floats(0.005, 0.9), st.floats(0.5, 6))
def test_an_interval_holds_exactly_the_ratios_that_are_not_refuted(
    ours: int, theirs: int, share: float, needed: float
) -> None:
    low, high = ratio_interval([ours], [theirs], share, needed)
    assert low <= high
    for end, inside, falls in ((low, 1.001, False), (high, 0.999, True)):
        if 0 < end < math.inf:
            assert log_evidence([ours], [theirs], share, ratio=end * inside, falls=falls) < needed
            assert log_evidence([ours], [theirs], share, ratio=end / inside**2, falls=falls) >= needed - 1e-6


def test_weighted_evidence_finds_money_and_is_rarely_misled_by_heavy_tails() -> None:
    random = np.random.default_rng(3)
    misled = found = 0
    for _ in range(200):
        weights = np.minimum(random.pareto(1.1, 200) / 50, 1.0)
        fair, unfair = WeightedEvidence(), WeightedEvidence()
        worst = -math.inf
        for part in np.split(weights, 20):
            fair.add(part, random.random(len(part)) < 0.1, 0.1)
            worst = max(worst, fair.log_evidence)
            unfair.add(part, random.random(len(part)) < np.where(part > 0.2, 0.8, 0.1), 0.1)
        misled += worst >= log_threshold(ALPHA)
        found += unfair.log_evidence >= log_threshold(ALPHA)
    assert misled <= 200 * ALPHA + 3 * math.sqrt(200 * ALPHA * (1 - ALPHA))
    assert found > 20
