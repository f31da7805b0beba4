"""Propensity weights: measure as if every payment had had the same chance to be seen.

Labels are often known for a chosen part of the payments: one in ten of those that would be declined is let through to
learn its label, and one in a hundred of the approved ones is reviewed. The column `propensity` of a history says how
likely it was that the payment was kept with its label. A payment stands for 1 / propensity payments like it
(D. Horvitz, D. Thompson, "A generalization of sampling without replacement from a finite universe", 1952).

Weights have a price: with a few large ones, the figures rest on a few payments. A weight is therefore at most
`propensity_weight_max`, and the effective sample size (L. Kish, "Survey Sampling", 1965) says how many equal payments
would give figures as certain: (sum of weights)² / sum of squared weights.

Example: 900 payments were always kept, and 100 with a chance of 0.1. These stand for 1,000, and all for 1,900 payments.
The effective size is 1,900² / (900 + 100 x 100) = 331.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.errors import Misconfigured

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class WeightCounts:
    """The effect of weights on some payments. `clipped`: payments whose weight is `weight_max` and would be larger."""

    payments: int
    weighted: int
    clipped: int
    weight_max: float
    effective_payments: float
    effective_frauds: float

    def in_words(self) -> str:
        """Returns a line for people."""
        return (
            f"propensity: {self.weighted} of {self.payments} payments weigh more, {self.clipped} of them the most, "
            f"{self.weight_max:g}; figures are as certain as with {self.effective_payments:.0f} payments and "
            f"{self.effective_frauds:.0f} frauds of one weight"
        )

    def record(self) -> dict[str, Any]:
        """Returns it as a manifest stores it."""
        return asdict(self)


def require_weight_max(weight_max: float) -> None:
    """Raises Misconfigured for a setting that is no largest weight."""
    if weight_max != 0.0 and not 1.0 <= weight_max < float("inf"):
        raise Misconfigured(f"training.propensity_weight_max: wanted 0, or at least 1, got {weight_max}")


def inverse_weights(propensity: F64, weight_max: float) -> F64:
    """Returns 1 / propensity, at most `weight_max` (at least 1). Propensities are above 0, at most 1: (rows,)."""
    return np.minimum(1.0 / propensity, weight_max)


def effective_size(weight: F64) -> float:
    """Returns how many payments of one weight are as certain as these; 0 without any."""
    return float(weight.sum() ** 2 / (weight @ weight)) if len(weight) else 0.0


def weight_counts(propensity: F64, fraud: NDArray[np.bool_], weight_max: float) -> WeightCounts:
    """Returns the effect of `inverse_weights` on some payments. Both arrays: (rows,)."""
    weight = inverse_weights(propensity, weight_max)
    return WeightCounts(
        payments=len(weight),
        weighted=int(np.count_nonzero(weight > 1.0)),
        clipped=int(np.count_nonzero(1.0 / propensity > weight_max)),
        weight_max=weight_max,
        effective_payments=effective_size(weight),
        effective_frauds=effective_size(weight[fraud]),
    )
