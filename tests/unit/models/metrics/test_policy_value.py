"""The value of a policy by propensities: what every payment gains, and intervals that hold the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.metrics.costs import CostSettings, money_of
from paywarden.models.metrics.policy_value import EXPLORED_MIN, gains, policy_value

COSTS = CostSettings()
SHARE, CARDS, RUNS = 0.05, 10_000, 100
NOW = (0.1, 0.3)
TRIED = {"laxer": (0.2, 0.6), "stricter": (0.05, 0.2), "as it is": NOW}
"""Thresholds of review and decline."""


@dataclass(frozen=True)
class World:
    """Payments of cards, some of which are stolen. The scores do not know all of it."""

    card: NDArray[np.int32]
    fraud: NDArray[np.bool_]
    score: NDArray[np.float64]
    amount: NDArray[np.int64]

    def gain(self, thresholds: tuple[float, float]) -> NDArray[np.float64]:
        return gains(self.action(thresholds), self.fraud, self.amount, COSTS)

    def action(self, thresholds: tuple[float, float]) -> NDArray[np.int8]:
        return np.searchsorted(thresholds, self.score, side="right").astype(np.int8)


def world(seed: int, cards: int) -> World:
    rng = np.random.default_rng(seed)
    card = np.repeat(np.arange(cards, dtype=np.int32), 1 + rng.poisson(3, cards))
    is_stolen, count = (rng.random(cards) < 0.03)[card], len(card)
    chance = np.where(is_stolen, rng.beta(4, 3, count), rng.beta(0.6, 25, count))
    score = np.clip(chance**1.3 + rng.normal(0, 0.05, count), 0, 1)
    return World(card, rng.random(count) < chance, score, np.exp(rng.normal(8.3, 1.0, count)).astype(np.int64))


def test_intervals_hold_the_truth_in_93_of_100_worlds() -> None:
    large = world(999, 400_000)
    truth = {name: 1000 * large.gain(tried).mean() for name, tried in TRIED.items()}
    held = dict.fromkeys((*TRIED, "laxer by now", "stricter by now"), 0)
    for seed in range(RUNS):
        made = world(seed, CARDS)
        # Payments are declined from 0.3 on, and a part of those is explored.
        propensity = np.where(made.action(NOW) == 2, SHARE, 1.0)
        kept = np.random.default_rng(seed).random(len(propensity)) < propensity
        for name in held:
            tried, is_difference = name.removesuffix(" by now"), name.endswith(" by now")
            gain = made.gain(TRIED[tried]) - (made.gain(NOW) if is_difference else 0.0)
            value = policy_value(gain[kept], propensity[kept], made.card[kept])
            assert value is not None
            low, high = value.value_minor_interval
            held[name] += low <= truth[tried] - (truth["as it is"] if is_difference else 0.0) <= high
    assert min(held.values()) >= 0.93 * RUNS, held


def test_gains_are_the_net_value_that_a_replay_reports() -> None:
    made = world(1, 500)
    for tried in TRIED.values():
        action = made.action(tried)
        cell = (action * 2 + made.fraud).astype(np.int64)
        count = np.bincount(cell, minlength=6).reshape(3, 2)
        amount = np.bincount(cell, weights=made.amount, minlength=6).astype(np.int64).reshape(3, 2)
        assert made.gain(tried).sum() == pytest.approx(money_of(count, amount, COSTS).net_minor, abs=2)


def test_an_explored_payment_stands_for_those_like_it() -> None:
    gain = np.array([10.0] * EXPLORED_MIN + [0.0] * 100)
    propensity = np.array([0.1] * EXPLORED_MIN + [1.0] * 100)
    value = policy_value(gain, propensity, np.arange(len(gain), dtype=np.int32))
    assert value is not None
    assert value.value_minor == pytest.approx(1000 * 10 * 10 * EXPLORED_MIN / (10 * EXPLORED_MIN + 100))
    assert value.effective_payments < len(gain)
    # The order and the numbers of the cards change no digit.
    other = policy_value(gain, propensity, np.arange(len(gain), dtype=np.int32)[::-1] * 3)
    assert other == value


def test_too_few_explored_payments_give_no_value() -> None:
    propensity = np.array([0.1] * (EXPLORED_MIN - 1) + [1.0] * 100)
    assert policy_value(np.ones(len(propensity)), propensity, np.arange(len(propensity), dtype=np.int32)) is None
