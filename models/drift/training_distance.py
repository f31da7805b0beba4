"""Measure how far whole distributions lie from the training window: of the score, of features, of the traffic's mix.

The detectors (models/drift/detectors.py) say how certain a change is, against expectations that follow slow changes of
features and traffic. This module measures how far the decisions of some days lie from the training data, however slowly
they moved away.

    subject          histogram                         distance
    score            payments by score bin             psi      population stability index
    feature:NAME     payments by bin, and missing      js       Jensen-Shannon, in bits
    traffic, channel payments by value, none, other    outside  share of payments that have moved

How it works:

1. `Subjects` takes from counts one histogram a subject, over all payments, and joins them to one row of cells.
2. Rows of days can be added: a week's row is compared with the row of the whole training window.
3. The training window's own weeks lie at some distance from it, too, by chance and because weeks differ. `natural` is
   the largest of these distances. Only a distance beyond it counts.

Example: the window has 74 % of the payments from the web and 26 % from an app. Its weeks lie at a PSI of 0.01 at most.
Two months later 28 % are from the web.

    psi      (0.74 - 0.28) ln(0.74 / 0.28) + (0.26 - 0.72) ln(0.26 / 0.72) = 0.92, and 0.91 beyond the natural
    outside  (0.46 + 0.46) / 2 = 0.46: nearly half of the payments are not where they were

Bins of numbers have an order, and a payment in the next bin has hardly moved: a shop with a seventh of all payments
has a few more of them in a week, and its count lies on the other side of an edge. `outside` of scores and features is
therefore the share of payments that passed one value, the Kolmogorov-Smirnov distance; where all numbers shift, both
are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.baseline import TimedCounts
from paywarden.models.drift.binning import DIMENSIONS, FEATURE_BINS, Binning
from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS
from paywarden.models.drift.signals import FEATURE_PREFIX, TRAFFIC
from paywarden.models.metrics.distances import jensen_shannon, kolmogorov_smirnov, psi

WINDOW_DAYS = 7
"""Whole weeks are compared, because days of the week differ."""

F64 = NDArray[np.float64]
CountArray = NDArray[np.int64]


@dataclass(frozen=True)
class Subject:
    """The subject of a histogram. `name`: score, feature:NAME or traffic; `dimension`: of traffic, else empty."""

    name: str
    dimension: str = ""


@dataclass(frozen=True)
class Distances:
    """Distances of each subject, float64 (subjects,): see the head of this module. `count`: payments, int64."""

    psi: F64
    js: F64
    outside: F64
    count: CountArray


@dataclass(frozen=True)
class Natural:
    """How far weeks of the training window itself lay from it.

    `psi`: float32 (subjects,), the largest PSI of its weeks, scaled to weeks that are no part of the window.
    `payments`: the mean number of payments of these weeks. With fewer, chance alone gives larger distances.
    """

    psi: NDArray[np.float32]
    payments: float

    def psi_of(self, payments: CountArray) -> F64:
        """Returns the distances that are natural for as many payments, (subjects,)."""
        return np.asarray(self.psi * np.maximum(self.payments / np.maximum(payments, 1), 1.0), dtype=np.float64)


class Subjects:
    """The subjects of a binning, and where each one's histogram lies in a row of cells."""

    def __init__(self, binning: Binning, feature_names: Sequence[str]) -> None:
        self.binning = binning
        self.all = (
            Subject("score"),
            *(Subject(f"{FEATURE_PREFIX}{name}") for name in feature_names),
            *(Subject(TRAFFIC, dimension) for dimension in DIMENSIONS),
        )
        widths = [
            binning.score_bins,
            *[FEATURE_BINS + 1] * binning.feature_count,
            *(len(values) + 2 for values in binning.values),
        ]
        self._starts = np.concatenate([[0], np.cumsum(widths)]).astype(int)

    @property
    def cells(self) -> int:
        """The number of cells of a row."""
        return int(self._starts[-1])

    @cached_property
    def segments(self) -> tuple[tuple[str, ...], ...]:
        """For each dimension the names of the segments whose payments are the cells of its histogram."""
        names = self.binning.segments[1:]
        return tuple(tuple(name for name in names if name.startswith(f"{dimension}=")) for dimension in DIMENSIONS)

    def row(self, counts: Counts, segment: int = 0) -> CountArray:
        """Returns the row of a segment's payments, int64 (cells,). Cells of traffic are those of all payments."""
        scores, features = counts.scores[segment], counts.features[segment].ravel()
        return np.concatenate([scores, features, counts.payments[1:]])

    def of(self, row: NDArray[Any], number: int) -> NDArray[Any]:
        """Returns the histogram of the subject with this number, a view of the row."""
        return row[self._starts[number] : self._starts[number + 1]]

    def distances(self, reference: NDArray[Any], current: NDArray[Any]) -> Distances:
        """Returns the distances between two rows. Subjects without a payment in either have the distance 0."""
        found = np.zeros((3, len(self.all)))
        count = np.zeros(len(self.all), dtype=np.int64)
        for numbers in self._alike:
            then, now = (np.stack([self.of(row, number) for number in numbers]) for row in (reference, current))
            found[0, numbers], found[1, numbers] = psi(then, now), jensen_shannon(then, now)
            found[2, numbers] = np.where(self.is_ordered[numbers], kolmogorov_smirnov(then, now), outside(then, now))
            count[numbers] = now.sum(axis=1)
        return Distances(found[0], found[1], found[2], count)

    @cached_property
    def is_ordered(self) -> NDArray[np.bool_]:
        """Whether the bins of each subject are those of a number, (subjects,)."""
        return np.array([subject.name != TRAFFIC for subject in self.all])

    @cached_property
    def _alike(self) -> list[list[int]]:
        """The numbers of the subjects, those with histograms of the same width together."""
        widths = np.diff(self._starts)
        return [np.flatnonzero(widths == width).tolist() for width in np.unique(widths)]


def outside(reference: NDArray[Any], current: NDArray[Any]) -> F64:
    """Returns the share of payments that would have to move to another bin for the shares to be equal: 0 to 1.

    Also called the total variation distance. An empty histogram has the distance 0 from any other.
    """
    then, now = (counts.sum(axis=-1, keepdims=True, dtype=np.float64) for counts in (reference, current))
    apart = np.abs(reference / np.maximum(then, 1) - current / np.maximum(now, 1)).sum(axis=-1) / 2
    return np.where(((then > 0) & (now > 0))[..., 0], apart, 0.0)


def chance_psi(bins: int, reference_payments: int, payments: int) -> float:
    """Returns the PSI that chance alone gives on average between two samples of the same independent payments."""
    return (bins - 1) * (1 / max(reference_payments, 1) + 1 / max(payments, 1))


class DayRows:
    """Passes the hours of a past on, and sums their rows by day on the way.

    Example: `learn_baseline(layout, total, DayRows(subjects, hours))` counts every hour once for both.
    """

    def __init__(self, subjects: Subjects, hours: Iterable[TimedCounts]) -> None:
        self._subjects, self._hours = subjects, hours
        self._days: dict[int, CountArray] = {}

    def __iter__(self) -> Iterator[TimedCounts]:
        self._days = {}
        for start_ms, counts in self._hours:
            day, row = start_ms // DAY_MS, self._subjects.row(counts)
            self._days[day] = self._days[day] + row if day in self._days else row
            yield start_ms, counts

    def natural(self) -> Natural:
        """Returns how far the past's own weeks lay from it. Raises AssertionError before all hours were passed on.

        A past of fewer than two weeks has shorter parts: half of its days.
        """
        assert self._days, "no hour was passed on"
        days = np.array([row for _, row in sorted(self._days.items())])
        length = max(1, min(WINDOW_DAYS, len(days) // 2))
        sums = np.cumsum(np.concatenate([np.zeros_like(days[:1]), days]), axis=0)
        weeks, total = sums[length:] - sums[:-length], sums[-1]
        furthest = np.max([self._subjects.distances(total, week).psi for week in weeks], axis=0)
        # A week that is part of the total lies nearer to it than a later one: by this factor, for independent days.
        share = length / len(days)
        payments = float(self._subjects.of(weeks.mean(axis=0), len(self._subjects.all) - 1).sum())
        scale = (1 + share) / max(1 - share, share)
        return Natural((furthest * scale).astype(np.float32), payments)
