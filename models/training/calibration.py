"""Margins to probabilities, and how far to trust these.

1. A calibration is fitted on out-of-fold margins of all rows, each by a model that has not seen the row (Platt
   scaling: log-odds = slope · margin + intercept). It is a maximum of the likelihood, so over these rows the mean
   score is the share of frauds.
2. Trees grown on a sample of the genuine payments see frauds more often than there are. Their margins are too high by
   -log(share) (the prior correction of King & Zeng 2001, "Logistic Regression in Rare Events Data", section 4.1). The
   calibration needs no such term: it is fitted on unsampled rows, and its intercept takes the excess up. Where scores
   are used before there is a calibration, to stop early or to compare, `true_probabilities` takes the excess off.
3. Three numbers say how good scores are as probabilities: the Brier score (mean squared distance from the label), the
   reliability table (rows in ten bins of equal size by score: what was promised, what came) and the expected
   calibration error (the mean distance of the two, weighted by the rows of a bin).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from paywarden.schemas.errors import Misconfigured

RELIABILITY_BINS = 10
# As good as unregularised: there are two parameters and thousands of rows. Without it separable rows have no maximum.
_INVERSE_REGULARISATION = 1e6
_TOLERANCE = 1e-10
# A probability of exactly 0 or 1 would make one row's loss infinite.
_PROBABILITY_MIN = 1e-15


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of similar score: their mean score, the share of frauds among them, how many they are."""

    mean_score: float
    observed_rate: float
    count: int


@dataclass(frozen=True)
class Reliability:
    """How good scores are as probabilities. Bins are in order of score; a bin without rows is left out."""

    brier: float
    expected_calibration_error: float
    bins: tuple[ReliabilityBin, ...]

    def table(self) -> list[dict[str, float]]:
        """The bins for a manifest."""
        return [asdict(one) for one in self.bins]


def fit_calibration(margins: NDArray[np.float64], label: NDArray[np.int64]) -> tuple[float, float]:
    """Platt scaling: slope and intercept that make margins log-odds (Platt 1999, without target smoothing).

    Raises Misconfigured where higher margins do not go with more frauds.
    """
    # Second order: with two parameters a handful of steps, and exact where first-order ones stop early.
    solver = LogisticRegression(C=_INVERSE_REGULARISATION, solver="newton-cholesky", tol=_TOLERANCE, max_iter=1000)
    fitted = solver.fit(margins.reshape(-1, 1), label)
    slope = float(fitted.coef_[0, 0])
    if slope <= 0.0:
        raise Misconfigured("the model ranks held-out payments no better than chance: there is nothing to calibrate")
    return slope, float(fitted.intercept_[0])


def true_probabilities(probability: NDArray[np.float64], genuine_sample_share: float) -> NDArray[np.float64]:
    """Probabilities among all payments, from those among the frauds and a share of the genuine ones."""
    odds_part = probability * genuine_sample_share
    return odds_part / (odds_part + (1.0 - probability))


def log_loss(label: NDArray[np.int64], score: NDArray[np.float64]) -> float:
    """Mean negative log-likelihood of the labels. Scores are probabilities."""
    bounded = np.clip(score, _PROBABILITY_MIN, 1.0 - _PROBABILITY_MIN)
    return float(-np.where(label == 1, np.log(bounded), np.log1p(-bounded)).mean())


def brier_score(label: NDArray[np.int64], score: NDArray[np.float64]) -> float:
    """Mean squared distance of score and label (Brier 1950): 0 is perfect."""
    return float(np.square(score - label).mean())


def reliability(label: NDArray[np.int64], score: NDArray[np.float64]) -> Reliability:
    """What scores promised and what came, by bins of as equal size as equal scores allow. Both shape (rows,)."""
    # Bins by value, not by rank: rows of one score stay together, so the table does not depend on their order.
    edges = np.quantile(score, np.linspace(0.0, 1.0, RELIABILITY_BINS + 1)[1:-1])
    place = np.searchsorted(edges, score, side="right")
    count = np.bincount(place, minlength=RELIABILITY_BINS)
    used = count > 0
    promised = np.bincount(place, score, RELIABILITY_BINS)[used] / count[used]
    came = np.bincount(place, label, RELIABILITY_BINS)[used] / count[used]
    rows = zip(promised.tolist(), came.tolist(), count[used].tolist(), strict=True)
    error = float((np.abs(promised - came) * count[used]).sum() / len(label))
    return Reliability(brier_score(label, score), error, tuple(ReliabilityBin(*row) for row in rows))
