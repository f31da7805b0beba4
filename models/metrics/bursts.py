"""Bursts of fraud: how many payments of one go through before the first is stopped.

A thief who tests stolen cards, or empties one, sends payments within seconds. Features that lag behind do not see the
first attempts when the next ones come. A *burst* is a run of at least BURST_PAYMENTS frauds with the same card,
merchant or device, in which no two neighbours are further apart than BURST_GAP_MS.

Example: a tester sends 40 cards through one shop within two minutes. The decisions approve the first 6, review the
seventh and decline the rest. For the merchant this is one burst of 40 payments, stopped after 6.

If a burst's payments have the same millisecond, those that were stopped count as the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, sqrt

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.intervals import Z_95, Interval
from paywarden.models.metrics.tally import REVIEWED

BURST_PAYMENTS = 3
BURST_GAP_MS = 10 * 60_000


@dataclass(frozen=True)
class BurstMeasures:
    """The bursts of one kind of entity. Means are NaN without bursts."""

    bursts: int
    """Runs of at least three frauds of one entity, at most ten minutes apart."""
    payments: int
    """The frauds in them."""
    stopped: int
    """Bursts in which at least one payment was reviewed or declined."""
    approved_before_stop: float
    """Mean number of payments that were approved before the first was stopped; all, if none was."""
    approved_before_stop_interval: Interval
    """The 95 % interval of the mean. NaN unless two entities or more have bursts."""
    approved_share: float
    """Share of their payments that were approved."""
    approved_minor: int
    """Sum of the approved payments' amounts."""

    def in_words(self, name: str) -> str:
        """Returns a clause for people. `name`: of the kind of entity."""
        low, high = self.approved_before_stop_interval
        interval = "" if isnan(low) else f" (95 % interval {low:.1f} to {high:.1f})"
        return (
            f"{self.bursts:,} {'burst' if self.bursts == 1 else 'bursts'} of one {name} ({self.payments:,} payments): "
            f"{self.approved_before_stop:.1f}{interval} approved before the first is stopped, {self.stopped:,} stopped"
        )


def measure_bursts(
    entity: NDArray[np.int32],
    time_ms: NDArray[np.int64],
    action: NDArray[np.int8],
    amount_minor: NDArray[np.int64],
) -> BurstMeasures:
    """Measure the bursts of one kind of entity. All of shape (frauds,); `entity` is -1 for none."""
    rows = np.flatnonzero(entity >= 0)
    rows = rows[np.lexsort((action[rows] < REVIEWED, time_ms[rows], entity[rows]))]
    begins = np.ones(len(rows), dtype=bool)
    begins[1:] = (entity[rows][1:] != entity[rows][:-1]) | (np.diff(time_ms[rows]) > BURST_GAP_MS)
    run = np.cumsum(begins) - 1
    size = np.bincount(run)
    kept = size[run] >= BURST_PAYMENTS
    rows, run = rows[kept], run[kept]
    approved = action[rows] < REVIEWED
    _, run, size = np.unique(run, return_inverse=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(size) - size, size)
    # The place of the first payment that was stopped; the burst's size if none was.
    until = size.copy()
    np.minimum.at(until, run[~approved], place[~approved])
    count = len(size)
    first_of_run = rows[np.cumsum(size) - size]
    return BurstMeasures(
        bursts=count,
        payments=len(rows),
        stopped=int((until < size).sum()),
        approved_before_stop=float(until.mean()) if count else float("nan"),
        approved_before_stop_interval=_mean_interval(until, entity[first_of_run]),
        approved_share=float(approved.mean()) if count else float("nan"),
        approved_minor=int(amount_minor[rows][approved].sum()),
    )


def _mean_interval(value: NDArray[np.int64], entity: NDArray[np.int32]) -> Interval:
    """Returns the 95 % interval of the mean of some bursts, those of one entity taken as one observation."""
    entities, number = np.unique(entity, return_inverse=True)
    if len(entities) < 2:
        return float("nan"), float("nan")
    mean = float(value.mean())
    # In order of size, so that the sum does not depend on how the source numbers its entities.
    distance = np.sort(np.bincount(number, value - mean))
    error = sqrt(float(distance @ distance) * len(entities) / (len(entities) - 1)) / len(value)
    return max(0.0, mean - Z_95 * error), mean + Z_95 * error
