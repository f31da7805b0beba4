"""Compare two sets of decisions about the same payments: where they agree, and how their scores differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paywarden.models.metrics.curves import SCORE_EDGES, FloatArray
from paywarden.models.metrics.tally import ACTION_COUNT

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
DIFFERENCE_EDGES = (-1.0, -0.5, -0.2, -0.1, -0.05, -0.02, -0.005, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# The smallest share of a bin. A bin that is empty on one side would make the stability index infinite.
_SHARE_MIN = 1e-6
# Rows processed at once, so that temporary arrays are small compared with the columns.
_ROWS = 1 << 18

ActionArray = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Agreement:
    """Payments by the pair of actions that champion and challenger took."""

    payments: list[list[int]]
    """`payments[i][j]` payments got action i from the champion and j from the challenger (0 approve, 1 review, 2
    decline).
    """
    frauds: list[list[int]]
    """The frauds among `payments[i][j]`."""
    share: float
    """Share of payments with the same action."""


def agreement(champion: ActionArray, challenger: ActionArray, fraud: npt.NDArray[np.bool_]) -> Agreement:
    """Count pairs of actions. All arrays: (row_count,). Actions are numbers below ACTION_COUNT."""
    # There are fewer than 128 pairs, so one byte holds a pair.
    cell = champion.astype(np.int8) * np.int8(ACTION_COUNT) + challenger.astype(np.int8)
    shape, size = (ACTION_COUNT, ACTION_COUNT), ACTION_COUNT**2
    payments = np.bincount(cell, minlength=size).reshape(shape)
    frauds = np.bincount(cell[fraud], minlength=size).reshape(shape)
    share = float(np.trace(payments) / len(cell)) if len(cell) else float("nan")
    return Agreement(payments.tolist(), frauds.tolist(), share)


@dataclass(frozen=True)
class ScoreShift:
    """The distribution of the challenger's score minus the champion's."""

    mean: float
    """Mean of the differences."""
    quantiles: dict[str, float]
    """Quantiles of the differences, by name such as `p5`."""
    largest_fall: float
    """The smallest difference."""
    largest_rise: float
    """The largest difference."""
    counts: list[int]
    """Payments by difference: element i lies between edges i and i + 1 of DIFFERENCE_EDGES in
    models/metrics/comparison.py."""
    rank_correlation: float
    """Spearman's rank correlation; null if one side gives only one score."""
    population_stability_index: float
    """PSI of the two distributions of scores: below 0.1 is little, above 0.25 much."""


def score_shift(champion: FloatArray, challenger: FloatArray) -> ScoreShift:
    """Measure the shift of scores. Both arrays: (row_count,), at least one row."""
    rank_correlation = _correlation(_ranks(champion), _ranks(challenger))
    difference = challenger - champion
    return ScoreShift(
        mean=float(difference.mean()),
        quantiles={f"p{100 * q:g}": float(np.quantile(difference, q)) for q in QUANTILES},
        largest_fall=float(difference.min()),
        largest_rise=float(difference.max()),
        counts=_counts(difference, DIFFERENCE_EDGES).tolist(),
        rank_correlation=rank_correlation,
        population_stability_index=population_stability_index(champion, challenger),
    )


def population_stability_index(expected: FloatArray, actual: FloatArray) -> float:
    """Returns the PSI of two distributions of scores: the sum over bins of (a - e) ln(a / e), with shares a and e.

    Bins are those of SCORE_EDGES. Quantiles would mostly separate tiny scores, far below any threshold. By convention,
    below 0.1 is little and above 0.25 is much. Both arrays need at least one row, and may differ in length.

    Example: shares of 0.90 and 0.10 become 0.80 and 0.20. PSI = -0.10 ln(0.80/0.90) + 0.10 ln(0.20/0.10) = 0.081.
    """
    shares = [_counts(scores, SCORE_EDGES) / len(scores) for scores in (expected, actual)]
    before, after = (np.maximum(share, _SHARE_MIN) for share in shares)
    return float(np.sum((after - before) * np.log(after / before)))


def _ranks(scores: FloatArray) -> FloatArray:
    """Returns ranks from 0. Equal scores share their mean rank."""
    order, rows = np.argsort(scores), len(scores)
    ranks = np.empty(rows)
    # Each part is extended to the end of its last run of equal scores.
    first = 0
    while first < rows:
        last = min(first + _ROWS, rows)
        if last < rows:
            last = int(np.searchsorted(scores, scores[order[last - 1]], side="right", sorter=order))
        part = order[first:last]
        ranked = scores[part]
        ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]) + 1, len(part))
        count = np.diff(ends, prepend=0)
        ranks[part] = np.repeat(first + ends - (count + 1) / 2, count)
        first = last
    return ranks


def _counts(values: FloatArray, edges: Sequence[float]) -> npt.NDArray[np.int64]:
    """Count values between consecutive edges. Values outside count in the outer bins."""
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for first in range(0, len(values), _ROWS):
        place = np.searchsorted(edges[1:-1], values[first : first + _ROWS], side="right")
        counts += np.bincount(place, minlength=len(counts))
    return counts


def _correlation(first: FloatArray, second: FloatArray) -> float:
    """Returns Pearson's correlation; NaN if one side is constant. Overwrites both arrays."""
    a, b = first, second
    a -= a.mean()
    b -= b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")
