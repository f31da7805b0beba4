"""Curves of scores: the effect of each threshold, the reliability of the scores, and their distribution.

Each curve has at most a few hundred points, which depend on the data alone. Files stay small, and the same scores give
the same points. Curves are lists instead of arrays, so that they can be written as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.evaluation import BoolArray, rows_by_day
from paywarden.models.metrics.intervals import wilson_interval
from paywarden.models.metrics.propensity import effective_size

POINTS_MAX = 240
# Rows processed at once, so that temporary arrays are small compared with the columns.
_ROWS = 1 << 18
# Fraud is rare, and most scores are near 0. There each edge is about three times the one before it.
SCORE_EDGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FAR_OFF = (0.8, 1.25)
"""Outside this range, the ratio of mean score and share of frauds causes a warning."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ThresholdCurve:
    """The effect of each threshold, if it flagged all payments with a score at or above it.

    Without a fraud, recall is NaN. Net values are in minor units, compared with approving everything.
    """

    threshold: list[float]
    """Thresholds, falling. Every other list has one value for each."""
    share: list[float]
    """Share of payments with a score at or above the threshold."""
    precision: list[float]
    """Share of frauds among them."""
    recall: list[float]
    """Frauds among them, divided by all frauds."""
    amount_recall: list[float]
    """Amount of these frauds, divided by that of all frauds."""
    net_if_declined_minor: list[int]
    """Net value if all of them were declined."""
    net_if_reviewed_minor: list[int]
    """Net value if all of them were reviewed."""


def threshold_curve(fraud: BoolArray, score: FloatArray, amount_minor: IntArray, costs: CostSettings) -> ThresholdCurve:
    """Compute at most POINTS_MAX thresholds. All arrays: (row_count,), at least one row.

    The thresholds are the scores at ranks in geometric progression, so that high thresholds are closer together.
    """
    rising, rows = np.sort(score), len(score)
    ranks = np.unique(np.geomspace(1, rows, POINTS_MAX).round().astype(np.int64))
    # A threshold flags all payments with its score, also those below its rank.
    threshold = np.unique(rising[rows - ranks])[::-1]
    flagged = rows - np.searchsorted(rising, threshold, side="left")
    del rising
    frauds, stopped, declined = _at_or_above(threshold, fraud, score, amount_minor)
    avoided = stopped * costs.fraud_loss_share
    return ThresholdCurve(
        threshold=threshold.tolist(),
        share=(flagged / rows).tolist(),
        precision=(frauds / flagged).tolist(),
        recall=_shares(frauds, int(np.count_nonzero(fraud))),
        amount_recall=_shares(stopped, int(amount_minor[fraud].sum())),
        net_if_declined_minor=_whole(avoided - declined * costs.declined_margin_share),
        net_if_reviewed_minor=_whole(avoided - flagged * float(costs.review_cost_minor)),
    )


def _at_or_above(
    threshold: FloatArray, fraud: BoolArray, score: FloatArray, amount_minor: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Returns frauds, their amount, and the amount of genuine payments at or above each of the falling thresholds."""
    bins = len(threshold) + 1
    sums = np.zeros((3, bins), dtype=np.int64)
    for first in range(0, len(score), _ROWS):
        part = slice(first, first + _ROWS)
        # The first threshold that a score reaches. The last bin holds scores below all thresholds.
        place = np.searchsorted(-threshold, -score[part], side="left")
        is_fraud, amount = fraud[part], amount_minor[part]
        sums[0] += np.bincount(place[is_fraud], minlength=bins)
        # Sums are exact up to 2**53 minor units.
        sums[1] += np.bincount(place[is_fraud], weights=amount[is_fraud], minlength=bins).astype(np.int64)
        sums[2] += np.bincount(place[~is_fraud], weights=amount[~is_fraud], minlength=bins).astype(np.int64)
    frauds, stopped, declined = np.cumsum(sums, axis=1)[:, :-1]
    return frauds, stopped, declined


@dataclass(frozen=True)
class AtCapacity:
    """The result of reviewing the highest scores of each day, up to a daily capacity. NaN where a divisor is 0."""

    reviews: int
    """Each day's highest scores, at most `costs.reviews_a_day`."""
    frauds_found: int
    """Frauds among them."""
    precision: float
    """Frauds found divided by reviews."""
    recall: float
    """Frauds found divided by all frauds."""
    amount_recall: float
    """Amount found divided by the amount of all frauds."""
    found_per_day: list[int]
    """Frauds found on each day of `days`."""
    days: list[int]
    """UTC days with payments, counted from 1970-01-01."""


def at_capacity(
    day: IntArray, fraud: BoolArray, score: FloatArray, amount_minor: IntArray, reviews_a_day: int
) -> AtCapacity:
    """Review the highest scores of each day; a tie goes to the earlier row. All arrays: (row_count,)."""
    chosen = [rows[np.argsort(-score[rows], kind="stable")[:reviews_a_day]] for _, rows in rows_by_day(day)]
    days, reviewed = np.unique(day), np.concatenate([np.zeros(0, dtype=np.int64), *chosen])
    found = reviewed[fraud[reviewed]]
    return AtCapacity(
        reviews=len(reviewed),
        frauds_found=len(found),
        precision=_share(len(found), len(reviewed)),
        recall=_share(len(found), int(fraud.sum())),
        amount_recall=_share(int(amount_minor[found].sum()), int(amount_minor[fraud].sum())),
        found_per_day=np.bincount(np.searchsorted(days, day[found]), minlength=len(days)).tolist(),
        days=days.tolist(),
    )


@dataclass(frozen=True)
class ReliabilityCurve:
    """A reliability curve: are 30 % of the payments with a score near 0.3 fraud? Empty bins are left out."""

    payments: list[int]
    """Payments by bin of scores; empty bins are left out."""
    mean_score: list[float]
    """Mean score of each bin."""
    fraud_share: list[float]
    """Share of frauds of each bin."""
    low: list[float]
    """Lower end of the share's 95 % interval (Wilson)."""
    high: list[float]
    """Its upper end."""
    brier_score: float
    """Brier score: mean squared distance of score and label."""
    calibration_error: float
    """Expected calibration error over the bins, weighted by payments."""


def reliability(fraud: BoolArray, score: FloatArray) -> ReliabilityCurve:
    """Compute the reliability curve with the bins of SCORE_EDGES. Both arrays: (row_count,), at least one row."""
    place = _bins(score)
    count = np.bincount(place, minlength=len(SCORE_EDGES) - 1)
    used = np.flatnonzero(count)
    total = count[used].astype(np.float64)
    mean = np.bincount(place, weights=score, minlength=len(count))[used] / total
    share = np.bincount(place, weights=fraud, minlength=len(count))[used] / total
    intervals = [wilson_interval(part, size) for part, size in zip(share.tolist(), total.tolist(), strict=True)]
    return ReliabilityCurve(
        payments=count[used].tolist(),
        mean_score=mean.tolist(),
        fraud_share=share.tolist(),
        low=[low for low, _ in intervals],
        high=[high for _, high in intervals],
        brier_score=float(np.mean((score - fraud) ** 2)),
        calibration_error=float(np.sum(np.abs(mean - share) * total) / len(score)),
    )


@dataclass(frozen=True)
class MeanCalibration:
    """Calibration in the large: is the mean score equal to the share of frauds?

    A ratio of 2 means that the scores promise twice the true share of frauds. Without a fraud it is infinite. Frauds of
    one card come together. The interval is therefore computed for a smaller, effective number of payments: the number
    divided by the design effect (L. Kish, "Survey Sampling", 1965).
    """

    mean_score: float
    """Mean of the scores."""
    fraud_share: float
    """Share of frauds."""
    ratio: float
    """Mean score divided by share of frauds; null without a fraud."""
    ratio_low: float
    """Lower end of the ratio's 95 % interval."""
    ratio_high: float
    """Its upper end; null if the share's interval begins at 0."""
    is_far_off: bool
    """Whether the ratio is outside 0.8 to 1.25, and its interval does not contain 1."""


def mean_calibration(
    fraud: BoolArray, score: FloatArray, card: npt.NDArray[np.integer], weight: FloatArray | None = None
) -> MeanCalibration:
    """Compare mean score and share of frauds. All arrays: (row_count,), at least one row. `card`: codes from 0.

    `weight`: how many payments each one stands for (models/metrics/propensity.py); None means 1.
    """
    mean, share, size = float(score.mean()), float(fraud.mean()), float(len(score))
    # The design effect: the variance of the sum of errors, divided by its variance with independent payments.
    error = fraud - score
    if weight is not None:
        mean, share = float(weight @ score / weight.sum()), float(weight @ fraud / weight.sum())
        size, error = effective_size(weight), weight * error
    by_card = np.bincount(card, weights=error)
    # Without zeros and in order, so that the sum does not depend on how the source numbers its cards.
    by_card = np.sort(by_card[by_card != 0])
    alone = float(error @ error)
    effect = max(1.0, float(by_card @ by_card) / alone) if alone else 1.0
    share_low, share_high = wilson_interval(share, size / effect)
    ratio, low, high = _ratio(mean, share), _ratio(mean, share_high), _ratio(mean, share_low)
    is_far_off = not FAR_OFF[0] <= ratio <= FAR_OFF[1] and not low <= 1.0 <= high
    return MeanCalibration(mean, share, ratio, low, high, is_far_off)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("inf")


@dataclass(frozen=True)
class ScoreHistogram:
    """Payments by score and label."""

    genuine: list[int]
    """Genuine payments by score: element i lies between edges i and i + 1 of SCORE_EDGES in
    models/metrics/curves.py."""
    fraud: list[int]
    """Frauds by score, in the same bins."""


def score_histogram(fraud: BoolArray, score: FloatArray) -> ScoreHistogram:
    """Count payments by score and label. Both arrays: (row_count,)."""
    place, size = _bins(score), len(SCORE_EDGES) - 1
    return ScoreHistogram(
        genuine=np.bincount(place[~fraud], minlength=size).tolist(),
        fraud=np.bincount(place[fraud], minlength=size).tolist(),
    )


def _bins(score: FloatArray) -> IntArray:
    """Returns the bin of each score. The last bin includes the score 1."""
    return np.searchsorted(SCORE_EDGES[1:-1], score, side="right").astype(np.int64)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _shares(parts: IntArray, whole: int) -> list[float]:
    return [_share(part, whole) for part in parts.tolist()]


def _whole(amounts: FloatArray) -> list[int]:
    return [int(amount) for amount in np.rint(amounts).tolist()]
