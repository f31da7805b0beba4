"""Estimate from the scores themselves how far an area under the ROC curve may be from the truth.

Source: E. DeLong, D. DeLong, D. Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
characteristic curves: a nonparametric approach" (1988). X. Sun, W. Xu, "Fast implementation of DeLong's algorithm"
(2014) has the way by sorting.

How it works:

1. A fraud's loss is the share of genuine payments with a higher score; payments with the same score count half. A
   genuine payment's loss is the share of frauds with a lower score. The mean of either kind is 1 - area.
2. The area is a mean over frauds and over genuine payments at once. Its variance is the variance of the frauds' losses
   divided by their number, plus the same of the genuine payments.
3. Payments of one score have one loss. Therefore one sort and sums over runs of equal scores are enough.

Example: the scores 0.1, 0.4, 0.4, 0.9 have the labels 0, 1, 0, 1. The frauds' losses are 0.25 and 0, those of the
genuine payments 0 and 0.25. The area is 1 - 0.125 = 0.875, and its variance 0.03125 / 2 + 0.03125 / 2 = 0.03125.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def auc_variance(fraud: npt.NDArray[np.bool_], score: npt.NDArray[np.floating], weight: F64 | None = None) -> float:
    """Returns the variance of the area under the ROC curve. NaN with fewer than two payments of either class.

    All arrays: (row_count,). A weight of 2 does not stand for two payments: the same losses weigh more.
    """
    order = np.argsort(score)
    is_fraud, sorted_score = fraud[order], score[order]
    weights = np.ones(len(order)) if weight is None else weight[order]
    starts = np.flatnonzero(np.append(True, sorted_score[1:] != sorted_score[:-1])[: len(order)])
    frauds, genuine = (_summed(np.where(rows, weights, 0.0), starts) for rows in (is_fraud, ~is_fraud))
    fraud_squares, genuine_squares = (
        _summed(np.where(rows, weights * weights, 0.0), starts) for rows in (is_fraud, ~is_fraud)
    )
    all_frauds, all_genuine = frauds.sum(), genuine.sum()
    if not (all_frauds and all_genuine):
        return float("nan")
    fraud_loss = (all_genuine - np.cumsum(genuine) + genuine / 2) / all_genuine
    genuine_loss = (np.cumsum(frauds) - frauds / 2) / all_frauds
    mean = float(frauds @ fraud_loss) / all_frauds
    return _variance_of_mean(fraud_squares, fraud_loss - mean, all_frauds) + _variance_of_mean(
        genuine_squares, genuine_loss - mean, all_genuine
    )


def variance_of_sums(auc_roc: float, frauds: float, genuine: float, fraud_sum: float, genuine_sum: float) -> float:
    """Returns `auc_variance` from sums of squares that the caller has collected.

    `fraud_sum`: of the numbers of genuine payments above each fraud; `genuine_sum`: of the numbers of frauds below each
    genuine payment.
    """
    if min(frauds, genuine) < 2:
        return float("nan")
    square = (1 - auc_roc) ** 2
    of_frauds = max(0.0, fraud_sum / genuine**2 - frauds * square) / (frauds - 1)
    of_genuine = max(0.0, genuine_sum / frauds**2 - genuine * square) / (genuine - 1)
    return of_frauds / frauds + of_genuine / genuine


def _summed(values: F64, starts: npt.NDArray[np.intp]) -> F64:
    """Returns the sum of each run."""
    sums: F64 = np.add.reduceat(values, starts) if len(starts) else np.zeros(0)
    return sums


def _variance_of_mean(squared_weights: F64, distance: F64, total: float) -> float:
    """Returns the variance of a weighted mean; NaN if it rests on one payment."""
    # The number of payments of equal weight that would be as certain. The mean takes one of them away below.
    size = total**2 / float(squared_weights.sum())
    if size <= 1.0:
        return float("nan")
    return float(squared_weights @ distance**2) / total**2 * size / (size - 1)
