"""Propose how much to explore in each band of scores, from what the explored payments turned out to be.

The share of `[exploration]` is the same for all payments that would be declined. Most of them are frauds, as the score
says, and their labels teach nothing. Where many explored payments were genuine, the policy errs:

    declined with a score    explored    genuine    share of genuine    share before    share proposed
    below 0.716                    25         11        27 % to 63 %            0.02             0.036
    from 0.716                     25          3         4 % to 30 %            0.02             0.017
    from 0.8621                    25          0         0 % to 13 %            0.02            0.0075

1. The explored payments are cut into bands of scores with equally many of them, at least EXPLORED_MIN each.
2. The yield of a band is the share of genuine payments in it. A payment weighs 1 / propensity. The upper end of the
   95 % interval counts, so that a band of which little is known is explored until it is known.
3. Shares are proportional to yields, between BOUND times less and BOUND times more than the share of `[exploration]`.
   The factor is the one with which all bands together put as much money at risk as that share would.

The floor keeps every propensity above 0: the value of a policy (models/metrics/policy_value.py) stays unbiased, and a
band in which nothing was learnt is still seen to change. The result depends on nothing but matured labels. It is a
part of the policy, so a version of the registry holds it, and each decision has its exact propensity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.intervals import Interval, wilson_interval
from paywarden.models.metrics.propensity import effective_size
from paywarden.models.policy.policy import SHARE_MAX, ConfiguredShare
from paywarden.schemas.errors import Misconfigured

EXPLORED_MIN = 20
"""Explored payments with a label that a band must have."""
BANDS_MAX = 5
BOUND = 4.0
"""A weight of 1 / propensity is at most this many times that of one share for all, so intervals stay usable."""
_DIGITS = 4


class ExploredPayments(NamedTuple):
    """Payments that exploration approved and whose label is known. All arrays: (payments,)."""

    score: NDArray[np.float64]
    genuine: NDArray[np.bool_]
    # Minor units of the reference currency.
    amount: NDArray[np.int64]
    propensity: NDArray[np.float64]


@dataclass(frozen=True)
class BandYield:
    """What the explored payments of a band turned out to be, and the share proposed for it."""

    score_from: float
    explored: int
    genuine: int
    genuine_share: float
    """Weighed by 1 / propensity: of all payments that would be declined."""
    genuine_share_interval: Interval
    share: float

    def in_words(self) -> str:
        """Returns a line for people."""
        low, high = self.genuine_share_interval
        return (
            f"score from {self.score_from:g}: {self.genuine} of {self.explored} explored were genuine, "
            f"{self.genuine_share:.1%} ({low:.1%} to {high:.1%}) of the declined: share {self.share:g}"
        )


def propose_shares(payments: ExploredPayments, share: float) -> list[BandYield]:
    """Returns the bands in order of score; `share`: that of `[exploration]`, above 0.

    Raises Misconfigured with fewer explored payments than two bands need.
    """
    count = len(payments.score)
    if count < 2 * EXPLORED_MIN:
        raise Misconfigured(f"wanted at least {2 * EXPLORED_MIN} explored payments with a known label, got {count}")
    cuts = np.arange(1, min(BANDS_MAX, count // EXPLORED_MIN)) / min(BANDS_MAX, count // EXPLORED_MIN)
    # A cut that rounding moves or that many payments share makes bands unequal, or one fewer.
    starts = np.unique([0.0, *np.round(np.quantile(payments.score, cuts), _DIGITS)])
    band = np.searchsorted(starts, payments.score, side="right") - 1
    starts, band = starts[np.unique(band)], np.unique(band, return_inverse=True)[1]
    starts[0] = 0.0
    weight = 1.0 / payments.propensity
    of_band = [np.flatnonzero(band == number) for number in range(len(starts))]
    genuine = [float(weight[rows] @ payments.genuine[rows] / weight[rows].sum()) for rows in of_band]
    intervals = [
        wilson_interval(each, effective_size(weight[rows])) for each, rows in zip(genuine, of_band, strict=True)
    ]
    money = np.bincount(band, weights=weight * payments.amount).astype(np.float64)
    shares = _shares(np.array([high for _, high in intervals]), money, share)
    return [
        BandYield(float(start), len(rows), int(payments.genuine[rows].sum()), each, interval, asked)
        for start, rows, each, interval, asked in zip(starts, of_band, genuine, intervals, shares, strict=True)
    ]


def configured_shares(bands: list[BandYield]) -> tuple[ConfiguredShare, ...]:
    """Returns the bands as a policy holds them."""
    return tuple(ConfiguredShare(each.score_from, each.share) for each in bands)


def _shares(yields: NDArray[np.float64], money: NDArray[np.float64], share: float) -> list[float]:
    """Returns shares proportional to yields, within the bounds, that put as much money at risk as one share for all."""
    floor, ceiling = share / BOUND, min(SHARE_MAX, share * BOUND)
    low, high = 0.0, ceiling / float(yields.min())
    for _ in range(60):
        factor = (low + high) / 2
        at_risk = float(np.clip(factor * yields, floor, ceiling) @ money)
        low, high = (factor, high) if at_risk <= share * float(money.sum()) else (low, factor)
    # Rounded down, and never to 0.
    return [
        max(float(f"{each:.2g}"), floor) if each > floor else floor for each in np.clip(low * yields, floor, ceiling)
    ]
