"""Turn counts into signals. Every signal is a mean over payments of a fixed number for each bin.

A signal therefore means the same in every segment, and its overall value is the mean of its segments' values, weighted
by payments.

    score         location: mean rank of the bins; spread: mean distance from the middle rank, 0 to 1;
                  high_risk: share at or above the review threshold
    feature:NAME  location and spread, likewise, of present values; missing: share of missing values
    traffic       share: a segment's payments divided by all payments
    action        review, decline: the share of each
    flag:NAME     share of payments with the flag
    profile_age   location: mean index of the bin, scaled to 0 to 1, of known ages; missing: share of unknown ages

How it works:

1. A bin's rank is its place in the reference: the share of payments below it plus half of its own share. In the past,
   ranks are uniform over 0 to 1.
2. `Layout` keeps one number per bin for each statistic (`weights`): the rank, the distance from the middle, or 0 and 1.
3. `values` multiplies each segment's histogram with the weights and divides by its payments. A compiled loop does it,
   because most bins of a short block are empty.
4. `values_and_spread` and `moments` take the variance of the same numbers: E[w²] - E[w]².

Example: three score bins hold 50, 30 and 20 payments of the past. Their ranks are 0.25, 0.65 and 0.90. A later block
with 20, 30 and 50 payments has

    location = (20 x 0.25 + 30 x 0.65 + 50 x 0.90) / 100 = 0.695, where 0.5 is expected
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.models.drift.binning import MISSING, OTHER, OVERALL, Binning
from paywarden.models.drift.counts import AGE_BINS, AGE_UNKNOWN, Counts
from paywarden.models.drift.signals import FEATURE_PREFIX, FLAG_PREFIX, PROFILE_AGE, TRAFFIC, Signal, is_histogram
from paywarden.models.metrics.tally import ACTION_COUNT, DECLINED, REVIEWED

F64 = NDArray[np.float64]

# `moments` adds this many payments to a segment, distributed as all payments are: a few payments show too little.
_PRIOR_PAYMENTS = 20.0
# It adds this many to all payments, evenly over the bins: an empty bin is possible, only rare.
_EVEN_PAYMENTS = 1.0


class Kinds(Flag):
    """Kinds of signals."""

    SCORE = auto()
    INPUTS = auto()
    """Features, and the traffic of segments."""
    QUALITY = auto()
    """Actions, flags and the age of profiles, which a training window does not have."""


@dataclass(frozen=True)
class Ranks:
    """A number for each bin, 0 to 1. `scores`: (score bins,); `features`: (features, FEATURE_BINS)."""

    scores: F64
    features: F64

    @classmethod
    def of_counts(cls, counts: Counts) -> Ranks:
        """Returns each bin's rank among the payments overall: the share below the bin plus half of its own share."""
        return cls(_ranks(counts.scores[0]), _ranks(counts.features[0, :, :MISSING]))

    @classmethod
    def of_places(cls, binning: Binning) -> Ranks:
        """Returns each bin's index scaled to 0 to 1, for models without a reference."""
        return cls(
            np.linspace(0, 1, binning.score_bins),
            np.tile(np.linspace(0, 1, MISSING), (binning.feature_count, 1)),
        )


@dataclass(frozen=True)
class _Family:
    """Subjects with the same statistics, each computed from one histogram per segment.

    `histograms`: takes counts, returns (segments, subjects, bins or more). `weights`: (subjects, statistics, bins).
    """

    subjects: tuple[str, ...]
    statistics: tuple[str, ...]
    histograms: Callable[[Counts], NDArray[np.int64]]
    weights: F64


class Layout:
    """The signals of one binning, in a fixed order."""

    def __init__(
        self, binning: Binning, feature_names: Sequence[str], ranks: Ranks, *, high_risk_at: float, kinds: Kinds
    ) -> None:
        """`high_risk_at`: one of the score edges. Without INPUTS in `kinds`, the only segment is OVERALL."""
        self.segments = binning.segments if Kinds.INPUTS in kinds else (OVERALL,)
        self._families = _families(binning, feature_names, ranks, high_risk_at, kinds)
        self._traffic = self.segments[1:] if Kinds.INPUTS in kinds else ()
        self.signals = tuple(
            Signal(subject, statistic, segment)
            for family in self._families
            for subject in family.subjects
            for statistic in family.statistics
            for segment in self.segments
        ) + tuple(Signal(TRAFFIC, "share", segment) for segment in self._traffic)
        self.numbers = {signal: number for number, signal in enumerate(self.signals)}
        places = {segment: number for number, segment in enumerate(self.segments)}
        # A traffic share is a mean over all payments.
        self.behind = np.array(
            [0 if signal.subject == TRAFFIC else places[signal.segment] for signal in self.signals], dtype=np.intp
        )
        """For each signal, the number of the segment whose payments it is a mean of."""
        self.is_followed = np.array([_is_input(signal) for signal in self.signals], dtype=bool)
        """Whether the signal is a feature's or traffic's. Those change slowly as cards and merchants change."""
        signal_group = {(signal.subject, signal.statistic, signal.segment == OVERALL): 0 for signal in self.signals}
        signal_group = {key: number for number, key in enumerate(signal_group)}
        self.signal_group_count = len(signal_group)
        self.signal_group = np.array(
            [signal_group[signal.subject, signal.statistic, signal.segment == OVERALL] for signal in self.signals],
            dtype=np.intp,
        )
        """The number of the signal's group: the same signal in all segments. A signal overall has its own group."""
        self.is_histogram = np.array([is_histogram(signal) for signal in self.signals], dtype=bool)

    def values(self, counts: Counts) -> tuple[F64, NDArray[np.int64]]:
        """Returns each signal's value, NaN without payments, and the payments it is a mean of. Both (signals,)."""
        sums, _, sizes = self._sums(counts)
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums / sizes, sizes

    def values_and_spread(self, counts: Counts) -> tuple[F64, NDArray[np.int64], F64]:
        """Returns the results of `values`, and the variance between payments of the number that each signal averages.

        The variance is 0 without payments. All are (signals,).
        """
        sums, squares, sizes = self._sums(counts)
        known = np.maximum(sizes, 1)
        mean = sums / known
        return np.where(sizes > 0, mean, np.nan), sizes, squares / known - mean**2

    def _sums(self, counts: Counts) -> tuple[F64, F64, NDArray[np.int64]]:
        """Returns the sums of each signal's numbers and of their squares, and the number of payments: (signals,)."""
        sums, squares = np.zeros((2, len(self.signals)))
        sizes = np.zeros(len(self.signals), dtype=np.int64)
        start = 0
        for family in self._families:
            shape = (*family.weights.shape[:2], len(self.segments))
            part = slice(start, start + int(np.prod(shape)))
            start = part.stop
            results = (array[part].reshape(shape) for array in (sums, squares, sizes))
            _weigh(family.histograms(counts)[: len(self.segments)], family.weights, *results)
        payments = counts.payments[: 1 + len(self._traffic)]
        # A payment of the segment counts 1, and the square of 1 is 1.
        sums[start:] = squares[start:] = payments[1:]
        sizes[start:] = payments[0]
        return sums, squares, sizes

    def moments(self, counts: Counts) -> tuple[F64, F64]:
        """Estimate each signal's mean over payments and the variance between payments. Both (signals,).

        Segments with few payments borrow from all payments (_PRIOR_PAYMENTS). Both are finite, the variance above 0.
        """
        means, variances = [], []
        for family in self._families:
            shares = _shares(self._histograms(family, counts))
            mean = _weighted(shares, family.weights)
            means.append(mean)
            variances.append(_weighted(shares, family.weights**2) - mean**2)
        payments = counts.payments[: 1 + len(self._traffic)]
        share = (payments[1:] + _EVEN_PAYMENTS / 2) / (payments[0] + _EVEN_PAYMENTS)
        means.append(share)
        variances.append(share * (1 - share))
        return _flat(means), np.maximum(_flat(variances), 1e-9)

    def _histograms(self, family: _Family, counts: Counts) -> NDArray[np.int64]:
        return family.histograms(counts)[: len(self.segments), :, : family.weights.shape[2]]


def _is_input(signal: Signal) -> bool:
    return signal.subject == TRAFFIC or signal.subject.startswith(FEATURE_PREFIX)


def _families(
    binning: Binning, feature_names: Sequence[str], ranks: Ranks, high_risk_at: float, kinds: Kinds
) -> list[_Family]:
    families = []
    if Kinds.SCORE in kinds:
        high = np.append(-np.inf, binning.score_edges) >= high_risk_at
        weights = np.stack([ranks.scores, _off_middle(ranks.scores), high])
        families.append(
            _Family(("score",), ("location", "spread", "high_risk"), lambda c: c.scores[:, None], weights[None])
        )
    if Kinds.INPUTS in kinds:
        subjects = tuple(f"{FEATURE_PREFIX}{name}" for name in feature_names)
        weights = np.stack([ranks.features, _off_middle(ranks.features)], axis=1)
        families.append(_Family(subjects, ("location", "spread"), lambda c: c.features, weights))
        missing = np.tile(np.arange(MISSING + 1) == MISSING, (len(subjects), 1, 1)).astype(np.float64)
        families.append(_Family(subjects, ("missing",), lambda c: c.features, missing))
    if Kinds.QUALITY in kinds:
        actions = np.eye(ACTION_COUNT)[[REVIEWED, DECLINED]]
        families.append(_Family(("action",), ("review", "decline"), lambda c: c.actions[:, None], actions[None]))
        flags = tuple(f"{FLAG_PREFIX}{name}" for name in (*binning.flags, OTHER))
        families.append(_Family(flags, ("share",), _flagged, np.tile([1.0, 0.0], (len(flags), 1, 1))))
        places = np.linspace(0, 1, AGE_UNKNOWN)[None, None]
        families.append(_Family((PROFILE_AGE,), ("location",), lambda c: c.ages[:, None], places))
        unknown = (np.arange(AGE_BINS) == AGE_UNKNOWN).astype(np.float64)[None, None]
        families.append(_Family((PROFILE_AGE,), ("missing",), lambda c: c.ages[:, None], unknown))
    return families


def _flagged(counts: Counts) -> NDArray[np.int64]:
    """Payments with and without each flag, (segments, flags + 1, 2)."""
    return np.stack([counts.flags, counts.payments[:, None] - counts.flags], axis=2)


@compiled()
def _weigh(histograms: NDArray[np.int64], weights: F64, sums: F64, squares: F64, sizes: NDArray[np.int64]) -> None:
    """Add up the weights of a histogram's payments, the squares of the weights, and the payments themselves.

    `histograms`: (segments, subjects, bins or more); `weights`: (subjects, statistics, bins). The results, which begin
    as zeros: (subjects, statistics, segments).
    """
    subjects, statistics, bins = weights.shape
    for segment in range(len(histograms)):
        for subject in range(subjects):
            for place in range(bins):
                count = histograms[segment, subject, place]
                if count == 0:
                    continue
                for statistic in range(statistics):
                    weight = weights[subject, statistic, place]
                    sums[subject, statistic, segment] += count * weight
                    squares[subject, statistic, segment] += count * weight * weight
                    sizes[subject, statistic, segment] += count


def _weighted(histograms: NDArray[Any], weights: F64) -> F64:
    """Returns the weighted sums over bins, (subjects, statistics, segments)."""
    sums: F64 = np.einsum("gsb,stb->stg", histograms, weights)
    return sums


def _shares(histograms: NDArray[np.int64]) -> F64:
    """Estimate the distribution over bins in each segment: its payments mixed with those of all segments."""
    bins = histograms.shape[2]
    overall = histograms[:1] + _EVEN_PAYMENTS / bins
    overall /= overall.sum(axis=2, keepdims=True)
    mixed = histograms + _PRIOR_PAYMENTS * overall
    mixed /= mixed.sum(axis=2, keepdims=True)
    mixed[:1] = overall
    return np.asarray(mixed)


def _ranks(histograms: NDArray[np.int64]) -> F64:
    """Returns the rank of each bin along the last axis."""
    total = np.maximum(histograms.sum(axis=-1, keepdims=True), 1)
    return np.asarray((np.cumsum(histograms, axis=-1) - histograms / 2) / total)


def _off_middle(ranks: F64) -> F64:
    return np.abs(2 * ranks - 1)


def _flat(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([part.ravel() for part in parts])
