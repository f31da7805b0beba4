"""Areas under the ROC and the precision-recall curve of many scores, in little more memory than the scores.

They are the numbers of `auc_roc` and `average_precision` (models/metrics/evaluation.py) to the last bit, so a test
can hold
them against those. How it works:

1. A score that is not negative has bits in its own order and no sign: shifted up by one, they leave room for the label.
   Those numbers are sorted in place.
2. From the lowest score up, a run of equal scores is a threshold: `found` frauds among `flagged` payments at or above.
3. Each gives one term of average precision, written over numbers that have been read, and added up at the end all at
   once: the sum of floats depends on their order. Of the ROC curve only corners matter, and they are kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROWS = 1 << 18
"""So many are looked at together: what is made of them stays in a processor's cache, or near it."""

I64 = npt.NDArray[np.int64]


def areas_under_curves(fraud: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]) -> tuple[float, float]:
    """(AUC ROC, average precision); NaN where there is no fraud, the first also where there is nothing else.

    Both arrays have shape (row_count,); no score is negative or NaN. Takes 8 bytes a row.
    """
    rows, frauds = len(score), int(np.count_nonzero(fraud))
    if frauds == 0:
        return float("nan"), float("nan")
    # Adding makes a copy, and 0 of a negative zero.
    keys = (score + 0.0).view(np.uint64)
    keys <<= np.uint64(1)
    np.bitwise_or(keys, fraud, out=keys)
    keys.sort()
    terms, corners = keys.view(np.float64), _Corners()
    written, before = 0, 0
    # The run that has not ended yet: where it starts, and the frauds at or above.
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
        made = (recall[1:] - recall[:-1]) * (found[:-1] / flagged[:-1])
        terms[written : written + len(made)] = made
        written += len(made)
        corners.add(found, flagged)
        start, found = start[-1:], found[-1:]
    average_precision = max(0.0, -float(np.sum(terms[:written])))
    return (corners.area() if frauds < rows else float("nan")), average_precision


class _Corners:
    """The points of a ROC curve at which it turns, of thresholds that rise; the first and the last among them."""

    def __init__(self) -> None:
        self._found: list[I64] = []
        self._flagged: list[I64] = []
        # Frauds and payments of the run before: a curve goes straight on where the next run has as many.
        self._steps = np.full((2, 1), -1, dtype=np.int64)
        self._newest = (0, 0)

    def add(self, found: I64, flagged: I64) -> None:
        """Points one after the other; the last one only ends the run before it, and comes first the next time."""
        if len(found) < 2:
            return
        steps = np.concatenate((self._steps, np.array([found[:-1] - found[1:], flagged[:-1] - flagged[1:]])), axis=1)
        turns = (steps[:, 1:] != steps[:, :-1]).any(axis=0)
        self._found.append(found[:-1][turns])
        self._flagged.append(flagged[:-1][turns])
        self._steps, self._newest = steps[:, -1:], (int(found[-2]), int(flagged[-2]))

    def area(self) -> float:
        """As scikit-learn has it of these points, from the highest threshold down."""
        found, flagged = np.concatenate(self._found), np.concatenate(self._flagged)
        if (found[-1], flagged[-1]) != self._newest:
            found, flagged = np.append(found, self._newest[0]), np.append(flagged, self._newest[1])
        truly = np.append(0, found[::-1]).astype(np.float64)
        wrongly = np.append(0, (flagged - found)[::-1]).astype(np.float64)
        return float(np.trapezoid(truly / truly[-1], wrongly / wrongly[-1]))
