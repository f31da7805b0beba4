"""Episodes: runs of an entity's payments during which its `episode` feature is 1 or more.

    value of merchant_episode    0.2   0.7   1.3   1.9   2.2   0.1   …two quiet hours…   1.1
                                             └── episode 1 ──┘                            └ episode 2

`features/catalogue/entity_words/episodes.py` has the feature. Payments with a value of 1 or more belong together if no
quiet time of QUIET_MS lies between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUIET_MS = 2 * 3_600_000
"""An episode has ended when the feature was below 1 for this long. Attacks pause for minutes, not for hours."""
IS_ON = 1.0
"""The value of an `episode` feature from which an episode is on."""
# An entity and a time are one number, in this order. Times have 42 bits.
_TIME_BITS = 42


@dataclass(frozen=True)
class Episodes:
    """Episodes in the order of their begins. All of shape (episodes,)."""

    entity: NDArray[np.int64]
    """The number of the entity."""
    begin_ms: NDArray[np.int64]
    end_ms: NDArray[np.int64]
    payments: NDArray[np.int64]
    """The payments while it was on."""
    approved: NDArray[np.int64]
    amount_minor: NDArray[np.int64]
    """The sum of their amounts."""
    approved_minor: NDArray[np.int64]
    """The sum of the approved payments' amounts: the episode's cost."""

    def __len__(self) -> int:
        return len(self.entity)


def episodes_of(
    entity: NDArray[np.integer],
    time_ms: NDArray[np.int64],
    value: NDArray[np.float32],
    is_approved: NDArray[np.bool_],
    amount_minor: NDArray[np.int64],
) -> Episodes:
    """Cut episodes from payments in any order, all of shape (payments,); `entity` is -1 for none."""
    rows = np.flatnonzero((value >= IS_ON) & (entity >= 0))
    rows, first = runs_of(entity, time_ms, rows)
    last = np.append(first[1:], len(rows)) - 1 if len(rows) else first
    approved, amount = is_approved[rows].astype(np.int64), np.maximum(0, amount_minor[rows])

    def sums(column: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.add.reduceat(column, first) if len(rows) else np.zeros(0, dtype=np.int64)

    found = Episodes(
        entity=entity[rows[first]].astype(np.int64),
        begin_ms=time_ms[rows[first]],
        end_ms=time_ms[rows[last]],
        payments=last - first + 1,
        approved=sums(approved),
        amount_minor=sums(amount),
        approved_minor=sums(amount * approved),
    )
    order = np.lexsort((found.entity, found.begin_ms))
    return Episodes(*(getattr(found, name)[order] for name in Episodes.__dataclass_fields__))


def runs_of(
    entity: NDArray[np.integer], time_ms: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns rows by entity and time, and where each run of an entity begins: after QUIET_MS without a row of it."""
    rows = rows[np.lexsort((time_ms[rows], entity[rows]))]
    begins = np.ones(len(rows), dtype=np.bool_)
    begins[1:] = (np.diff(entity[rows]) != 0) | (np.diff(time_ms[rows]) >= QUIET_MS)
    return rows, np.flatnonzero(begins)


def entity_times(entity: NDArray[np.integer], time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns entities, 0 or more, with times as one ascending number each, for `are_without`."""
    return np.sort(entity.astype(np.int64) << _TIME_BITS | time_ms)


def are_without(
    times: NDArray[np.int64], entity: NDArray[np.int64], first_ms: NDArray[np.int64], last_ms: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Returns which spans of entities, both ends included, have none of their `entity_times`."""
    begin = np.searchsorted(times, entity << _TIME_BITS | np.maximum(0, first_ms))
    return np.asarray(begin == np.searchsorted(times, entity << _TIME_BITS | last_ms, side="right"))
