"""Promise how often fraud will come in the days after training, as a multiple of the mean score.

             first half          second half        delay
    ├───────────────────────┼───────────────────────┤    ├──────────────┤        ├──────────┤
      a small model grows     Platt scaling            a window: frauds            promised
                                                       / sum of scores

How it works:

1. Up to ORIGINS windows of the same length end the training days, one after the other. The *origin* is a window's first
   day. A small model and its calibration know what training would have known on that morning: payments until the label
   delay before it, and the labels that had come by then.
2. The window's *ratio* is its number of frauds divided by its sum of scores. Its logarithm is 0 if scores were right.
3. The promise is Student's prediction interval for one more window: mean ± t √(s² (1 + 1 / windows)). The variance s²
   is that of the logarithms, but at least that of counting frauds, the mean of 1 / frauds.
4. If the newest window is outside the interval of the windows before it, and the fraud rate moved to the same side,
   this is named as a *prior shift*. The bundle, calibrated on all days, is off like the newest window: the promise is
   then extended by the interval around that window, with the spread of those before it.

A window has an eighth of the training days, at most WINDOW_DAYS_MAX. With a sixth, and twice a window's length to train
on, three origins have a past; with an eighth, five. For one number of frauds in all, the interval of three sixths is
1.4 times as wide in logarithms.

How wide it is: five windows with 20 frauds each promise a factor of 3.9 between the ends at best, 77 frauds a factor of
2, and three windows with 205 a factor of 2. No clock is asked: rows and trees have limits.

Example: five windows of 30 days have ratios of 0.95, 1.02, 0.90, 1.10 and 1.04. Their logarithms have the mean 0.00 and
the standard deviation 0.08; 120 frauds a window alone give 0.09. The promise, exp(± 2.78 x 0.09 x 1.10), is 0.76 to
1.32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.metrics.evaluation import DAY_MS, Days, date_of_day
from paywarden.models.metrics.intervals import FRAUDS_FEW, Interval
from paywarden.models.training.boosting import COARSE_BINS, OnTree, binned, grow
from paywarden.models.training.calibration import fit_calibration
from paywarden.models.training.changes import thinned_rows
from paywarden.models.training.progress import TrainingProgress, no_progress
from paywarden.models.training.table import TrainingTable
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured

ORIGINS, ORIGINS_MIN = 5, 3
WINDOW_DAYS_MAX = 30
_WINDOW_PART = 8
# A past of fewer windows has too few frauds for a model and its calibration.
_PAST_WINDOWS_MIN = 2
# The small model. More rows of a part of the past are thinned.
_TREES, _LEARNING_RATE = 50, 0.1
_ROWS_MAX = 100_000
# The quantile of Student's t that leaves 2.5 % on each side, by degrees of freedom.
_T_95 = {2: 4.302653, 3: 3.182446, 4: 2.776445}


@dataclass(frozen=True)
class PastWindow:
    """A window whose payments were scored as if it were still to come. Days are dates, both ends included."""

    first_day: str
    last_day: str
    payments: int
    frauds: int
    fraud_share: float
    mean_score: float

    @property
    def log_ratio(self) -> float:
        """The logarithm of share of frauds / mean score."""
        return log(self.fraud_share / self.mean_score)


@dataclass(frozen=True)
class Promise:
    """From `first_day` to `last_day` the fraud rate will be `low` to `high` times the mean score, in 95 of 100 cases.

    Both are None, with the reason in `not_promised`, if the past says too little. `windows` are in order of time.
    """

    first_day: str
    last_day: str
    low: float | None = None
    high: float | None = None
    windows: tuple[PastWindow, ...] = ()
    not_promised: str = ""

    @property
    def shift(self) -> tuple[float, float] | None:
        """The fraud rate before the newest window and in it, if fraud came to be more, or less, frequent by itself."""
        *earlier, newest = self.windows or (None,)
        if newest is None or len(earlier) < ORIGINS_MIN:
            return None
        low, high = _interval(earlier)
        before = float(np.mean([one.fraud_share for one in earlier]))
        ratio, now = exp(newest.log_ratio), newest.fraud_share
        return (before, now) if (ratio < low and now < before) or (ratio > high and now > before) else None

    def in_words(self) -> list[str]:
        """Returns lines for people."""
        days = f"from {self.first_day} to {self.last_day}"
        if self.low is None or self.high is None:
            return [f"nothing is promised {days}: {self.not_promised}"]
        frauds = [one.frauds for one in self.windows]
        lines = [
            f"{days} the fraud rate will be {self.low:.2f} to {self.high:.2f} times the mean score (95 % interval, of "
            f"{len(frauds)} earlier windows with {min(frauds)} to {max(frauds)} frauds)"
        ]
        if self.shift:
            (before, now), newest = self.shift, self.windows[-1]
            lines.append(
                f"prior shift: the fraud rate {'fell' if now < before else 'rose'} from {before:.3%} to {now:.3%} from "
                f"{newest.first_day} to {newest.last_day}, and the scores of earlier models did not"
            )
        return lines

    def record(self) -> dict[str, Any]:
        """Returns it as a manifest stores it."""
        # A list, as JSON gives it back.
        return asdict(self) | {"windows": [asdict(one) for one in self.windows]}


def promise_of(record: Mapping[str, Any]) -> Promise:
    """Returns the promise that a manifest stores."""
    return Promise(**{**record, "windows": tuple(PastWindow(**one) for one in record["windows"])})


def make_promise(
    table: TrainingTable,
    window: Days,
    settings: TrainingSettings,
    feature_names: Sequence[str],
    *,
    progress: TrainingProgress = no_progress,
) -> Promise:
    """Returns the promise of a model that is trained on a table. `settings`: those that were chosen."""
    newest, delay = _newest_mature(table, window, settings), settings.label_delay_days
    length = min(WINDOW_DAYS_MAX, max(1, (newest - window.first + 1) // _WINDOW_PART))
    first = newest + 1 + delay
    nothing = Promise(date_of_day(first), date_of_day(first + length - 1))
    origins = [
        _Origin.of(table, window, newest + 1 - number * length, length, delay) for number in range(ORIGINS, 0, -1)
    ]
    usable = [one for one in origins if one is not None]
    if len(usable) < ORIGINS_MIN:
        reason = (
            f"{len(usable)} windows of {length} days have a past of {_PAST_WINDOWS_MIN * length} days with "
            f"{2 * FRAUDS_FEW} known frauds, and {ORIGINS_MIN} are needed"
        )
        return replace(nothing, not_promised=reason)
    fewest = min(int(table.label[one.window].sum()) for one in usable)
    if fewest < FRAUDS_FEW:
        reason = f"of {len(usable)} windows of {length} days one has {fewest} frauds, and {FRAUDS_FEW} are needed"
        return replace(nothing, not_promised=reason)
    small = replace(settings, trees=_TREES, learning_rate=_LEARNING_RATE, max_bin=COARSE_BINS)
    try:
        with progress("scoring earlier windows", len(usable) * _TREES) as advance:
            windows = tuple(_scored(table, one, small, feature_names, advance) for one in usable)
    except Misconfigured as reason:
        return replace(nothing, not_promised=str(reason))
    intervals = [_interval(windows)]
    made = replace(nothing, windows=windows)
    if made.shift:
        intervals.append(_after_shift(windows))
    return replace(made, low=min(low for low, _ in intervals), high=max(high for _, high in intervals))


@dataclass(frozen=True)
class _Origin:
    """A window's rows, the rows of both halves of its past, and all labels as known at its origin."""

    window: NDArray[np.bool_]
    halves: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    known: NDArray[np.int64]

    @classmethod
    def of(cls, table: TrainingTable, window: Days, origin: int, length: int, delay: int) -> _Origin | None:
        """Returns the rows of the window that begins on a day; None if its past is too short or has too few frauds."""
        days = origin - delay - window.first
        if days < _PAST_WINDOWS_MIN * length:
            return None
        middle = window.first + days // 2
        first, second = Days(window.first, middle - 1), Days(middle, origin - delay - 1)
        halves = first.contains(table.day), second.contains(table.day)
        known = table.label_known_by(origin * DAY_MS)
        if min(int(known[half].sum()) for half in halves) < FRAUDS_FEW:
            return None
        return cls(Days(origin, origin + length - 1).contains(table.day), halves, known)


def _newest_mature(table: TrainingTable, window: Days, settings: TrainingSettings) -> int:
    """Returns the last day of the window whose labels can have come."""
    if table.outcomes is None or not len(table.outcomes.time_ms):
        return window.last
    return min(window.last, int(table.outcomes.time_ms.max()) // DAY_MS - settings.label_delay_days)


def _scored(
    table: TrainingTable, origin: _Origin, settings: TrainingSettings, names: Sequence[str], on_tree: OnTree
) -> PastWindow:
    """Grow and calibrate the small model of an origin, and score its window. Raises Misconfigured as they do."""

    def thinned(part: NDArray[np.bool_], label: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64], Any]:
        rows, weight = thinned_rows(label[part], table.weight_of(part), _ROWS_MAX)
        return table.vectors_of(part)[rows], label[part][rows], weight

    grown, scaled = origin.halves
    vectors, label, weight = thinned(grown, origin.known)
    model = grow(binned(vectors, label, settings, names, weight), settings, names, on_tree=on_tree)
    vectors, label, weight = thinned(scaled, origin.known)
    slope, intercept = fit_calibration(model.predict(vectors, raw_score=True), label, weight)
    vectors, _, weight = thinned(origin.window, table.label)
    score = calibrated(model.predict(vectors, raw_score=True), slope, intercept)
    day, truth = table.day[origin.window], table.label[origin.window]
    return PastWindow(
        first_day=date_of_day(int(day.min())),
        last_day=date_of_day(int(day.max())),
        payments=len(truth),
        frauds=int(truth.sum()),
        fraud_share=float(np.average(truth, weights=table.weight_of(origin.window))),
        mean_score=float(np.average(score, weights=weight)),
    )


def _interval(windows: Sequence[PastWindow]) -> Interval:
    """Returns Student's prediction interval for the ratio of one more window."""
    middle, spread = float(np.mean([one.log_ratio for one in windows])), _spread(windows, 1.0 / len(windows))
    return exp(middle - spread), exp(middle + spread)


def _after_shift(windows: Sequence[PastWindow]) -> Interval:
    """Returns the interval around the newest window alone, with the spread of the windows before it."""
    *earlier, newest = windows
    spread = _spread(earlier, 1.0)
    return exp(newest.log_ratio - spread), exp(newest.log_ratio + spread)


def _spread(windows: Sequence[PastWindow], of_middle: float) -> float:
    """Returns half the interval of one more logarithm. `of_middle`: the variance of its middle, in variances."""
    by_chance = float(np.mean([1.0 / one.frauds for one in windows]))
    variance = max(float(np.var([one.log_ratio for one in windows], ddof=1)), by_chance)
    return _T_95[len(windows) - 1] * sqrt(variance * (1.0 + of_middle))
