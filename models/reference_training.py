"""The reference that goes with a bundle: bins and segments chosen from its training window, and what was usual in it.

Scores are those out of fold, as a bundle's metrics are: a model's scores of payments it has learnt are no reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.binning import FEATURE_BINS, Binning
from models.counts import Rows, count_rows
from models.detectors import DAY_MS, HOUR_MS, LENGTHS_MS
from models.reference import Reference, layout_of
from models.signal_layout import Kinds
from models.training_table import TableSegments
from models.usual import TimedCounts, learn_usual

DAYS_MIN = 2
"""A window of fewer days gives no reference: there would be no other day to compare an hour to."""
# Scores: twenty equal shares of payments, and the tail that matters most once more.
_SCORE_SHARES = (*np.arange(0.05, 0.96, 0.05), 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
# Segments of their own: values with this share of the payments, and no more than so many of a dimension.
_SEGMENT_SHARE_MIN, _SEGMENTS_MAX = 0.005, 20
# Rows that bins of a feature are chosen by.
_ROWS_MAX = 200_000
# Of the past's blocks of five minutes, one in so many is looked at.
_FIVES_STEP = 6


@dataclass(frozen=True)
class Scored:
    """The payments of a window, in order of time. `scores`, `fold`: (rows,); `vectors`: (rows, features)."""

    scores: NDArray[np.float64]
    fold: NDArray[np.int64]
    vectors: NDArray[np.float32]
    segments: TableSegments


def training_reference(
    scored: Scored,
    *,
    model_version: str,
    feature_names: Sequence[str],
    thresholds: tuple[float, float],
) -> Reference | None:
    """What is to be expected of a model's decisions; None for a window shorter than DAYS_MIN.

    `thresholds`: of review and decline; above the first is high risk. Actions and flags are no part of it: they follow
    from a policy and from servers that no training knows.
    """
    scored = replace(scored, scores=_as_of_one_model(scored.scores, scored.fold))
    days = _whole_days(scored.segments.time_ms)
    if len(days) < DAYS_MIN:
        return None
    binning = Binning(
        score_edges=_score_edges(scored.scores, thresholds),
        feature_edges=_feature_edges(scored.vectors),
        values=tuple(_frequent(column) for column in scored.segments.values),
    )
    review_at = thresholds[0]
    names, kinds = tuple(feature_names), Kinds.SCORE | Kinds.INPUTS
    total = count_rows(binning, _rows(scored, slice(None)))
    layout = layout_of(total, names, review_at, kinds)
    hours = _Blocks(scored, binning, range(days.start, days.stop, HOUR_MS))
    step_ms = _FIVES_STEP * LENGTHS_MS[0]
    halves = range(days.start, days.stop, step_ms)
    # Each time another one of the six in half an hour.
    starts = [start_ms + number * LENGTHS_MS[0] % step_ms for number, start_ms in enumerate(halves)]
    usual = learn_usual(layout, total, hours, _Blocks(scored, binning, starts, LENGTHS_MS[0]))
    return Reference(model_version, names, review_at, kinds, total, usual, layout)


def _as_of_one_model(scores: NDArray[np.float64], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each fold was scored by a model of its own, for some days on end: each fold's scores made those of all, by rank.

    Else what models differ by would be taken for what days differ by.
    """
    every, found = np.sort(scores), np.empty_like(scores)
    for number in np.unique(fold):
        rows = fold == number
        rank = (np.argsort(np.argsort(scores[rows], kind="stable"), kind="stable") + 0.5) / rows.sum()
        found[rows] = np.quantile(every, rank)
    return found


@dataclass(frozen=True)
class _Blocks:
    """Counts of blocks, made anew each time they are asked for: together they would fill the memory."""

    scored: Scored
    binning: Binning
    starts_ms: Sequence[int]
    length_ms: int = HOUR_MS

    def __iter__(self) -> Iterator[TimedCounts]:
        starts = np.asarray(self.starts_ms)
        time_ms = self.scored.segments.time_ms
        firsts, ends = np.searchsorted(time_ms, starts), np.searchsorted(time_ms, starts + self.length_ms)
        for start_ms, first, end in zip(self.starts_ms, firsts.tolist(), ends.tolist(), strict=True):
            yield start_ms, count_rows(self.binning, _rows(self.scored, slice(first, end)))


def _rows(scored: Scored, rows: slice) -> Rows:
    scores = scored.scores[rows]
    return Rows(
        scores=scores,
        actions=np.zeros(len(scores), dtype=np.int64),
        vectors=scored.vectors[rows],
        flags=[()] * len(scores),
        ages_ms=np.full(len(scores), -1, dtype=np.int64),
        values=[column[rows].tolist() for column in scored.segments.values],
    )


def _whole_days(time_ms: NDArray[np.int64]) -> range:
    """Midnights of the days that have payments, as far as they go."""
    if len(time_ms) == 0:
        return range(0)
    return range(int(time_ms[0]) // DAY_MS * DAY_MS, (int(time_ms[-1]) // DAY_MS + 1) * DAY_MS, DAY_MS)


def _score_edges(scores: NDArray[np.float64], thresholds: Sequence[float]) -> NDArray[np.float64]:
    return np.unique([*np.quantile(scores, _SCORE_SHARES), *thresholds])


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
    counted = Counter(value for value in column.tolist() if value is not None)
    often = [value for value, count in counted.most_common(_SEGMENTS_MAX) if count >= _SEGMENT_SHARE_MIN * len(column)]
    return tuple(sorted(often))
