"""Make a reference from past decisions: bins, segments and the baseline.

How it works:

1. Scores get bins at 20 equal shares of the payments, with finer bins in the top 5 %, and at both thresholds.
2. Each feature gets up to 15 bins of about equal shares. A value that many payments have gets a bin of its own.
3. A value of channel, country or mcc with at least 0.5 % of the payments gets a segment, at most 20 a dimension. Where
   a dimension has few of these, rarer values follow, the most frequent first: down to 0.02 %, up to 12 in all. A value
   that is rare today and grows then has a name.
4. The decisions are counted as a whole, hour by hour, and in one of every six blocks of five minutes.
5. models/drift/baseline.py learns the expected values and variances from these counts, and
   models/drift/training_distance.py how far weeks of the past lie from the whole.

Example: a feature is 0 in 60 % of the payments and spread evenly over 1 to 1000 in the others. There are 14 cuts, at
1/15, 2/15, … 14/15 of the payments; nine of them fall on 0. Zero therefore gets a bin of its own, and the other five
cuts divide 1 to 1000 into six bins with 1/15 of the payments each.

For a training window, the scores are those that the bundle's model would give to payments it has not seen
(models/drift/unseen_margins.py). Only live decisions have actions, flags and ages of profiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.baseline import TimedCounts, learn_baseline
from paywarden.models.drift.binning import FEATURE_BINS, NONE, OTHER, Binning
from paywarden.models.drift.counts import BinnedRows, Counts, DecisionRows, binned_rows
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS, LENGTHS_MS
from paywarden.models.drift.reference import Reference, layout_of
from paywarden.models.drift.signal_layout import Kinds
from paywarden.models.drift.table_segments import TableSegments
from paywarden.models.drift.training_distance import DayRows, Subjects

DAYS_MIN = 2
"""A past of fewer days gives no reference: an hour needs the same hour of another day to compare with."""
FIVE_MS = LENGTHS_MS[0]
# Score edges: twenty equal shares of the payments, and finer ones at the top, where decisions are made.
_SCORE_SHARES = (*np.arange(0.05, 0.96, 0.05), 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
# A value gets a segment if it has at least this share of the payments; a dimension has at most 20 such segments.
_SEGMENT_SHARE_MIN, _SEGMENTS_MAX = 0.005, 20
# Rarer values are listed down to this share and this many payments, while the dimension has fewer segments than this.
_RARE_SHARE_MIN, _RARE_PAYMENTS_MIN, _RARE_SEGMENTS_MAX = 0.0002, 20, 12
# At most about this many rows decide about the bins of features.
_ROWS_MAX = 200_000
# One in this many blocks of five minutes is counted.
_FIVES_STEP = 6


@dataclass(frozen=True)
class Live:
    """The columns that only live decisions have, as in DecisionRows. Each has shape (rows,)."""

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
    """Returns the reference of a model's past decisions; None where they span fewer than DAYS_MIN days.

    `thresholds`: the scores from which on payments are reviewed and declined; the first is where high risk begins.
    `flags`: the flags of live decisions to count by name.
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
    rows = binned_rows(binning, _rows(past))
    blocks = partial(_Blocks, past, binning, rows)
    total = Counts.empty(binning)
    total.count_binned(rows, () if past.live is None else past.live.flags)
    layout = layout_of(total, names, review_at, kinds)
    hours = DayRows(Subjects(binning, names), blocks(range(days.start, days.stop, HOUR_MS), HOUR_MS))
    step_ms = _FIVES_STEP * FIVE_MS
    # Another one of the six blocks in each half hour.
    starts = [start + number * FIVE_MS % step_ms for number, start in enumerate(range(days.start, days.stop, step_ms))]
    baseline = learn_baseline(layout, total, hours, blocks(starts, FIVE_MS))
    natural = hours.natural()
    return Reference(model_version, names, review_at, kinds, total, baseline, layout, natural, days.start, days.stop)


@dataclass(frozen=True)
class _Blocks:
    """The counts of blocks. Each iteration counts again, because all counts together may not fit into memory."""

    past: PastDecisions
    binning: Binning
    rows: BinnedRows
    starts_ms: Sequence[int]
    length_ms: int

    def __iter__(self) -> Iterator[TimedCounts]:
        starts = np.asarray(self.starts_ms)
        time_ms = self.past.segments.time_ms
        firsts, ends = np.searchsorted(time_ms, starts), np.searchsorted(time_ms, starts + self.length_ms)
        for start_ms, first, end in zip(self.starts_ms, firsts.tolist(), ends.tolist(), strict=True):
            counts, part, rows = Counts.empty(self.binning), slice(first, end), self.rows
            flags = () if self.past.live is None else self.past.live.flags[part]
            vectors, segments = rows.vectors[part], rows.segments[part]
            counts.count_binned(
                BinnedRows(segments, rows.score_bin[part], rows.action[part], rows.age[part], vectors), flags
            )
            yield start_ms, counts


def _rows(past: PastDecisions) -> DecisionRows:
    scores, live = past.scores, past.live
    return DecisionRows(
        scores=scores,
        actions=np.zeros(len(scores), dtype=np.int8) if live is None else live.actions,
        vectors=past.vectors,
        flags=() if live is None else live.flags,
        ages_ms=np.full(len(scores), -1, dtype=np.int64) if live is None else live.ages_ms,
        values=[column.tolist() for column in past.segments.values],
    )


def _whole_days(time_ms: NDArray[np.int64]) -> range:
    """The midnights from the first payment's day to the last one's, in milliseconds; empty without payments."""
    if len(time_ms) == 0:
        return range(0)
    return range(int(time_ms[0]) // DAY_MS * DAY_MS, (int(time_ms[-1]) // DAY_MS + 1) * DAY_MS, DAY_MS)


def _score_edges(scores: NDArray[np.float64], thresholds: Sequence[float]) -> NDArray[np.float64]:
    return np.unique([*(np.quantile(scores, _SCORE_SHARES) if len(scores) else ()), *thresholds])


def _feature_edges(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    step = -(-len(vectors) // _ROWS_MAX)
    edges = np.full((vectors.shape[1], FEATURE_BINS - 1), np.inf, dtype=np.float32)
    for place, column in enumerate(vectors[::step].T):
        finite = _edges_of(column[np.isfinite(column)])
        edges[place, : len(finite)] = finite
    return edges


def _edges_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the edges of one feature's bins. With few distinct values, each gets a bin of its own."""
    distinct = np.unique(values)
    if len(distinct) < FEATURE_BINS - 1:
        return np.append(distinct, np.nextafter(distinct[-1:], np.float32(np.inf)))
    # "lower" takes existing values; interpolation would invent values that no payment has.
    shares = np.arange(1, FEATURE_BINS - 1) / (FEATURE_BINS - 1)
    cuts, times = np.unique(np.quantile(values, shares, method="lower"), return_counts=True)
    return np.unique(np.append(cuts, np.nextafter(cuts[times > 1], np.float32(np.inf))))


def _frequent(column: NDArray[np.object_]) -> tuple[str, ...]:
    # A channel may be any word, also "none" or "other", which name segments already.
    counts = Counter(value for value in column.tolist() if value not in (None, NONE, OTHER))
    often = [value for value, count in counts.most_common(_SEGMENTS_MAX) if count >= _SEGMENT_SHARE_MIN * len(column)]
    rare_min = max(_RARE_SHARE_MIN * len(column), _RARE_PAYMENTS_MIN)
    listed = [value for value, count in counts.most_common(_RARE_SEGMENTS_MAX) if count >= rare_min]
    return tuple(sorted({*often, *listed}))
