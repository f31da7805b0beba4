"""Choose a cascade's thresholds: the first model scores as many payments as possible without changing many actions.

How it works:

1. Both models' margins are out of fold. The first model may score a payment as harmless if the large model approves
   it, and as fraudulent if the large model declines it. At most an allowance of payments may break this rule.
2. The allowance is split between the low and the high threshold. The split that lets the first model score the
   most payments wins. A threshold never lies where the first model's own score would give another action.
3. Thresholds fit the payments on which they were chosen too well. Each fold is therefore checked with thresholds chosen
   on the other folds. While their actions disagree too often, the allowance is halved, four times, then set to 0.
4. If even that disagrees too often, both thresholds are moved outwards, by up to 2 in the first model's log-odds.

Example: of 100,000 payments, 10 may get another action (cascade_disagreement_max = 1e-4). With 3 of them on the low and
7 on the high side, 91,000 payments are below `low` and 400 above `high`; no other split reaches 91,400. On held-out
folds 14 payments disagree, too many. With an allowance of 5, only 8 do: the thresholds for 5 are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.bundle.cascade import Cascade
from paywarden.models.metrics.evaluation import average_precision
from paywarden.models.training.calibration import fit_calibration
from paywarden.schemas.errors import Misconfigured

F64 = NDArray[np.float64]

_APPROVE, _DECLINE = 0, 2
# How often the allowance is halved.
_HALVINGS = 4
# With an allowance of 0: by how much, in the first model's log-odds, each threshold is moved outwards.
_GAPS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
_PROBABILITY_MIN = 1e-15


@dataclass(frozen=True)
class OutOfFold:
    """The rows to choose on, as columns of shape (rows,): both models' out-of-fold margins, folds and labels."""

    first: F64
    large: F64
    fold: NDArray[np.int64]
    label: NDArray[np.int64]
    weight: F64 | None = None


@dataclass(frozen=True)
class Large:
    """The large model's calibration, and its thresholds of review and decline."""

    slope: float
    intercept: float
    review_at: float
    decline_at: float


@dataclass(frozen=True)
class _Thresholds:
    low: float
    high: float

    def apart(self, gap: float) -> _Thresholds:
        return _Thresholds(self.low - gap, self.high + gap)

    def clear(self, margins: F64) -> NDArray[np.bool_]:
        return np.asarray((margins < self.low) | (margins > self.high), dtype=np.bool_)


def choose_cascade(rows: OutOfFold, large: Large, disagreement_max: float) -> Cascade:
    """Returns the cascade.

    Raises Misconfigured if the first model cannot score a single payment within `disagreement_max`.
    """
    slope, intercept = fit_calibration(rows.first, rows.label, rows.weight)
    caps = _Thresholds(*((_log_odds(at) - intercept) / slope for at in (large.review_at, large.decline_at)))
    alone = calibrated(rows.large, large.slope, large.intercept)
    actions = _actions(alone, large)
    for allowance, log_odds in _cautions(disagreement_max):
        gap = log_odds / slope
        chosen = _best(rows.first, actions, caps, allowance).apart(gap)
        held_out = _held_out(rows, actions, caps, allowance, gap)
        if held_out <= disagreement_max:
            break
    else:
        raise Misconfigured(
            f"training.cascade: in {held_out:.2e} of the held-out payments the first model's action is not the large "
            f"one's, more than training.cascade_disagreement_max {disagreement_max:g}: try more trees or more payments"
        )
    early = chosen.clear(rows.first)
    if not early.any():
        raise Misconfigured("training.cascade: the first model can answer no payment within the tolerance")
    factor, shift = slope / large.slope, (intercept - large.intercept) / large.slope
    margins = np.where(early, rows.first * factor + shift, rows.large)
    scores = calibrated(margins, large.slope, large.intercept)
    precision_alone = average_precision(rows.label, alone)
    return Cascade(
        low=chosen.low,
        high=chosen.high,
        calibration_slope=slope,
        calibration_intercept=intercept,
        share_early=float(early.mean()),
        disagreement=float((_actions(scores, large) != actions).mean()),
        disagreement_held_out=held_out,
        disagreement_max=disagreement_max,
        average_precision_alone=precision_alone,
        average_precision_loss=precision_alone - average_precision(rows.label, scores),
    )


def _cautions(most: float) -> list[tuple[float, float]]:
    """Returns pairs (allowance, gap in log-odds), from the least to the most careful."""
    halvings = [(most / 2**halving, 0.0) for halving in range(_HALVINGS + 1)]
    return halvings + [(0.0, gap) for gap in _GAPS]


def _held_out(rows: OutOfFold, actions: NDArray[np.int64], caps: _Thresholds, allowance: float, gap: float) -> float:
    """Returns the share of payments that get another action with thresholds chosen on the other folds."""
    differing = 0
    for number in np.unique(rows.fold):
        here = rows.fold == number
        chosen = _best(rows.first[~here], actions[~here], caps, allowance).apart(gap)
        differing += _differing(rows.first[here], actions[here], chosen)
    return differing / len(rows.first)


def _differing(first: F64, actions: NDArray[np.int64], chosen: _Thresholds) -> int:
    harmless = (first < chosen.low) & (actions != _APPROVE)
    return int(harmless.sum() + ((first > chosen.high) & (actions != _DECLINE)).sum())


def _best(first: F64, actions: NDArray[np.int64], caps: _Thresholds, allowance: float) -> _Thresholds:
    """Returns the thresholds with the fewest payments between them and at most the allowed wrong ones outside.

    `first`: the first model's margins. `actions`: the large model's actions. Both: (rows,).
    """
    allowed = int(allowance * len(first))
    ordered = np.sort(first)
    # low[k] is the k-th lowest margin (from 0) of a wrong payment: exactly k wrong payments lie below it.
    low = np.full(allowed + 1, np.inf)
    wrong = np.sort(first[actions != _APPROVE])[: allowed + 1]
    low[: len(wrong)] = wrong
    low = np.minimum(low, caps.low)
    # high[k] likewise, from above.
    high = np.full(allowed + 1, -np.inf)
    wrong = np.sort(first[actions != _DECLINE])[::-1][: allowed + 1]
    high[: len(wrong)] = wrong
    high = np.maximum(high, caps.high)
    below = np.searchsorted(ordered, low, side="left")
    above = len(ordered) - np.searchsorted(ordered, high, side="right")
    # k wrong payments below `low`, and allowed - k above `high`.
    place = int(np.argmax(below + above[::-1]))
    return _Thresholds(float(low[place]), float(high[allowed - place]))


def _actions(scores: F64, large: Large) -> NDArray[np.int64]:
    return np.asarray((scores >= large.review_at).astype(np.int64) + (scores >= large.decline_at), dtype=np.int64)


def _log_odds(score: float) -> float:
    bounded = min(max(score, _PROBABILITY_MIN), 1.0 - _PROBABILITY_MIN)
    return math.log(bounded) - math.log1p(-bounded)
