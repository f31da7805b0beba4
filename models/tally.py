"""Payments and their amounts counted by group, action and label: what money, precision and recall are made of.

A group is whatever rows are told apart by: a day, a channel, or all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# An action's number, as in scoring/policy.py, from the mildest to the strictest.
APPROVED, REVIEWED, DECLINED = range(3)
ACTION_COUNT = 3
GENUINE, FRAUD = range(2)


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
    cell = (group.astype(np.int64) * ACTION_COUNT + action) * 2 + fraud
    size = group_count * ACTION_COUNT * 2
    shape = (group_count, ACTION_COUNT, 2)
    amount = np.bincount(cell, weights=amount_minor, minlength=size)
    return Tally(np.bincount(cell, minlength=size).reshape(shape), amount.astype(np.int64).reshape(shape))
