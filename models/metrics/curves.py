"""Scores as curves: what each threshold would do, whether a score means what it says, how scores are spread.

Everything is thinned to some hundred points, chosen by the data alone: a file of them stays small, and the same scores
give the same points. Lists instead of arrays, so that a curve can be written as JSON as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.evaluation import BoolArray, rows_by_day

POINTS_MAX = 240
# Looked at together: what is made of them is then small beside the columns.
_ROWS = 1 << 18
# Fraud is rare and most scores lie near 0: there edges lie in steps of three.
SCORE_EDGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FAR_OFF = (0.8, 1.25)
"""A mean score by a share of frauds outside of this is told: thresholds in money are then off by as much."""
_Z_95 = 1.959963984540054

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ThresholdCurve:
    """What holding scores against each threshold gives; thresholds fall, every list has a value for each of them.

    Precision and recall are of payments at or above the threshold; without a fraud recall is NaN. Nets are in minor
    units against approving everything: were all of those declined, and were all of them reviewed.
    """

    threshold: list[float]
    """Thresholds, falling; every other list has a value for each of them."""
    share: list[float]
    """Payments with a score at or above the threshold, by all payments."""
    precision: list[float]
    """Frauds among those payments."""
    recall: list[float]
    """Frauds among those payments, by all frauds."""
    amount_recall: list[float]
    """The same of the frauds' amounts."""
    net_if_declined_minor: list[int]
    """Net value if all those payments were declined, against approving everything."""
    net_if_reviewed_minor: list[int]
    """Net value if all of them were reviewed."""


def threshold_curve(fraud: BoolArray, score: FloatArray, amount_minor: IntArray, costs: CostSettings) -> ThresholdCurve:
    """All arrays have shape (row_count,), at least one row. Points lie closer where fewer payments are above."""
    rising, rows = np.sort(score), len(score)
    ranks = np.unique(np.geomspace(1, rows, POINTS_MAX).round().astype(np.int64))
    # A threshold takes all payments of its score. Those at or above each:
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
    """Frauds, their amount and the amount of the others, with a score at or above each of the falling thresholds."""
    bins = len(threshold) + 1
    sums = np.zeros((3, bins), dtype=np.int64)
    for first in range(0, len(score), _ROWS):
        part = slice(first, first + _ROWS)
        # The first threshold that a score reaches; below the last one it reaches none.
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
    """The highest scored payments of each day, as many as can be reviewed. NaN where there is nothing to divide by."""

    reviews: int
    """Payments looked at: the highest scored of each day, at most `costs.reviews_a_day` of them."""
    frauds_found: int
    """Frauds among them."""
    precision: float
    """Frauds by reviews."""
    recall: float
    """Frauds found by all frauds."""
    amount_recall: float
    """The same of the frauds' amounts."""
    found_per_day: list[int]
    """Frauds found on each day of `days`."""
    days: list[int]
    """UTC days with payments, as days since 1970."""


def at_capacity(
    day: IntArray, fraud: BoolArray, score: FloatArray, amount_minor: IntArray, reviews_a_day: int
) -> AtCapacity:
    """All arrays have shape (row_count,). Of equal scores the earlier row is looked at first."""
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
    """Does a score of 0.3 mean three frauds in ten? Bins without payments are left out.

    `low` and `high` are Wilson's 95 % interval of the share of frauds. `brier_score` is the mean squared error of the
    scores, `calibration_error` the mean distance of a bin's mean score and its share of frauds, weighted by payments.
    """

    payments: list[int]
    """Payments by bin of scores; bins without payments are left out."""
    mean_score: list[float]
    """Mean score of each bin."""
    fraud_share: list[float]
    """Share of frauds of each bin."""
    low: list[float]
    """Lower end of the share's 95 % interval (Wilson)."""
    high: list[float]
    """Upper end of it."""
    brier_score: float
    """Mean squared distance of score and label."""
    calibration_error: float
    """Mean distance of a bin's mean score and share of frauds, weighted by payments."""


def reliability(fraud: BoolArray, score: FloatArray) -> ReliabilityCurve:
    """Both arrays have shape (row_count,), at least one row; bins are those of SCORE_EDGES."""
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
    """Do the scores together promise as much fraud as came?

    `ratio` is the mean score by the share of frauds: 2 means that scores promise twice the fraud that came. Without a
    fraud it is infinite. `ratio_low` and `ratio_high` are its 95 % interval. Frauds of one card come together, so the
    interval is that of as many independent payments as these are worth. The ratio is far off when it is outside of
    FAR_OFF and not by chance alone: its interval does not hold 1.
    """

    mean_score: float
    """Mean of the scores."""
    fraud_share: float
    """Share of the payments that were fraud."""
    ratio: float
    """The mean score by the share of frauds; null without a fraud."""
    ratio_low: float
    """Lower end of the ratio's 95 % interval."""
    ratio_high: float
    """Upper end of it; null where no share of frauds above 0 is sure."""
    is_far_off: bool
    """Whether the ratio is below 0.8 or above 1.25, and its interval does not hold 1."""


def mean_calibration(fraud: BoolArray, score: FloatArray, card: npt.NDArray[np.integer]) -> MeanCalibration:
    """All arrays have shape (row_count,), at least one row; `card` holds codes from 0."""
    mean, share, size = float(score.mean()), float(fraud.mean()), len(score)
    # The design effect: how much more the sum of errors varies than if each payment erred by itself.
    error = fraud - score
    # In one order whatever numbers the cards have: the last bit of a sum depends on it.
    by_card = np.sort(np.bincount(card, weights=error))
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
    """Payments by score and label: element i is of SCORE_EDGES[i] to SCORE_EDGES[i + 1]."""

    genuine: list[int]
    """Genuine payments by score: element i lies between edges i and i + 1 of SCORE_EDGES in
    models/metrics/curves.py."""
    fraud: list[int]
    """Frauds by score, likewise."""


def score_histogram(fraud: BoolArray, score: FloatArray) -> ScoreHistogram:
    """Both arrays have shape (row_count,)."""
    place, size = _bins(score), len(SCORE_EDGES) - 1
    return ScoreHistogram(
        genuine=np.bincount(place[~fraud], minlength=size).tolist(),
        fraud=np.bincount(place[fraud], minlength=size).tolist(),
    )


def _bins(score: FloatArray) -> IntArray:
    """The bin of each score; the last one holds 1 as well."""
    return np.searchsorted(SCORE_EDGES[1:-1], score, side="right").astype(np.int64)


def wilson_interval(share: float, size: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `size`."""
    spread = _Z_95 * sqrt(share * (1 - share) / size + (_Z_95 / (2 * size)) ** 2)
    middle, scale = share + _Z_95**2 / (2 * size), 1 + _Z_95**2 / size
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _shares(parts: IntArray, whole: int) -> list[float]:
    return [_share(part, whole) for part in parts.tolist()]


def _whole(amounts: FloatArray) -> list[int]:
    return [int(amount) for amount in np.rint(amounts).tolist()]
