"""Make a reference of past decisions: bins and segments that suit them, and what was usual.

Of a training window the scores are those out of fold, as a bundle's metrics are: a model's scores of payments it has
learnt are no reference. Actions, flags and ages are known of live decisions alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.baseline import TimedCounts, learn_baseline
from paywarden.models.drift.binning import FEATURE_BINS, NONE, OTHER, Binning
from paywarden.models.drift.counts import DecisionRows, count_rows
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS, LENGTHS_MS
from paywarden.models.drift.reference import Reference, layout_of
from paywarden.models.drift.signal_layout import Kinds
from paywarden.models.drift.table_segments import TableSegments

DAYS_MIN = 2
"""Fewer days give no reference: there would be no other day to compare an hour to."""
FIVE_MS = LENGTHS_MS[0]
# Scores: twenty equal shares of payments, and the tail that matters most once more.
_SCORE_SHARES = (*np.arange(0.05, 0.96, 0.05), 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
# Segments of their own: values with this share of the payments, and no more than so many of a dimension.
_SEGMENT_SHARE_MIN, _SEGMENTS_MAX = 0.005, 20
# Rows that bins of a feature are chosen by.
_ROWS_MAX = 200_000
# Of the past's blocks of five minutes, one in so many is looked at.
_FIVES_STEP = 6


@dataclass(frozen=True)
class Live:
    """What only live decisions have, as in Rows. `actions`: (rows,); `ages_ms`: (rows,), negative where not known."""

    actions: NDArray[np.int64]
    flags: Sequence[Sequence[str]]
    ages_ms: NDArray[np.int64]


@dataclass(frozen=True)
class PastDecisions:
    """Decisions in order of time. `scores`: (rows,), NaN where no model gave one; `vectors`: (rows, features)."""

    scores: NDArray[np.float64]
    vectors: NDArray[np.float32]
    segments: TableSegments
    live: Live | None = None


def make_reference(
    past: PastDecisions,
    *,
    model_version: str,
    feature_names: Sequence[str],
    thresholds: tuple[float, float],
    flags: Sequence[str] = (),
) -> Reference | None:
    """What is to be expected of a model's decisions; None where there are fewer than DAYS_MIN days.

    `thresholds`: of review and decline; above the first is high risk. `flags`: those of live decisions that are counted
    by name.
    """
    days = _whole_days(past.segments.time_ms)
    if len(days) < DAYS_MIN:
        return None
    binning = Binning(
        score_edges=_score_edges(past.scores[~np.isnan(past.scores)], thresholds),
        feature_edges=_feature_edges(past.vectors),
        values=tuple(_frequent(column) for column in past.segments.values),
        flags=tuple(flags),
    )
    kinds = Kinds.SCORE | Kinds.INPUTS | (Kinds(0) if past.live is None else Kinds.QUALITY)
    names, review_at = tuple(feature_names), thresholds[0]
    total = count_rows(binning, _rows(past, slice(None)))
    layout = layout_of(total, names, review_at, kinds)
    hours = _Blocks(past, binning, range(days.start, days.stop, HOUR_MS), HOUR_MS)
    step_ms = _FIVES_STEP * FIVE_MS
    # Each time another one of the six in half an hour.
    starts = [start + number * FIVE_MS % step_ms for number, start in enumerate(range(days.start, days.stop, step_ms))]
    baseline = learn_baseline(layout, total, hours, _Blocks(past, binning, starts, FIVE_MS))
    return Reference(model_version, names, review_at, kinds, total, baseline, layout)


def as_of_one_model(scores: NDArray[np.float64], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each fold was scored by a model of its own, for some days on end: each fold's scores made those of all, by rank.

    Else what models differ by would be taken for what days differ by.
    """
    every, found = np.sort(scores), np.empty_like(scores)
    places = np.arange(len(every))
    for number in np.unique(fold):
        rows = fold == number
        rank = (np.argsort(np.argsort(scores[rows], kind="stable"), kind="stable") + 0.5) / rows.sum()
        # NumPy's quantile takes minutes for as many as there are rows.
        found[rows] = np.interp(rank * (len(every) - 1), places, every)
    return found


@dataclass(frozen=True)
class _Blocks:
    """Counts of blocks, made anew each time they are asked for: together they would fill the memory."""

    past: PastDecisions
    binning: Binning
    starts_ms: Sequence[int]
    length_ms: int

    def __iter__(self) -> Iterator[TimedCounts]:
        starts = np.asarray(self.starts_ms)
        time_ms = self.past.segments.time_ms
        firsts, ends = np.searchsorted(time_ms, starts), np.searchsorted(time_ms, starts + self.length_ms)
        for start_ms, first, end in zip(self.starts_ms, firsts.tolist(), ends.tolist(), strict=True):
            yield start_ms, count_rows(self.binning, _rows(self.past, slice(first, end)))


def _rows(past: PastDecisions, rows: slice) -> DecisionRows:
    scores, live = past.scores[rows], past.live
    return DecisionRows(
        scores=scores,
        actions=np.zeros(len(scores), dtype=np.int64) if live is None else live.actions[rows],
        vectors=past.vectors[rows],
        flags=[()] * len(scores) if live is None else live.flags[rows],
        ages_ms=np.full(len(scores), -1, dtype=np.int64) if live is None else live.ages_ms[rows],
        values=[column[rows].tolist() for column in past.segments.values],
    )


def _whole_days(time_ms: NDArray[np.int64]) -> range:
    """Midnights of the days that have payments, as far as they go."""
    if len(time_ms) == 0:
        return range(0)
    return range(int(time_ms[0]) // DAY_MS * DAY_MS, (int(time_ms[-1]) // DAY_MS + 1) * DAY_MS, DAY_MS)


def _score_edges(scores: NDArray[np.float64], thresholds: Sequence[float]) -> NDArray[np.float64]:
    return np.unique([*(np.quantile(scores, _SCORE_SHARES) if len(scores) else ()), *thresholds])


def _feature_edges(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    step = -(-len(vectors) // _ROWS_MAX)
    edges = np.full((vectors.shape[1], FEATURE_BINS - 1), np.inf, dtype=np.float32)
    for place, column in enumerate(vectors[::step].T):
        found = _edges_of(column[np.isfinite(column)])
        edges[place, : len(found)] = found
    return edges


def _edges_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of one feature. A value that many payments have gets a bin of its own; few values have one each."""
    distinct = np.unique(values)
    if len(distinct) < FEATURE_BINS - 1:
        return np.append(distinct, np.nextafter(distinct[-1:], np.float32(np.inf)))
    # Without interpolation, which would make values that nobody has.
    shares = np.arange(1, FEATURE_BINS - 1) / (FEATURE_BINS - 1)
    cuts, times = np.unique(np.quantile(values, shares, method="lower"), return_counts=True)
    return np.unique(np.append(cuts, np.nextafter(cuts[times > 1], np.float32(np.inf))))


def _frequent(column: NDArray[np.object_]) -> tuple[str, ...]:
    # A channel may be any word.
    counted = Counter(value for value in column.tolist() if value not in (None, NONE, OTHER))
    often = [value for value, count in counted.most_common(_SEGMENTS_MAX) if count >= _SEGMENT_SHARE_MIN * len(column)]
    return tuple(sorted(often))
