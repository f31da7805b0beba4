"""Find features that leave their training range: their values on later days are unlike those of earlier days.

How it works:

1. The window's days are cut in two: the first two thirds and the rest.
2. The usual range of a feature is that of its earlier values without the lowest and the highest 0.1 %.
3. A feature drifts if more than 5 % of its later values lie outside, or if it is missing more often, or more rarely, by
   20 points.

Trees treat a value beyond the largest one that they saw as that largest one. A feature that grows with the age of the
data (a clock) is then beyond the values of training on every later day, and the scores are off as probabilities.

Example: cards begin with the data, and the window is its first 30 days. `card_seconds_since_first` is at most 20 days
in the first two thirds. On the last 10 days, 62 % of its values are above 20 days: it drifts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTSIDE_MAX = 0.05
"""The largest share of later values outside the usual range. By chance it is 0.002."""
MISSING_MAX = 0.2
"""The largest change of the share of missing values."""
CLOCK_MIN = 0.25
"""A feature with at least this share of later values above its usual range is a clock: it grows with the data."""
ROWS_MIN = 200
"""With fewer rows in a part, chance decides which values lie outside."""

_EARLIER_PART = 2 / 3
_LOWEST = 0.001
# Quantiles of more rows than this hardly differ, but take long.
_ROWS_MAX = 200_000


@dataclass(frozen=True)
class DriftingFeature:
    """A feature that left its range. Shares are of rows; `low` and `high` are the ends of the usual range.

    `outside` is a share of the later values that are not missing, `above` the part of it above `high`. `low` and `high`
    are None for a feature that earlier days did not have at all, and for categories.
    """

    name: str
    outside: float
    above: float
    low: float | None
    high: float | None
    missing_earlier: float
    missing_later: float

    def in_words(self) -> str:
        """Returns a line for people."""
        if self.outside > OUTSIDE_MAX and self.low is not None and self.high is not None:
            return f"{self.name}: {self.outside:.0%} of the later values are outside {self.low:g} to {self.high:g}"
        if self.outside > OUTSIDE_MAX:
            return f"{self.name}: {self.outside:.0%} of the later values are new"
        return f"{self.name}: missing in {self.missing_earlier:.0%} of the earlier rows, {self.missing_later:.0%} later"

    def record(self) -> dict[str, Any]:
        """Returns it as a manifest stores it."""
        return asdict(self)


def drifting_features(
    vectors: NDArray[np.float32],
    day: NDArray[np.int64],
    feature_names: Sequence[str],
    categorical: Collection[str] = (),
    among: NDArray[np.bool_] | None = None,
) -> list[DriftingFeature]:
    """Returns the features that drift, the one with the most values outside first.

    `vectors`: (rows, features). `day`: (rows,). Categories drift where their later values are new. Empty if a part has
    fewer than ROWS_MIN rows. `among`: the rows that are looked at, (rows,); None for all.
    """
    days = np.unique(day)
    first_later = days[min(int(len(days) * _EARLIER_PART), len(days) - 1)]
    looked_at = np.ones(len(day), dtype=np.bool_) if among is None else among
    earlier, later = (_thinned(np.flatnonzero(part & looked_at)) for part in (day < first_later, day >= first_later))
    if min(len(earlier), len(later)) < ROWS_MIN:
        return []
    found = []
    for place, name in enumerate(feature_names):
        feature = _compared(name, vectors[earlier, place], vectors[later, place], is_category=name in categorical)
        if feature.outside > OUTSIDE_MAX or abs(feature.missing_later - feature.missing_earlier) > MISSING_MAX:
            found.append(feature)
    return sorted(found, key=lambda feature: -feature.outside)


def clocks(drifting: Sequence[DriftingFeature]) -> list[str]:
    """Returns the names of the features that grow with the age of the data."""
    return [feature.name for feature in drifting if feature.above >= CLOCK_MIN]


def _compared(
    name: str, earlier: NDArray[np.float32], later: NDArray[np.float32], *, is_category: bool
) -> DriftingFeature:
    missing = [float(np.isnan(values).mean()) for values in (earlier, later)]
    earlier, later = earlier[~np.isnan(earlier)], later[~np.isnan(later)]
    low = high = None
    above = 0.0
    if not len(later):
        outside = 0.0
    elif not len(earlier):
        outside = 1.0
    elif is_category:
        outside = 1.0 - float(np.isin(later, np.unique(earlier)).mean())
    else:
        # Values that were there, not interpolated ones: a feature of few values has nothing in between.
        low = float(np.quantile(earlier, _LOWEST, method="lower"))
        high = float(np.quantile(earlier, 1.0 - _LOWEST, method="higher"))
        above = float((later > high).mean())
        outside = above + float((later < low).mean())
    return DriftingFeature(name, outside, above, low, high, *missing)


def _thinned(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns every n-th row, so that at most _ROWS_MAX remain."""
    return rows[:: max(1, -(-len(rows) // _ROWS_MAX))]
