"""The power that is printed before a rollout, against simulated cards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paywarden.models.rollout.judgement import harm_evidence, within_margin
from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.power import PowerLine, Traffic, power
from paywarden.models.rollout.rollout_tally import StepCounts
from paywarden.schemas.errors import Misconfigured

PLAN = RolloutPlan()
TRAFFIC = Traffic(200_000, {"decline": 0.02, "review": 0.05})
DECLINE = [measure.name for measure in PLAN.measures].index("decline")
ROUNDS = 400


def line_of(step: int, traffic: Traffic = TRAFFIC) -> PowerLine:
    return next(line for line in power(PLAN, traffic) if line.step == step and line.measure == "decline")


def simulated(step: int, hours: float, ratio: float) -> StepCounts:
    """Returns the counts of ROUNDS simulated steps, with binomial declines and nothing else."""
    random, p = np.random.default_rng(step), PLAN.comparing_share(step)
    cards = TRAFFIC.cards_a_day * hours / 24 * (1 - (PLAN.steps[step - 1] / 10_000 if step else 0))
    arms = np.array([cards * (1 - p), cards * p]).astype(np.int64)
    declines = random.binomial(arms, np.array([0.02, 0.02 * ratio]), (ROUNDS, 2))
    events = np.zeros((ROUNDS, len(PLAN.measures), 2), dtype=np.int64)
    events[:, DECLINE] = declines
    return StepCounts(np.tile(arms, (ROUNDS, 1)), events, events, events, np.ones(ROUNDS, dtype=np.int64))


@pytest.mark.parametrize("step", [1, 3])
def test_the_ratio_is_found_about_as_often_as_it_is_said(step: int) -> None:
    found = harm_evidence(PLAN, step, simulated(step, PLAN.step_hours[step], line_of(step).ratio))[0]
    assert 0.7 < float((found[:, DECLINE] >= 0).mean()) < 0.95


def test_the_margin_is_reached_about_when_it_is_said() -> None:
    hours = line_of(4, Traffic(20_000, {"decline": 0.02})).hours
    shares = [float(within_margin(PLAN, 4, simulated(4, hours / 10 * factor, 1.0)).mean()) for factor in (0.5, 1, 3)]
    assert shares[0] < 0.4
    assert 0.3 < shares[1] < 0.8
    assert shares[2] > 0.9


def test_no_traffic_is_refused() -> None:
    for cards in (0.0, math.nan, math.inf):
        with pytest.raises(Misconfigured, match="cards a day: wanted more than 0"):
            Traffic(cards, {})
    with pytest.raises(Misconfigured, match="share of decline: wanted 0 to below 1, got 1"):
        Traffic(10, {"decline": 1.0})
