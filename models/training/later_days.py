"""Promise how far scores will be off as probabilities in the month to come, from days that lay ahead of their model.

How it works:

1. The window's last days are cut into ORIGINS *blocks*, each an eighth of the window. For each block, a model of all
   earlier days scores it, as the bundle will score days to come. Slope and intercept are the bundle's: Platt scaling of
   out-of-fold margins (models/training/calibration.py). They know nothing of how fraud changes, because each part of
   the window is scored by a model of the others.
2. The error of a block is the logarithm of its mean score divided by its share of frauds. Frauds come in series, so its
   variance by chance is that of whole days.
3. The promise is the mean error, and an interval of Student's t with ORIGINS - 1 degrees of freedom. The part of the
   variance between blocks that chance does not explain grows with the days ahead, as that of a random walk: a month
   of 30 days has 30 / (days of a block) times as much.
4. A block far off by more than SHIFT_ERRORS standard errors whose payments are ordered as well as those of other blocks
   is a *prior shift*: fraud became more, or less, frequent at every score.
5. With `follow_newest_days`, the intercept is moved so that the newest block has the right mean, as far as chance does
   not explain the distance: by the factor max(0, 1 - variance / distance²), after W. James and C. Stein, "Estimation
   with quadratic loss" (1961). The promise is then that of blocks whose scores followed the block before.

A model of earlier days has seen fewer days than the bundle's. Where the window begins with the data, its features were
still filling, and it is further off than the bundle's will be. Following is therefore not the default.

Example: the blocks have 11 days, and ratios of 0.95, 1.02, 0.90, 1.10 and 1.04, each with 0.1 by chance. All of the
variance may be chance: the promise is 1.00, and the interval 0.75 to 1.34. With ratios of 0.7 to 1.5 it is far wider.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import exp, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.metrics.auc_variance import auc_variance
from paywarden.models.metrics.curves import MeanCalibration, mean_calibration
from paywarden.models.metrics.evaluation import auc_roc, date_of_day
from paywarden.models.metrics.intervals import FRAUDS_FEW, Z_95, auc_interval
from paywarden.models.training.calibration import ReliabilityBin, Weight, fit_calibration, reliability

ORIGINS = 5
"""How many blocks are scored by models of earlier days."""
SHIFT_ERRORS = 3.0
"""A block that is further off is not so by chance: with five blocks, one window in 75 would be."""

MONTH_DAYS = 30
_BLOCK_PART = 8
# A block with fewer frauds has no share to speak of.
_FRAUDS_MIN = 3
# The quantiles of Student's t that leave 2.5 % on each side, by degrees of freedom.
_T_95 = {ORIGINS - 2: 3.182, ORIGINS - 1: 2.776}
# The intercept is found to this many of log-odds; it is never moved further than _SHIFT_MAX.
_TOLERANCE = 1e-12
_SHIFT_MAX = 5.0


@dataclass(frozen=True)
class PriorShift:
    """From `first_day` on, fraud is `times` as frequent as the scores say; they order payments as well as before."""

    first_day: str
    times: float
    auc_roc: float

    def in_words(self) -> str:
        """Returns a line for people."""
        return (
            f"prior shift: from {self.first_day} on, frauds were {self.times:.2f} times as frequent as scores said, "
            f"and scores ordered payments as on other days (AUC ROC {self.auc_roc:.4f}); scores are off by this factor "
            "where it lasts (training.follow_newest_days corrects it)"
        )


@dataclass(frozen=True)
class LaterDays:
    """How far scores are off on days that lie ahead of their model. Days are dates, both ends included.

    `ratio` is the promise for the month to come: mean score divided by the share of frauds. `low` to `high` is its 95 %
    interval. `origins`: the ratio of each block. The measures before them are of all blocks.
    """

    first_day: str
    last_day: str
    payments: int
    frauds: int
    mean_score: float
    fraud_share: float
    ratio: float
    low: float
    high: float
    origins: tuple[float, ...] = ()

    def in_words(self) -> str:
        """Returns a line for people."""
        blocks = ", ".join(f"{ratio:.2f}" for ratio in self.origins)
        return (
            f"on days left out, {self.first_day} to {self.last_day}: mean score / share of frauds {blocks} "
            f"({self.frauds} frauds in {self.payments} payments); in the month to come {self.ratio:.2f} "
            f"(95 % interval {self.low:.2f} to {self.high:.2f})"
        )


@dataclass(frozen=True)
class Calibration:
    """Slope and intercept of the log-odds. `shift`: the amount that the newest days added to the intercept.

    `later` is None, with the reason in `left_out`, where a block has too few frauds. `bins` is the reliability table of
    all blocks.
    """

    slope: float
    intercept: float
    shift: float = 0.0
    later: LaterDays | None = None
    left_out: str = ""
    bins: tuple[ReliabilityBin, ...] = ()
    prior_shift: PriorShift | None = None

    def record(self) -> dict[str, Any]:
        """Returns the part `later` of a manifest's evidence."""
        later = None if self.later is None else asdict(self.later)
        return {
            "intercept_shift": self.shift,
            "days_left_out": later,
            "not_measured": self.left_out,
            "reliability": [asdict(one) for one in self.bins],
            "prior_shift": None if self.prior_shift is None else asdict(self.prior_shift),
        }


def blocks_ahead(day: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the number of each row's block, (rows,), from 0; -1 for earlier rows, and with too few days.

    `day`: (rows,), ascending.
    """
    first, last = int(day.min()), int(day.max())
    length = (last - first + 1) // _BLOCK_PART
    if not length:
        return np.full(len(day), -1, dtype=np.int64)
    return np.asarray(np.maximum(ORIGINS - 1 - (last - day) // length, -1), dtype=np.int64)


def calibrate(
    margins: NDArray[np.float64],
    label: NDArray[np.int64],
    day: NDArray[np.int64],
    ahead: NDArray[np.float64],
    *,
    follow: bool = False,
    weight: Weight = None,
) -> Calibration:
    """Returns the calibration of out-of-fold margins. All arrays: (rows,).

    `ahead`: for the rows of `blocks_ahead`, margins of a model of the days before the block. `follow`: move the
    calibration to the newest block. Raises Misconfigured as `fit_calibration` does.
    """
    slope, intercept = fit_calibration(margins, label, weight)
    plain = Calibration(slope, intercept)
    block = blocks_ahead(day)
    frauds = [int(label[block == number].sum()) for number in range(ORIGINS)]
    if min(frauds) < _FRAUDS_MIN or sum(frauds) < FRAUDS_FEW or np.isnan(ahead[block >= 0]).any():
        return replace(
            plain,
            left_out=f"the {ORIGINS} newest blocks of days have {', '.join(map(str, frauds))} frauds, and at least "
            f"{_FRAUDS_MIN} each and {FRAUDS_FEW} in all are needed, and some before them",
        )
    score = calibrated(ahead, slope, intercept)
    blocks = [_Rows(ahead, label, day, score, weight).of(block == number) for number in range(ORIGINS)]
    means = [rows.mean() for rows in blocks]
    errors = np.array([log(one.ratio) for one in means])
    chance = np.array([rows.chance(one.ratio) for rows, one in zip(blocks, means, strict=True)])
    shift = 0.0
    if follow:
        taken = np.maximum(0.0, 1.0 - chance / np.maximum(np.square(errors), _TOLERANCE))
        shift = float(taken[-1]) * _whole_shift(plain, blocks[-1], means[-1].fraud_share)
        followed = errors[1:] - taken[:-1] * errors[:-1]
        low, ratio, high = _promise(followed, chance[1:], _days_of(blocks[-1]))
    else:
        low, ratio, high = _promise(errors, chance, _days_of(blocks[-1]))
    looked_at = _Rows(ahead, label, day, score, weight).of(block >= 0)
    mean = looked_at.mean()
    later = LaterDays(
        first_day=date_of_day(int(looked_at.day.min())),
        last_day=date_of_day(int(looked_at.day.max())),
        payments=len(looked_at.label),
        frauds=int(looked_at.label.sum()),
        mean_score=mean.mean_score,
        fraud_share=mean.fraud_share,
        ratio=ratio,
        low=low,
        high=high,
        origins=tuple(one.ratio for one in means),
    )
    return Calibration(
        slope,
        intercept + shift,
        shift,
        later,
        bins=reliability(looked_at.label, looked_at.score, looked_at.weight).bins,
        prior_shift=_prior_shift(blocks, errors, chance),
    )


@dataclass(frozen=True)
class _Rows:
    """Some rows as columns, (rows,)."""

    margins: NDArray[np.float64]
    label: NDArray[np.int64]
    day: NDArray[np.int64]
    score: NDArray[np.float64]
    weight: Weight

    def of(self, part: NDArray[np.bool_]) -> _Rows:
        weight = None if self.weight is None else self.weight[part]
        return _Rows(self.margins[part], self.label[part], self.day[part], self.score[part], weight)

    def mean(self) -> MeanCalibration:
        """Returns mean score and share of frauds. Frauds of one day count as coming together."""
        return mean_calibration(self.label == 1, self.score, self.day - self.day.min(), self.weight)

    def chance(self, ratio: float) -> float:
        """Returns the variance by chance of the logarithm of the ratio. `ratio`: the rows' own."""
        # Without their common error, which is no chance.
        centred = mean_calibration(self.label == 1, self.score / ratio, self.day - self.day.min(), self.weight)
        return float((log(centred.ratio_high / centred.ratio_low) / (2 * Z_95)) ** 2)

    def area(self) -> float:
        """Returns the area under the ROC curve."""
        return auc_roc(self.label, self.score, self.weight)


def _days_of(rows: _Rows) -> int:
    return int(rows.day.max() - rows.day.min()) + 1


def _promise(errors: NDArray[np.float64], chance: NDArray[np.float64], block_days: int) -> tuple[float, float, float]:
    """Returns the interval's lower end, the ratio to expect, and the upper end. `chance`: variances of the errors."""
    middle, by_chance = float(errors.mean()), float(chance.mean())
    between = max(0.0, float(errors.var(ddof=1)) - by_chance)
    variance = between * max(1.0, MONTH_DAYS / block_days) + by_chance + (between + by_chance) / len(errors)
    spread = _T_95[len(errors) - 1] * sqrt(variance)
    return exp(middle - spread), exp(middle), exp(middle + spread)


def _prior_shift(blocks: list[_Rows], errors: NDArray[np.float64], chance: NDArray[np.float64]) -> PriorShift | None:
    """Returns the first block that is far off while its payments are in order; None without such a block."""
    for number, rows in enumerate(blocks):
        if abs(errors[number]) <= SHIFT_ERRORS * sqrt(chance[number]) or rows.label.all():
            continue
        area, others = rows.area(), [one.area() for place, one in enumerate(blocks) if place != number]
        fraud = rows.label == 1
        sizes = float(fraud.sum()), float((~fraud).sum())
        weight = np.ones(len(fraud)) if rows.weight is None else rows.weight
        _, high = auc_interval(area, *sizes, auc_variance(fraud, rows.score, weight))
        if high >= float(np.median(others)):
            return PriorShift(date_of_day(int(rows.day.min())), exp(-float(errors[number])), area)
    return None


def _whole_shift(calibration: Calibration, rows: _Rows, share: float) -> float:
    """Returns the shift of the intercept that makes the mean score `share`, by bisection: the mean grows with it."""
    low, high = -_SHIFT_MAX, _SHIFT_MAX
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        score = calibrated(rows.margins, calibration.slope, calibration.intercept + middle)
        mean = float(score.mean() if rows.weight is None else np.average(score, weights=rows.weight))
        low, high = (middle, high) if mean < share else (low, middle)
    return (low + high) / 2
