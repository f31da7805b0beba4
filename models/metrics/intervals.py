"""Intervals of measures: how far a figure may be from the truth with the frauds that it rests on.

A figure of a handful of frauds says little. With 3 frauds an average precision of 0.33 has the 95 % interval 0.06 to
0.79; with 300 frauds it is 0.28 to 0.39. All intervals take payments as independent of each other. Frauds of one card
come together, so the true intervals are a little wider.
"""

from __future__ import annotations

from math import exp, isnan, log, nan, sqrt

FRAUDS_FEW = 20
"""Figures of fewer frauds are marked, or given with their interval."""

DELONG_PAYMENTS_MIN = 100
"""From this many payments of each class on, the spread of scores alone is a good enough estimate.

With scores of normal distributions and a true area of 0.99, intervals by DeLong hold it in 80 % of draws with 20
frauds, in 90 % with 50, in 92 % with 100 and in 94 % with 300. Those by Hanley and McNeil do in more than 99 %, and are
twice as wide with 300 frauds.
"""

Z_95 = 1.959963984540054
"""The quantile of the normal distribution that leaves 2.5 % on each side."""

Interval = tuple[float, float]
_NOTHING = (float("nan"), float("nan"))


def wilson_interval(share: float, size: float) -> Interval:
    """Returns the 95 % interval of a share of `size` payments.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    spread = Z_95 * sqrt(share * (1 - share) / size + (Z_95 / (2 * size)) ** 2)
    middle, scale = share + Z_95**2 / (2 * size), 1 + Z_95**2 / size
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def share_interval(share: float, size: float) -> Interval:
    """Returns `wilson_interval`, or NaN twice where there is no share."""
    return _NOTHING if isnan(share) or size <= 0 else wilson_interval(share, size)


def average_precision_interval(average_precision: float, frauds: int) -> Interval:
    """Returns the 95 % interval of an average precision: that of a share of the frauds. NaN twice without a fraud.

    Source: K. Boyd, K. Eng, C. Page, "Area under the precision-recall curve: point estimates and confidence intervals"
    (2013).
    """
    return share_interval(average_precision, frauds)


def auc_interval(auc_roc: float, frauds: float, genuine: float, variance: float = nan) -> Interval:
    """Returns the 95 % interval of an area under the ROC curve, on the scale of log-odds. NaN twice for one class.

    `variance` is that of models/metrics/auc_variance.py (DeLong). Without it, or if it is smaller and a class has fewer
    than DELONG_PAYMENTS_MIN payments, the variance is that of areas of this size in general. Source: J. Hanley,
    B. McNeil, "The meaning and use of the area under a ROC curve" (1982).

    An area of exactly 0 or 1 has no spread; it gets the interval of a share of the rarer class.
    """
    if isnan(auc_roc):
        return _NOTHING
    if auc_roc in (0.0, 1.0):
        return wilson_interval(auc_roc, min(frauds, genuine))
    if isnan(variance):
        variance = _usual_variance(auc_roc, frauds, genuine)
    elif min(frauds, genuine) < DELONG_PAYMENTS_MIN:
        variance = max(variance, _usual_variance(auc_roc, frauds, genuine))
    spread = Z_95 * sqrt(variance) / (auc_roc * (1 - auc_roc))
    log_odds = log(auc_roc / (1 - auc_roc))
    # exp overflows above 709; the probability is 0 or 1 there in any case.
    low, high = (1 / (1 + exp(-min(max(end, -700.0), 700.0))) for end in (log_odds - spread, log_odds + spread))
    return low, high


def _usual_variance(auc_roc: float, frauds: float, genuine: float) -> float:
    """Returns the variance of an area whose scores have exponential distributions."""
    square = auc_roc**2
    of_frauds, of_genuine = auc_roc / (2 - auc_roc) - square, 2 * square / (1 + auc_roc) - square
    terms = auc_roc * (1 - auc_roc) + (frauds - 1) * of_frauds + (genuine - 1) * of_genuine
    return terms / (frauds * genuine)
