"""The value of a policy that never decided live, from the payments whose labels exploration let us see.

    payment   policy that served       label seen with      stands for     the policy on trial     gains
    p1        approved                 propensity 1         1 payment      approves                0
    p2        declined, but the coin   propensity 0.02      50 payments    reviews; it is fraud    its amount - a review
    p3        declined                 no label             (p2 stands for it)

The label of a payment says what each action would have gained (models/metrics/costs.py). So the value of a policy is
the mean of the gains with weights 1 / propensity, the self-normalised estimator (A. Swaminathan, T. Joachims, "The
self-normalized estimator for counterfactual learning", 2015). No weight is cut off: the interval would not know of the
bias.

The interval takes cards as independent. Gains are skewed, because a few payments have large weights and amounts: the
interval is that of a normal distribution after a transformation that removes the skew (P. Hall, "On the removal of
skewness by transformation", 1992). A normal interval would lie too low.

Payments that had no chance of a label, such as those that rules decline, are left out: nothing is known about them.
With fewer than EXPLORED_MIN payments of a propensity below 1 there is no value, as its interval would be too narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.intervals import Z_95, Interval
from paywarden.models.metrics.propensity import effective_size
from paywarden.models.metrics.tally import DECLINED, REVIEWED

PER = 1000
"""Values are of this many payments."""
EXPLORED_MIN = 20
"""From 20 on, 91 to 95 of 100 intervals hold the truth on simulated worlds."""


@dataclass(frozen=True)
class PolicyValue:
    """The net value of 1,000 payments by a policy, with 1 / propensity as weights."""

    payments: int
    """Measured payments."""
    effective_payments: float
    """Payments of equal weight that would make the value as certain."""
    value_minor: float
    """The net value of 1,000 payments, compared with approving all."""
    value_minor_interval: Interval
    """Its 95 % interval, with cards as independent of each other."""


def gains(
    action: NDArray[np.int8], fraud: NDArray[np.bool_], amount_minor: NDArray[np.int64], costs: CostSettings
) -> NDArray[np.float64]:
    """Returns the gain of each payment, compared with its approval. All arrays: (payments,)."""
    saved = np.where(fraud, amount_minor * costs.fraud_loss_share, 0.0)
    lost = np.where(fraud, 0.0, amount_minor * costs.declined_margin_share)
    return np.where(
        action == REVIEWED, saved - costs.review_cost_minor, np.where(action == DECLINED, saved - lost, 0.0)
    )


def policy_value(
    gain: NDArray[np.float64], propensity: NDArray[np.float64], card: NDArray[np.int32]
) -> PolicyValue | None:
    """Returns the value; None with fewer than EXPLORED_MIN explored payments.

    All arrays: (payments,). `propensity` is above 0, `card` codes from 0. With the differences of two policies' gains,
    it is the difference of their values.
    """
    if np.count_nonzero(propensity < 1.0) < EXPLORED_MIN:
        return None
    weight = 1.0 / propensity
    mean = float((weight * gain).sum() / weight.sum())
    of_cards = np.bincount(card, weights=weight * (gain - mean)) / weight.sum()
    # Sorted and without zeros: how a source numbers its cards changes no digit.
    low, high = _interval(mean, np.sort(of_cards[of_cards != 0.0]))
    return PolicyValue(len(gain), effective_size(weight), PER * mean, (PER * low, PER * high))


def _interval(mean: float, errors: NDArray[np.float64]) -> Interval:
    """Returns the 95 % interval of a mean. `errors`: what each card adds to its error."""
    spread = math.sqrt(float(errors @ errors))
    skew = float((errors**3).sum()) / spread**3 if spread else 0.0
    low, high = (mean - spread * _studentised(quantile, skew) for quantile in (Z_95, -Z_95))
    return low, high


def _studentised(quantile: float, skew: float) -> float:
    """Returns the quantile of an error divided by its estimated spread, from that of a normal distribution."""
    if abs(skew) < 1e-6:
        return quantile
    return 3.0 * (math.cbrt(1.0 + skew * (quantile - skew / 6.0)) - 1.0) / skew
