"""Measures of scores with propensity weights (models/metrics/propensity.py), beside the plain ones of a replay.

Example: 100 of 1,000 payments were kept with a chance of 0.1. 60 of them are frauds, beside 10 frauds of the others.
The plain share of frauds is 7 %. Weighted, it is (10 + 60 x 10) / (900 + 100 x 10) = 32 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.auc_variance import auc_variance
from paywarden.models.metrics.curves import MeanCalibration, mean_calibration
from paywarden.models.metrics.evaluation import auc_roc, average_precision
from paywarden.models.metrics.intervals import auc_interval, share_interval
from paywarden.models.metrics.propensity import effective_size, inverse_weights, weight_counts


@dataclass(frozen=True)
class WeightedMeasures:
    """Measures in which each payment stands for 1 / propensity payments, at most `weight_max`."""

    payments: int
    """Measured payments."""
    weight_max: float
    """The largest weight."""
    clipped: int
    """Payments whose weight would be larger."""
    effective_payments: float
    """Payments of equal weight that would make the figures as certain."""
    effective_frauds: float
    """The same for frauds."""
    fraud_share: float
    """Weighted share of frauds."""
    auc_roc: float
    """Weighted area under the ROC curve."""
    auc_roc_interval: tuple[float, float]
    """Its 95 % interval, of the effective numbers."""
    average_precision: float
    """Weighted average precision."""
    average_precision_interval: tuple[float, float]
    """Its 95 % interval, of the effective number of frauds."""
    calibration: MeanCalibration
    """Weighted mean score and share of frauds."""


def weighted_measures(
    propensity: NDArray[np.float64],
    fraud: NDArray[np.bool_],
    score: NDArray[np.float64],
    card: NDArray[np.int32],
    weight_max: float,
) -> WeightedMeasures:
    """Returns the weighted measures of at least one payment. All arrays: (payments,). `card`: codes from 0."""
    counts, weight = weight_counts(propensity, fraud, weight_max), inverse_weights(propensity, weight_max)
    label = fraud.astype(np.int8)
    auc, precision = auc_roc(label, score, weight), average_precision(label, score, weight)
    return WeightedMeasures(
        payments=counts.payments,
        weight_max=weight_max,
        clipped=counts.clipped,
        effective_payments=counts.effective_payments,
        effective_frauds=counts.effective_frauds,
        fraud_share=float(weight[fraud].sum() / weight.sum()),
        auc_roc=auc,
        auc_roc_interval=auc_interval(
            auc, counts.effective_frauds, effective_size(weight[~fraud]), auc_variance(fraud, score, weight)
        ),
        average_precision=precision,
        average_precision_interval=share_interval(precision, counts.effective_frauds),
        calibration=mean_calibration(fraud, score, card, weight),
    )
