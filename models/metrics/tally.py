"""Payments and their amounts counted by group, action and label: what money, precision and recall are made of.

A group is whatever rows are told apart by: a day, a channel, or all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# An action's number, as in models/policy/policy.py, from the mildest to the strictest.
APPROVED, REVIEWED, DECLINED = range(3)
ACTION_COUNT = 3
GENUINE, FRAUD = range(2)
# Looked at together: what is made of them is then small beside the columns.
_ROWS = 1 << 18


@dataclass(frozen=True)
class Tally:
    """Both arrays have shape (groups, ACTION_COUNT, 2), int64; the last axis is GENUINE and FRAUD."""

    count: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]


def tally(
    group: npt.NDArray[np.integer],
    group_count: int,
    action: npt.NDArray[np.integer],
    fraud: npt.NDArray[np.bool_],
    amount_minor: npt.NDArray[np.int64],
) -> Tally:
    """Count rows; all arrays have shape (row_count,), `group` holds 0 to group_count - 1.

    Amounts are exact up to 2**53 minor units a cell, some ninety thousand billion euros.
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
