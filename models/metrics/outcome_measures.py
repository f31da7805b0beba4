"""Measure decisions by their outcomes: precision, recall, average precision, calibration and money, from a tally.

- A payment without an outcome counts as genuine. A tally should therefore be of days whose labels have arrived.
- Declined and reviewed payments are *flagged*. Precision is the share of frauds among the flagged payments. Recall is
  the share of frauds that were flagged. Both have Wilson's 95 % interval.
- Average precision uses the scores in the tally's grid: payments of one bin are one threshold. Its interval is that of
  a share of the frauds (K. Boyd, K. Eng, C. Page, "Area under the precision-recall curve: point estimates and
  confidence intervals", 2013).

Example: 20 flagged payments hold 8 of 10 frauds. Precision is 8 / 20 = 0.40 (0.22 to 0.61), and recall 8 / 10 = 0.80
(0.49 to 0.94).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.costs import CostSettings, Money, money_of
from paywarden.models.metrics.curves import SCORE_EDGES
from paywarden.models.metrics.intervals import wilson_interval
from paywarden.models.metrics.outcome_tally import BINS, EDGES, LAG_EDGES_MS, UNIT, UNLABELLED, OutcomeTally
from paywarden.models.metrics.tally import ACTION_COUNT, FRAUD, GENUINE, REVIEWED

SHARES = ("precision", "recall", "average_precision")
# For each bin of the grid, the bin of SCORE_EDGES that contains it.
_COARSE = np.searchsorted([round(edge * UNIT) for edge in SCORE_EDGES[1:-1]], [0, *EDGES], side="right")


class Share(NamedTuple):
    """A share of `whole` payments, with its 95 % interval. All but `whole` are None if `whole` is 0."""

    value: float | None
    low: float | None
    high: float | None
    whole: int


@dataclass(frozen=True)
class OutcomeMeasures:
    """The measures of a tally. None means that there are no payments to compute a measure from.

    `shares`: by name, from `shares_of`. `labelled`: payments with an outcome. `actions`: payments by action.
    `label_lag_…`: milliseconds from the decision to any outcome; `fraud_lag_…`: to the outcome "fraud".
    """

    payments: int
    labelled: int
    frauds: int
    actions: tuple[int, ...]
    shares: dict[str, Share]
    brier_score: float | None
    calibration_error: float | None
    mean_score: float | None
    fraud_share: float | None
    money: Money
    label_lag_p50_ms: int | None
    label_lag_p99_ms: int | None
    fraud_lag_p50_ms: int | None
    fraud_lag_p99_ms: int | None


def measure(tally: OutcomeTally, costs: CostSettings) -> OutcomeMeasures:
    """Returns all measures of a tally."""
    counts = tally.counts
    by_action = _mature(counts.sum(axis=2))
    amounts = _mature(tally.amount_minor)
    scored = _mature(counts[:, :, :BINS].sum(axis=1))
    payments, frauds = int(by_action.sum()), int(by_action[FRAUD].sum())
    scores = _mature(tally.score_sums) / UNIT
    payments_scored = int(scored.sum())
    return OutcomeMeasures(
        payments=payments,
        labelled=int(counts[:UNLABELLED].sum()),
        frauds=frauds,
        actions=tuple(by_action.sum(axis=0).tolist()),
        shares=shares_of(tally),
        brier_score=_brier_score(tally, scored, scores),
        calibration_error=_calibration_error(scored, scores),
        mean_score=float(scores.sum()) / payments_scored if payments_scored else None,
        fraud_share=frauds / payments if payments else None,
        money=money_of(by_action.T, amounts.T, costs),
        label_lag_p50_ms=_quantile(tally.lags.sum(axis=0), 0.5),
        label_lag_p99_ms=_quantile(tally.lags.sum(axis=0), 0.99),
        fraud_lag_p50_ms=_quantile(tally.lags[FRAUD], 0.5),
        fraud_lag_p99_ms=_quantile(tally.lags[FRAUD], 0.99),
    )


def shares_of(tally: OutcomeTally) -> dict[str, Share]:
    """Returns precision, recall and average precision, by the names in SHARES."""
    by_action = _mature(tally.counts.sum(axis=2))
    caught, flagged = int(by_action[FRAUD, REVIEWED:].sum()), int(by_action[:, REVIEWED:].sum())
    shares = (
        _share(caught, flagged),
        _share(caught, int(by_action[FRAUD].sum())),
        _average_precision(_mature(tally.counts[:, :, :BINS].sum(axis=1))),
    )
    return dict(zip(SHARES, shares, strict=True))


def _mature(by_label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns counts of genuine payments and frauds; unlabelled payments count as genuine. First axis: the label."""
    return np.stack([by_label[GENUINE] + by_label[UNLABELLED], by_label[FRAUD]])


def _share(part: int, whole: int) -> Share:
    if whole <= 0:
        return Share(None, None, None, 0)
    # A tally that was read during an update may be off by one payment.
    part = min(max(part, 0), whole)
    return Share(part / whole, *wilson_interval(part / whole, whole), whole)


def _average_precision(scored: NDArray[np.int64]) -> Share:
    """Returns the average precision of counts by label and bin."""
    found, flagged = np.cumsum(scored[FRAUD][::-1]), np.cumsum(scored.sum(axis=0)[::-1])
    frauds = int(found[-1])
    if frauds <= 0:
        return Share(None, None, None, 0)
    gained = np.diff(found, prepend=0)
    used = gained > 0
    value = min(float((gained[used] / frauds * (found[used] / flagged[used])).sum()), 1.0)
    return Share(value, *wilson_interval(value, frauds), frauds)


def _brier_score(tally: OutcomeTally, scored: NDArray[np.int64], scores: NDArray[np.float64]) -> float | None:
    payments = int(scored.sum())
    if payments <= 0:
        return None
    squares = float(tally.score_squares.sum()) / UNIT
    return (squares - 2 * float(scores[FRAUD].sum()) + int(scored[FRAUD].sum())) / payments


def _calibration_error(scored: NDArray[np.int64], scores: NDArray[np.float64]) -> float | None:
    """Returns the expected calibration error over the bins of SCORE_EDGES, weighted by payments."""
    payments = int(scored.sum())
    if payments <= 0:
        return None
    score_sums = np.bincount(_COARSE, weights=scores.sum(axis=0))
    frauds = np.bincount(_COARSE, weights=scored[FRAUD])
    return float(np.abs(score_sums - frauds).sum()) / payments


def _quantile(counts: NDArray[np.int64], share: float) -> int | None:
    """Returns a quantile of lags by bin, interpolated within the bin. In the last bin it is the bin's lower edge."""
    labelled = int(counts.sum())
    if labelled <= 0:
        return None
    rank = share * labelled
    below = 0
    for place, count in enumerate(counts.tolist()):
        if count > 0 and below + count >= rank:
            low = LAG_EDGES_MS[place - 1] if place else 0
            high = LAG_EDGES_MS[place] if place < len(LAG_EDGES_MS) else low
            return int(low + (high - low) * (rank - below) / count)
        below += count
    return LAG_EDGES_MS[-1]


assert ACTION_COUNT == 3, "every action from REVIEWED on is a flag"
