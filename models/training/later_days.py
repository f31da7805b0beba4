"""Say how far scores are off as probabilities on later days, and follow the newest days if the settings say so.

How it works:

1. Each row's margin is out of fold. The last block of days, the *newest days*, has margins of a model that was trained
   on earlier days alone: they are like those of days to come.
2. Platt scaling over all rows gives slope and intercept (models/training/calibration.py). If a feature grows with the
   age of the data or fraud itself changes, the mean score of the newest days is not their share of frauds. How far it
   is off is measured with a scaling of the other rows: `LaterDays`.
3. With `follow_newest_days`, the intercept is moved so that the newest days have the right mean, as far as chance does
   not explain the distance: by the factor max(0, 1 - variance / distance²), after W. James and C. Stein, "Estimation
   with quadratic loss" (1961). Frauds come in series, so the variance is that of whole days. The same is done with the
   first half of the newest days, and measured on the second half, on which nothing was fitted.

The model of earlier days has seen fewer days than the bundle's. Where the window begins with the data, its features
were still filling, and it is further off than the bundle's will be. Following is therefore not the default.

Example: the newest days have a mean score of 0.0060 and 0.0075 frauds a payment, a ratio of 0.80 with the interval 0.70
to 0.92. The distance is log 0.80 = -0.223, its standard deviation 0.070: 90 % of it is taken, and the ratio becomes
0.98. With the interval 0.60 to 1.07, chance explains nearly half of the distance, and 57 % of it is taken.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isfinite, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.metrics.curves import MeanCalibration, mean_calibration
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.models.metrics.intervals import FRAUDS_FEW, Z_95
from paywarden.models.training.calibration import ReliabilityBin, Weight, fit_calibration, reliability
from paywarden.schemas.errors import Misconfigured

# The intercept is found to this many of log-odds; it is never moved further than _SHIFT_MAX.
_TOLERANCE = 1e-12
_SHIFT_MAX = 5.0


@dataclass(frozen=True)
class LaterDays:
    """How far scores were off on days on which nothing was fitted. Days are dates, both ends included.

    `ratio` is the mean score divided by the share of frauds, `low` to `high` its 95 % interval.
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

    def in_words(self) -> str:
        """Returns a line for people."""
        return (
            f"on days left out, {self.first_day} to {self.last_day}: mean score / share of frauds {self.ratio:.2f} "
            f"(95 % interval {self.low:.2f} to {self.high:.2f}, {self.frauds} frauds in {self.payments} payments)"
        )


@dataclass(frozen=True)
class Calibration:
    """Slope and intercept of the log-odds. `shift`: the amount that the newest days added to the intercept.

    `later` is None, with the reason in `left_out`, where the newest days have too few frauds. `bins` is the reliability
    table of the same days.
    """

    slope: float
    intercept: float
    shift: float = 0.0
    later: LaterDays | None = None
    left_out: str = ""
    bins: tuple[ReliabilityBin, ...] = ()

    def record(self) -> dict[str, Any]:
        """Returns the part `later` of a manifest's evidence."""
        later = None if self.later is None else asdict(self.later)
        return {
            "intercept_shift": self.shift,
            "days_left_out": later,
            "not_measured": self.left_out,
            "reliability": [asdict(one) for one in self.bins],
        }


def calibrate(
    margins: NDArray[np.float64],
    label: NDArray[np.int64],
    day: NDArray[np.int64],
    newest: NDArray[np.bool_],
    *,
    follow: bool = False,
    weight: Weight = None,
) -> Calibration:
    """Returns the calibration of out-of-fold margins. All arrays: (rows,). `newest`: the rows of the newest days.

    `follow`: move it to the newest days. Raises Misconfigured as `fit_calibration` does.
    """
    slope, intercept = fit_calibration(margins, label, weight)
    plain = Calibration(slope, intercept)
    rows = _Rows(margins, label, day, weight)
    if not follow:
        return _measured(plain, rows, newest)
    days = np.unique(day[newest])
    middle = days[len(days) // 2] if len(days) else 0
    halves = newest & (day < middle), newest & (day >= middle)
    frauds = [int(label[half].sum()) for half in halves]
    if min(frauds) < FRAUDS_FEW:
        reason = f"the newest days have {frauds[0]} and {frauds[1]} frauds in their halves, and {FRAUDS_FEW} are needed"
        return replace(plain, left_out=reason)
    first, second = halves
    try:
        others = rows.of(~second).calibration()
    except Misconfigured as refusal:
        return replace(plain, left_out=str(refusal))
    tried = _moved(others, rows.of(first))
    moved = _moved(plain, rows.of(newest))
    return _with_later_days(moved, tried, rows.of(second))


@dataclass(frozen=True)
class _Rows:
    """Some rows as columns, (rows,)."""

    margins: NDArray[np.float64]
    label: NDArray[np.int64]
    day: NDArray[np.int64]
    weight: Weight

    def of(self, part: NDArray[np.bool_]) -> _Rows:
        weight = None if self.weight is None else self.weight[part]
        return _Rows(self.margins[part], self.label[part], self.day[part], weight)

    def calibration(self) -> Calibration:
        """Returns the scaling of these rows. Raises Misconfigured as `fit_calibration` does."""
        return Calibration(*fit_calibration(self.margins, self.label, self.weight))

    def mean(self, score: NDArray[np.float64]) -> MeanCalibration:
        """Returns mean score and share of frauds. Frauds of one day count as coming together."""
        return mean_calibration(self.label == 1, score, self.day - self.day.min(), self.weight)


def _measured(plain: Calibration, rows: _Rows, newest: NDArray[np.bool_]) -> Calibration:
    """Returns the calibration with the measures, on the newest days, of a scaling of the other rows."""
    frauds = [int(rows.label[part].sum()) for part in (~newest, newest)]
    if min(frauds) < FRAUDS_FEW:
        reason = f"there are {frauds[0]} frauds, and {frauds[1]} on the newest days, and {FRAUDS_FEW} each are needed"
        return replace(plain, left_out=reason)
    try:
        others = rows.of(~newest).calibration()
    except Misconfigured as reason:
        return replace(plain, left_out=str(reason))
    return _with_later_days(plain, others, rows.of(newest))


def _moved(calibration: Calibration, rows: _Rows) -> Calibration:
    """Returns the calibration with its intercept moved as far as chance does not explain."""
    mean = rows.mean(calibrated(rows.margins, calibration.slope, calibration.intercept))
    distance = log(mean.ratio)
    if not isfinite(mean.ratio_high) or distance == 0.0:
        return calibration
    deviation = log(mean.ratio_high / mean.ratio_low) / (2 * Z_95)
    taken = max(0.0, 1.0 - (deviation / distance) ** 2)
    shift = taken * _whole_shift(calibration, rows, mean.fraud_share)
    return replace(calibration, intercept=calibration.intercept + shift, shift=shift)


def _whole_shift(calibration: Calibration, rows: _Rows, share: float) -> float:
    """Returns the shift of the intercept that makes the mean score `share`, by bisection: the mean grows with it."""
    low, high = -_SHIFT_MAX, _SHIFT_MAX
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        score = calibrated(rows.margins, calibration.slope, calibration.intercept + middle)
        mean = float(score.mean() if rows.weight is None else np.average(score, weights=rows.weight))
        low, high = (middle, high) if mean < share else (low, middle)
    return (low + high) / 2


def _with_later_days(calibration: Calibration, tried: Calibration, rows: _Rows) -> Calibration:
    """Returns `calibration` with the measures of the scores of `tried`, which has not seen these days."""
    score = calibrated(rows.margins, tried.slope, tried.intercept)
    mean = rows.mean(score)
    later = LaterDays(
        first_day=date_of_day(int(rows.day.min())),
        last_day=date_of_day(int(rows.day.max())),
        payments=len(rows.label),
        frauds=int(rows.label.sum()),
        mean_score=mean.mean_score,
        fraud_share=mean.fraud_share,
        ratio=mean.ratio,
        low=mean.ratio_low,
        high=mean.ratio_high,
    )
    return replace(calibration, later=later, bins=reliability(rows.label, score, rows.weight).bins)
