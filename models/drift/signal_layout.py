"""Which signals counts have, and their values: every signal is a mean over payments of a fixed number for each bin.

So a signal has the same meaning in every segment, and what it is overall is the mean of its segments', by payments.

    score         location: mean of the bins' ranks; spread: mean of how far from the middle; high_risk: share at or
                  above the threshold of review
    feature:NAME  location and spread likewise, of values that are there; missing: share of those that are not
    traffic       share: of a segment's payments in all
    action        review, decline: shares
    flag:NAME     share
    profile_age   location: mean of the bins' places, 0 to 1, where it is known; missing: share of those not known

Ranks are those of the reference, so for what is usual they are uniform over 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.binning import MISSING, OTHER, OVERALL, Binning
from paywarden.models.drift.counts import AGE_BINS, AGE_UNKNOWN, Counts
from paywarden.models.drift.signals import FEATURE_PREFIX, FLAG_PREFIX, PROFILE_AGE, TRAFFIC, Signal, is_histogram
from paywarden.models.metrics.tally import ACTION_COUNT, DECLINED, REVIEWED

F64 = NDArray[np.float64]

# What a segment's own payments are mixed with, so that a few do not say everything: so many spread as all are.
_PRIOR_PAYMENTS = 20.0
# And all with so many that are spread evenly: what was never seen is not impossible.
_EVEN_PAYMENTS = 1.0


class Kinds(Flag):
    """Kinds of signals."""

    SCORE = auto()
    INPUTS = auto()
    """Features, and the traffic of segments."""
    QUALITY = auto()
    """Actions, flags and the age of profiles: what no training window knows."""


@dataclass(frozen=True)
class Ranks:
    """A number for each bin, 0 to 1. `scores`: (score bins,); `features`: (features, FEATURE_BINS)."""

    scores: F64
    features: F64

    @classmethod
    def of_counts(cls, counts: Counts) -> Ranks:
        """Where each bin lies among the payments counted overall: the share below it and half of its own."""
        return cls(_ranks(counts.scores[0]), _ranks(counts.features[0, :, :MISSING]))

    @classmethod
    def of_places(cls, binning: Binning) -> Ranks:
        """Where each bin lies among the bins: for what is counted of models without a reference."""
        return cls(
            np.linspace(0, 1, binning.score_bins),
            np.tile(np.linspace(0, 1, MISSING), (binning.feature_count, 1)),
        )


@dataclass(frozen=True)
class _Family:
    """Subjects with the same statistics, each made of one histogram a segment.

    `histograms`: from counts, (segments, subjects, bins); `weights`: (subjects, statistics, bins).
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
        """`high_risk_at`: an edge of scores. Of QUALITY alone, and of SCORE without INPUTS, signals are of OVERALL."""
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
        # Of traffic, it is all payments.
        self.behind = np.array(
            [0 if signal.subject == TRAFFIC else places[signal.segment] for signal in self.signals], dtype=np.intp
        )
        """Of each signal the number of the segment whose payments are behind it."""
        self.is_followed = np.array([_is_input(signal) for signal in self.signals], dtype=bool)
        """Features and traffic, which change with those who pay."""
        signal_group = {(signal.subject, signal.statistic, signal.segment == OVERALL): 0 for signal in self.signals}
        signal_group = {key: number for number, key in enumerate(signal_group)}
        self.signal_group_count = len(signal_group)
        self.signal_group = np.array(
            [signal_group[signal.subject, signal.statistic, signal.segment == OVERALL] for signal in self.signals],
            dtype=np.intp,
        )
        """A number that the same signal has in all segments; overall, one of its own."""
        self.is_histogram = np.array([is_histogram(signal) for signal in self.signals], dtype=bool)

    def values(self, counts: Counts) -> tuple[F64, NDArray[np.int64]]:
        """Of each signal its value, NaN of nothing, and how many payments are behind it. Both (signals,)."""
        sums, sizes = [], []
        for family in self._families:
            histograms = self._histograms(family, counts)
            sums.append(_weighted(histograms, family.weights))
            size = histograms.sum(axis=2).T[:, None, :]
            sizes.append(np.broadcast_to(size, sums[-1].shape))
        payments = counts.payments[: 1 + len(self._traffic)]
        sums.append(payments[1:].astype(np.float64))
        sizes.append(np.full(len(self._traffic), payments[0]))
        size = _flat(sizes)
        with np.errstate(divide="ignore", invalid="ignore"):
            return _flat(sums) / size, size

    def spread(self, counts: Counts) -> F64:
        """The variance between these payments of what each signal is the mean of; 0 of nothing. (signals,)"""
        found = []
        for family in self._families:
            histograms = self._histograms(family, counts)
            shares = histograms / np.maximum(histograms.sum(axis=2, keepdims=True), 1)
            found.append(_weighted(shares, family.weights**2) - _weighted(shares, family.weights) ** 2)
        payments = counts.payments[: 1 + len(self._traffic)]
        share = payments[1:] / max(int(payments[0]), 1)
        return _flat([*found, share * (1 - share)])

    def moments(self, counts: Counts) -> tuple[F64, F64]:
        """Of each signal the mean over payments and the variance between them, as well as these counts tell it.

        Both (signals,), finite, the variance above 0.
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
        return family.histograms(counts)[: len(self.segments)]


def _is_input(signal: Signal) -> bool:
    return signal.subject == TRAFFIC or signal.subject.startswith(FEATURE_PREFIX)


def _families(
    binning: Binning, feature_names: Sequence[str], ranks: Ranks, high_risk_at: float, kinds: Kinds
) -> list[_Family]:
    found = []
    if Kinds.SCORE in kinds:
        high = np.append(-np.inf, binning.score_edges) >= high_risk_at
        weights = np.stack([ranks.scores, _off_middle(ranks.scores), high])
        found.append(
            _Family(("score",), ("location", "spread", "high_risk"), lambda c: c.scores[:, None], weights[None])
        )
    if Kinds.INPUTS in kinds:
        subjects = tuple(f"{FEATURE_PREFIX}{name}" for name in feature_names)
        weights = np.stack([ranks.features, _off_middle(ranks.features)], axis=1)
        found.append(_Family(subjects, ("location", "spread"), lambda c: c.features[:, :, :MISSING], weights))
        missing = np.tile(np.arange(MISSING + 1) == MISSING, (len(subjects), 1, 1)).astype(np.float64)
        found.append(_Family(subjects, ("missing",), lambda c: c.features, missing))
    if Kinds.QUALITY in kinds:
        actions = np.eye(ACTION_COUNT)[[REVIEWED, DECLINED]]
        found.append(_Family(("action",), ("review", "decline"), lambda c: c.actions[:, None], actions[None]))
        flags = tuple(f"{FLAG_PREFIX}{name}" for name in (*binning.flags, OTHER))
        found.append(_Family(flags, ("share",), _flagged, np.tile([1.0, 0.0], (len(flags), 1, 1))))
        places = np.linspace(0, 1, AGE_UNKNOWN)[None, None]
        found.append(_Family((PROFILE_AGE,), ("location",), lambda c: c.ages[:, None, :AGE_UNKNOWN], places))
        unknown = (np.arange(AGE_BINS) == AGE_UNKNOWN).astype(np.float64)[None, None]
        found.append(_Family((PROFILE_AGE,), ("missing",), lambda c: c.ages[:, None], unknown))
    return found


def _flagged(counts: Counts) -> NDArray[np.int64]:
    """Payments with each flag, and without."""
    return np.stack([counts.flags, counts.payments[:, None] - counts.flags], axis=2)


def _weighted(histograms: NDArray[Any], weights: F64) -> F64:
    """(subjects, statistics, segments)"""
    found: F64 = np.einsum("gsb,stb->stg", histograms, weights)
    return found


def _shares(histograms: NDArray[np.int64]) -> F64:
    """How a payment of each segment lies in the bins."""
    bins = histograms.shape[2]
    overall = histograms[:1] + _EVEN_PAYMENTS / bins
    overall /= overall.sum(axis=2, keepdims=True)
    mixed = histograms + _PRIOR_PAYMENTS * overall
    mixed /= mixed.sum(axis=2, keepdims=True)
    mixed[:1] = overall
    return np.asarray(mixed)


def _ranks(histograms: NDArray[np.int64]) -> F64:
    """Along the last axis."""
    total = np.maximum(histograms.sum(axis=-1, keepdims=True), 1)
    return np.asarray((np.cumsum(histograms, axis=-1) - histograms / 2) / total)


def _off_middle(ranks: F64) -> F64:
    return np.abs(2 * ranks - 1)


def _flat(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([part.ravel() for part in parts])
