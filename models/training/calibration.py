"""Calibration: turn margins into probabilities, and measure how good those are.

How it works:

1. Platt scaling (J. Platt, "Probabilistic outputs for support vector machines", 1999): log-odds = slope x margin +
   intercept. It is fitted on out-of-fold margins of all rows; each margin comes from a model that has not seen the
   row. The fit maximises the likelihood, so over these rows the mean score equals the share of frauds.
2. Where rows are a sample, each counts as often as the payments that it stands for, in the trees and here: scores are
   probabilities among all payments (models/training/sampling.py).
3. Three numbers measure probabilities: the Brier score (mean squared distance of score and label), the reliability
   table (ten bins of equally many rows: mean score, and share of frauds with its 95 % interval) and the expected
   calibration error (the mean distance of the two, weighted by rows).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from paywarden.models.metrics.intervals import wilson_interval
from paywarden.schemas.errors import Misconfigured

Weight = NDArray[np.float64] | None
"""How many payments each row stands for (models/metrics/propensity.py); None means 1."""

RELIABILITY_BINS = 10
# Practically no regularisation, with two parameters and thousands of rows. Without any, separable rows have no maximum.
_INVERSE_REGULARISATION = 1e6
_TOLERANCE = 1e-10
# A wrong probability of exactly 0 or 1 would make the log loss infinite.
_PROBABILITY_MIN = 1e-15


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows with similar scores: their mean score, their share of frauds, and their number.

    `low` to `high` is the 95 % interval of the share (Wilson), as if payments were independent of each other.
    """

    mean_score: float
    observed_rate: float
    count: int
    low: float
    high: float


@dataclass(frozen=True)
class Reliability:
    """Measures of scores as probabilities. `bins` are in order of score; empty bins are left out."""

    brier: float
    expected_calibration_error: float
    bins: tuple[ReliabilityBin, ...]

    def table(self) -> list[dict[str, float]]:
        """Returns the bins as a manifest stores them."""
        return [asdict(of_bin) for of_bin in self.bins]


def fit_calibration(
    margins: NDArray[np.float64], label: NDArray[np.int64], weight: Weight = None
) -> tuple[float, float]:
    """Returns slope and intercept of Platt scaling, without Platt's smoothing of the labels.

    All arrays: (rows,). Raises Misconfigured if the slope is not positive: higher margins do not mean more
    frauds.
    """
    # A second-order solver needs a handful of steps for two parameters, and is exact where others stop early.
    solver = LogisticRegression(C=_INVERSE_REGULARISATION, solver="newton-cholesky", tol=_TOLERANCE, max_iter=1000)
    fitted = solver.fit(margins.reshape(-1, 1), label, sample_weight=weight)
    slope = float(fitted.coef_[0, 0])
    if slope <= 0.0:
        raise Misconfigured("the model ranks held-out payments no better than chance: there is nothing to calibrate")
    return slope, float(fitted.intercept_[0])


def log_loss(label: NDArray[np.int64], score: NDArray[np.float64], weight: Weight = None) -> float:
    """Returns the log loss: the mean negative log-likelihood of the labels. Scores are probabilities."""
    return _mean(log_losses(label, score), weight)


def log_losses(label: NDArray[np.int64], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the negative log-likelihood of each label, (rows,)."""
    bounded = np.clip(score, _PROBABILITY_MIN, 1.0 - _PROBABILITY_MIN)
    return np.asarray(-np.where(label == 1, np.log(bounded), np.log1p(-bounded)))


def brier_score(label: NDArray[np.int64], score: NDArray[np.float64], weight: Weight = None) -> float:
    """Returns the Brier score: the mean squared distance of score and label. 0 is perfect.

    Source: G. Brier, "Verification of forecasts expressed in terms of probability" (1950).
    """
    return _mean(np.square(score - label), weight)


def _mean(values: NDArray[np.float64], weight: Weight) -> float:
    return float(values.mean() if weight is None else np.average(values, weights=weight))


def reliability(label: NDArray[np.int64], score: NDArray[np.float64], weight: Weight = None) -> Reliability:
    """Returns Brier score, reliability table and expected calibration error. All arrays: (rows,).

    Bins have equally many rows, as far as equal scores allow. With weights, shares and means are weighted, and the
    intervals are those of the effective sample size.
    """
    # Edges are scores, not ranks: rows with equal scores share a bin, so the order of rows does not matter.
    edges = np.quantile(score, np.linspace(0.0, 1.0, RELIABILITY_BINS + 1)[1:-1])
    place = np.searchsorted(edges, score, side="right")
    count = np.bincount(place, minlength=RELIABILITY_BINS)
    used = count > 0
    each = np.ones(len(label)) if weight is None else weight
    total = np.bincount(place, each, RELIABILITY_BINS)[used]
    mean_score = np.bincount(place, score * each, RELIABILITY_BINS)[used] / total
    fraud_share = np.bincount(place, label * each, RELIABILITY_BINS)[used] / total
    size = np.square(total) / np.bincount(place, np.square(each), RELIABILITY_BINS)[used]
    parts = (mean_score.tolist(), fraud_share.tolist(), count[used].tolist(), size.tolist())
    bins = tuple(
        ReliabilityBin(mean, share, rows, *wilson_interval(share, effective))
        for mean, share, rows, effective in zip(*parts, strict=True)
    )
    error = float((np.abs(mean_score - fraud_share) * total).sum() / each.sum())
    return Reliability(brier_score(label, score, weight), error, bins)
