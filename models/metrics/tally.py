"""Count payments and amounts by group, action and label: the basis of money, precision and recall.

A group can be a day, a channel, or all rows together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# An action's number, as in models/policy/policy.py, from the mildest to the strictest.
APPROVED, REVIEWED, DECLINED = range(3)
ACTION_COUNT = 3
GENUINE, FRAUD = range(2)
# Rows processed at once, so that temporary arrays are small compared with the columns.
_ROWS = 1 << 18


@dataclass(frozen=True)
class Tally:
    """Payments and amounts. Both arrays: (groups, ACTION_COUNT, 2), int64; the last axis is GENUINE, FRAUD."""

    count: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]


def tally(
    group: npt.NDArray[np.integer],
    group_count: int,
    action: npt.NDArray[np.integer],
    fraud: npt.NDArray[np.bool_],
    amount_minor: npt.NDArray[np.int64],
) -> Tally:
    """Count rows. All arrays: (row_count,). `group` holds numbers from 0 to group_count - 1.

    Amounts are exact up to 2**53 minor units per cell, about ninety thousand billion euros.
    """
    size = group_count * ACTION_COUNT * 2
    count, amount = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for first in range(0, len(group), _ROWS):
        part = slice(first, first + _ROWS)
        cell = (group[part].astype(np.int64) * ACTION_COUNT + action[part]) * 2 + fraud[part]
        count += np.bincount(cell, minlength=size)
        amount += np.bincount(cell, weights=amount_minor[part], minlength=size).astype(np.int64)
    shape = (group_count, ACTION_COUNT, 2)
    return Tally(count.reshape(shape), amount.reshape(shape))
