"""Bursts of fraud: how many payments of one go through before the first is stopped.

A thief who tests stolen cards, or empties one, sends payments within seconds. Features that lag behind do not see the
first attempts when the next ones come. A *burst* is a run of at least BURST_PAYMENTS frauds with the same card,
merchant or device, in which no two neighbours are further apart than BURST_GAP_MS.

Example: a tester sends 40 cards through one shop within two minutes. The decisions approve the first 6, review the
seventh and decline the rest. For the merchant this is one burst of 40 payments, stopped after 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    """Mean number of payments approved before the first stop; all without a stop."""
    approved_share: float
    """Share of their payments that were approved."""
    approved_minor: int
    """Sum of the approved payments' amounts."""


def measure_bursts(
    entity: NDArray[np.int32],
    time_ms: NDArray[np.int64],
    fraud: NDArray[np.bool_],
    action: NDArray[np.int8],
    amount_minor: NDArray[np.int64],
) -> BurstMeasures:
    """Measure the bursts of one kind of entity. All shape (payments,), times ascending; `entity` is -1 for none."""
    rows = np.flatnonzero(fraud & (entity >= 0))
    # By entity, then by time.
    rows = rows[np.argsort(entity[rows], kind="stable")]
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
    return BurstMeasures(
        bursts=count,
        payments=len(rows),
        stopped=int((until < size).sum()),
        approved_before_stop=float(until.mean()) if count else float("nan"),
        approved_share=float(approved.mean()) if count else float("nan"),
        approved_minor=int(amount_minor[rows][approved].sum()),
    )
