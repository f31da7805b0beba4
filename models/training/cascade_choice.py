"""Choose a cascade's thresholds: as many payments as possible answered early, and the actions of the large model.

1. Both models' margins are out of fold. A payment the first model finds harmless must be one that the large model
   approves, one it finds fraudulent one that the large model declines, but for an allowance of payments.
2. Of all ways to spend the allowance, some on the harmless side and the rest on the other, the one is taken that
   answers the most payments. A threshold never lies where the first model's own score would ask for another action.
3. Thresholds fit the payments that they were chosen on. So each fold is measured with thresholds chosen on the others,
   and as long as they disagree too often there, the allowance is halved, and in the end nothing.
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
# Parts of the allowance that are tried, after the whole.
_HALVINGS = 4
# Then without any, by how much of the first model's log-odds either threshold is moved outwards.
_GAPS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
_PROBABILITY_MIN = 1e-15


@dataclass(frozen=True)
class OutOfFold:
    """What the choice is made on, each of shape (rows,): margins of both models, and the rows' folds and labels."""

    first: F64
    large: F64
    fold: NDArray[np.int64]
    label: NDArray[np.int64]


@dataclass(frozen=True)
class Large:
    """The large model's calibration, and the scores from which it asks for a review and a refusal."""

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


def choose_cascade(rows: OutOfFold, large: Large, disagreement_max: float) -> tuple[Cascade, F64]:
    """The cascade, and its margins on the large model's scale.

    Raises Misconfigured where the first model cannot answer a single payment within the tolerance.
    """
    slope, intercept = fit_calibration(rows.first, rows.label)
    caps = _Thresholds(*((_log_odds(at) - intercept) / slope for at in (large.review_at, large.decline_at)))
    alone = calibrated(rows.large, large.slope, large.intercept)
    wanted = _actions(alone, large)
    for allowance, log_odds in _cautions(disagreement_max):
        gap = log_odds / slope
        chosen = _best(rows.first, wanted, caps, allowance).apart(gap)
        held_out = _held_out(rows, wanted, caps, allowance, gap)
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
    cascade = Cascade(
        low=chosen.low,
        high=chosen.high,
        calibration_slope=slope,
        calibration_intercept=intercept,
        share_early=float(early.mean()),
        disagreement=float((_actions(scores, large) != wanted).mean()),
        disagreement_held_out=held_out,
        disagreement_max=disagreement_max,
        average_precision_alone=precision_alone,
        average_precision_loss=precision_alone - average_precision(rows.label, scores),
    )
    return cascade, margins


def _cautions(most: float) -> list[tuple[float, float]]:
    """Ways to choose, ever more careful: the allowance, and how far thresholds are moved apart."""
    halvings = [(most / 2**halving, 0.0) for halving in range(_HALVINGS + 1)]
    return halvings + [(0.0, gap) for gap in _GAPS]


def _held_out(rows: OutOfFold, wanted: NDArray[np.int64], caps: _Thresholds, allowance: float, gap: float) -> float:
    """Share of the payments that get another action when their fold's thresholds are chosen on the others."""
    differing = 0
    for number in np.unique(rows.fold):
        here = rows.fold == number
        chosen = _best(rows.first[~here], wanted[~here], caps, allowance).apart(gap)
        differing += _differing(rows.first[here], wanted[here], chosen)
    return differing / len(rows.first)


def _differing(first: F64, wanted: NDArray[np.int64], chosen: _Thresholds) -> int:
    harmless = (first < chosen.low) & (wanted != _APPROVE)
    return int(harmless.sum() + ((first > chosen.high) & (wanted != _DECLINE)).sum())


def _best(first: F64, wanted: NDArray[np.int64], caps: _Thresholds, allowance: float) -> _Thresholds:
    """The thresholds between which the fewest payments are left, with no more wrong ones beyond than allowed."""
    allowed = int(allowance * len(first))
    ordered = np.sort(first)
    # With the first k wrong ones let through, a threshold is the next one: what equals it is unclear.
    low = np.full(allowed + 1, np.inf)
    wrong = np.sort(first[wanted != _APPROVE])[: allowed + 1]
    low[: len(wrong)] = wrong
    low = np.minimum(low, caps.low)
    high = np.full(allowed + 1, -np.inf)
    wrong = np.sort(first[wanted != _DECLINE])[::-1][: allowed + 1]
    high[: len(wrong)] = wrong
    high = np.maximum(high, caps.high)
    below = np.searchsorted(ordered, low, side="left")
    above = len(ordered) - np.searchsorted(ordered, high, side="right")
    # k on the harmless side, the rest on the other.
    place = int(np.argmax(below + above[::-1]))
    return _Thresholds(float(low[place]), float(high[allowed - place]))


def _actions(scores: F64, large: Large) -> NDArray[np.int64]:
    return np.asarray((scores >= large.review_at).astype(np.int64) + (scores >= large.decline_at), dtype=np.int64)


def _log_odds(score: float) -> float:
    bounded = min(max(score, _PROBABILITY_MIN), 1.0 - _PROBABILITY_MIN)
    return math.log(bounded) - math.log1p(-bounded)
