"""Compute the area under the ROC curve and the average precision of many scores, in little extra memory.

The results equal those of `auc_roc` and `average_precision` (models/metrics/evaluation.py, which call scikit-learn) to
the last bit; a test compares them.

How it works:

1. The bits of a non-negative float, read as an integer, are in the order of the floats, and the sign bit is 0. Shifted
   left by one, they leave the lowest bit free for the label. These integers are sorted in place.
2. From the lowest score up, each run of equal scores is a threshold: `found` frauds among `flagged` payments at or
   above it.
3. Each threshold gives one term of average precision. The terms overwrite integers that have been read already. They
   are summed at the end in one call, because a sum of floats depends on its order.
4. The ROC curve needs only its corners, the points where it turns.

Example: the scores 0.1, 0.4, 0.4, 0.9 have the labels 0, 1, 0, 1. From the lowest threshold up, found / flagged is 2/4,
2/3 and 1/1. Average precision is (1 - 0.5) x 2/3 + 0.5 x 1/1 = 0.833. The area under the ROC curve is 0.875: of the
four pairs of a fraud and a genuine payment, three are in the right order and one is a tie.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROWS = 1 << 18
"""The rows processed at once. Their temporary arrays stay in or near the processor's cache."""

I64 = npt.NDArray[np.int64]


def areas_under_curves(fraud: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Returns (area under the ROC curve, average precision). NaN without a fraud; the first also without a genuine row.

    Both arrays: (row_count,). Scores must not be negative or NaN. Takes 8 bytes per row.
    """
    rows, frauds = len(score), int(np.count_nonzero(fraud))
    if frauds == 0:
        return float("nan"), float("nan")
    # Adding 0 makes a copy, and turns negative zeros into zeros.
    keys = (score + 0.0).view(np.uint64)
    keys <<= np.uint64(1)
    np.bitwise_or(keys, fraud, out=keys)
    keys.sort()
    terms, corners = keys.view(np.float64), _Corners()
    written, before = 0, 0
    # The run that continues in the next part: its start, and the frauds at or above it.
    start, found = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    last: int | None = None
    for first in range(0, rows, _ROWS):
        part = keys[first : first + _ROWS].copy()
        is_fraud, value = (part & np.uint64(1)).astype(np.int64), part >> np.uint64(1)
        begins = np.flatnonzero(np.append(last is None or int(value[0]) != last, value[1:] != value[:-1]))
        below = before + np.cumsum(is_fraud) - is_fraud
        start, found = np.append(start, first + begins), np.append(found, frauds - below[begins])
        before, last = before + int(is_fraud.sum()), int(value[-1])
        if first + len(part) == rows:
            start, found = np.append(start, rows), np.append(found, 0)
        flagged = rows - start
        recall = found / frauds
        new_terms = (recall[1:] - recall[:-1]) * (found[:-1] / flagged[:-1])
        terms[written : written + len(new_terms)] = new_terms
        written += len(new_terms)
        corners.add(found, flagged)
        start, found = start[-1:], found[-1:]
    average_precision = max(0.0, -float(np.sum(terms[:written])))
    return (corners.area() if frauds < rows else float("nan")), average_precision


class _Corners:
    """Collects the points of a ROC curve where it turns, for rising thresholds, and the first and last point."""

    def __init__(self) -> None:
        self._found: list[I64] = []
        self._flagged: list[I64] = []
        # Frauds and payments of the previous run. If the next run has the same numbers, the curve goes straight on.
        self._steps = np.full((2, 1), -1, dtype=np.int64)
        self._newest = (0, 0)

    def add(self, found: I64, flagged: I64) -> None:
        """Add points. The last one only ends the run before it, and must be the first of the next call."""
        if len(found) < 2:
            return
        steps = np.concatenate((self._steps, np.array([found[:-1] - found[1:], flagged[:-1] - flagged[1:]])), axis=1)
        turns = (steps[:, 1:] != steps[:, :-1]).any(axis=0)
        self._found.append(found[:-1][turns])
        self._flagged.append(flagged[:-1][turns])
        self._steps, self._newest = steps[:, -1:], (int(found[-2]), int(flagged[-2]))

    def area(self) -> float:
        """Returns the area by the trapezoidal rule, from the highest threshold down, as scikit-learn computes it."""
        found, flagged = np.concatenate(self._found), np.concatenate(self._flagged)
        if (found[-1], flagged[-1]) != self._newest:
            found, flagged = np.append(found, self._newest[0]), np.append(flagged, self._newest[1])
        true_positives = np.append(0, found[::-1]).astype(np.float64)
        false_positives = np.append(0, (flagged - found)[::-1]).astype(np.float64)
        return float(np.trapezoid(true_positives / true_positives[-1], false_positives / false_positives[-1]))
