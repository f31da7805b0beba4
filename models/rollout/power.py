"""The power of a plan with given traffic, computed before a rollout starts.

For each step and measure this answers two questions about the step's least time:

- which increase is found with a probability of 80 %, and
- how long it takes to show that the measure is within the margin, if nothing differs.

Example: 200,000 cards a day, 2 % of their payments declined, 5 % sent to review:

    step 5 %, 6 hours: review x 1.60, decline x 2.02; goes on after 6 hours
    step 10 %, 24 hours: review x 1.26, decline x 1.42; goes on after 24 hours

In the step of 5 % twice as many declines are found, and a rise to 1.42 times waits for the next step.

The cards with an event are counted as a binomial number, and the normal distribution stands in for it. A look before
the end can find it too, so the true power is a little higher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.rollout_evidence import log_evidence, log_evidence_below, log_threshold
from paywarden.schemas.errors import Misconfigured

_HOURS_A_DAY = 24
# The ratios that are tried, in rising order; the quantile of the normal distribution at 80 %.
_RATIOS = np.exp(np.linspace(math.log(1.02), math.log(50), 200))
_Z_POWER = 0.8416
# A longer time counts as "never".
HOURS_MAX = 24 * 365.0
_GROWTH = 1.05


@dataclass(frozen=True)
class Traffic:
    """Incoming traffic: different cards a day, and the share of their first payments with each event, by measure."""

    cards_a_day: float
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        """Raises Misconfigured for traffic that cannot be."""
        if not 0 < self.cards_a_day < math.inf:
            raise Misconfigured(f"cards a day: wanted more than 0, got {self.cards_a_day:g}")
        for name, share in self.shares.items():
            if not 0 <= share < 1:
                raise Misconfigured(f"share of {name}: wanted 0 to below 1, got {share:g}")


@dataclass(frozen=True)
class PowerLine:
    """The power of one measure in one step. `ratio`: infinite if nothing is found. `hours`: infinite if never."""

    step: int
    share_percent: float
    step_hours: float
    measure: str
    ratio: float
    hours: float


def _spoken(hours: float) -> str:
    if hours < 1:
        return f"{max(1, round(hours * 60))} minutes"
    return f"{hours:.0f} hours" if hours < 3 * _HOURS_A_DAY else f"{hours / _HOURS_A_DAY:.0f} days"


def power_text(lines: Sequence[PowerLine]) -> list[str]:
    """Returns the power as one line for each step, and a line before them."""
    texts = ["power: the smallest ratio that each step finds with a probability of 80 %, and when it goes on:"]
    for _, of_step in groupby(lines, key=lambda line: line.step):
        those = list(of_step)
        found = ", ".join(f"{line.measure} {_factor(line.ratio)}" for line in those)
        slowest = max(those, key=lambda line: line.hours)
        goes_on = f"goes on after {_spoken(slowest.hours)}"
        if math.isinf(slowest.hours):
            goes_on = f"never goes on, for {slowest.measure}"
        elif slowest.hours > slowest.step_hours * _GROWTH:
            goes_on += f", for {slowest.measure}"
        texts.append(f"  step {those[0].share_percent:g} %, {those[0].step_hours:g} hours: {found}; {goes_on}")
    return texts


def _factor(ratio: float) -> str:
    return "nothing" if math.isinf(ratio) else f"x {ratio:.2f}" if ratio < 10 else f"x {ratio:.0f}"


def power(plan: RolloutPlan, traffic: Traffic) -> list[PowerLine]:
    """Returns a line for each step that compares and each measure that `traffic` has a share for."""
    lines = []
    for step in range(plan.last_step):
        for measure in plan.measures:
            if measure.name in traffic.shares:
                hours = plan.step_hours[step]
                ratio = _ratio_found(plan, step, traffic, measure.name, plan.alpha_of(measure.part))
                needed = _hours_to_margin(plan, step, traffic, measure.name) if measure.has_margin else hours
                lines.append(
                    PowerLine(
                        step, plan.steps[step] / 100, hours, measure.name, ratio, max(needed, plan.step_hours[step])
                    )
                )
    return lines


def _events(plan: RolloutPlan, step: int, traffic: Traffic, measure: str, hours: float) -> float:
    """Returns how many cards have the event in a time, of both arms, if nothing differs. Cards come once a step."""
    fresh = 1 - (plan.steps[step - 1] / 10_000 if step else 0.0)
    return traffic.cards_a_day * hours / _HOURS_A_DAY * traffic.shares[measure] * fresh


def _ratio_found(plan: RolloutPlan, step: int, traffic: Traffic, measure: str, alpha: float) -> float:
    """Returns the smallest ratio that is found in the step's least time with a probability of 80 %."""
    p = plan.comparing_share(step)
    events = _events(plan, step, traffic, measure, plan.step_hours[step])
    # The candidate's cards have more events, and all events together grow with them.
    totals = events * (p * _RATIOS + 1 - p)
    coin = p * _RATIOS / (p * _RATIOS + 1 - p)
    ours = np.maximum(totals * coin - _Z_POWER * np.sqrt(totals * coin * (1 - coin)), 0)
    null = np.full(len(_RATIOS), plan.harm_from(falls=False))
    found = log_evidence(ours[:, None], (totals - ours)[:, None], np.array([p]), ratio=null) >= log_threshold(alpha / 2)
    return float(_RATIOS[int(np.argmax(found))]) if found.any() else math.inf


def _hours_to_margin(plan: RolloutPlan, step: int, traffic: Traffic, measure: str) -> float:
    """Returns the hours until the measure is within the step's margin if nothing differs, on average."""
    p, share = plan.comparing_share(step), traffic.shares[measure]
    low, high = plan.ratio_limits(step)
    falls_are_harm = next(each.falls_are_harm for each in plan.measures if each.name == measure)
    hours = np.exp(np.arange(0, math.log(HOURS_MAX * 60), math.log(_GROWTH))) / 60
    events = np.array([_events(plan, step, traffic, measure, each) for each in hours])
    cards = np.array(
        [_events(plan, step, Traffic(traffic.cards_a_day, {measure: 0.999999}), measure, each) for each in hours]
    )
    ours, theirs = (events * p)[:, None], (events * (1 - p))[:, None]
    needed = log_threshold(plan.alpha)
    fits = log_evidence(ours, theirs, np.array([p]), ratio=np.full(len(hours), high), falls=True) >= needed
    if falls_are_harm and low > 0:
        fits &= log_evidence(ours, theirs, np.array([p]), ratio=np.full(len(hours), low)) >= needed
    rare = log_evidence_below(cards * p * share, cards * p, plan.rare_limit(step)) >= needed
    fits = (fits | rare) & (cards * min(p, 1 - p) >= plan.cards_min)
    return float(hours[int(np.argmax(fits))]) if fits.any() else math.inf
