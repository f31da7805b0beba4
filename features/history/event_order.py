"""The order of a chunk's events, and their shares for threads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def place_of(payment: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the places of payments among events. Everything known before payment r has the even place 2 r."""
    return 2 * payment + 1


def order_by_code(code: NDArray[np.integer], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the order by code, and by place within a code. Codes are at least -1; both have shape (rows,).

    np.lexsort gives the same order and takes five times as long: NumPy sorts numbers of 16 bits without comparing them,
    and places are almost in order already.
    """
    order = np.argsort(place, kind="stable")
    rest = code[order].astype(np.int64) + 1
    while True:
        by_digit = np.argsort(rest.astype(np.uint16), kind="stable")
        order, rest = order[by_digit], rest[by_digit] >> 16
        if rest.max(initial=0) == 0:
            return order


def even_shares(groups: NDArray[np.int64], count: int) -> list[slice]:
    """Returns runs of groups, at most `count`, with about equally many events each. No run is empty."""
    cuts = np.searchsorted(groups, np.linspace(0, groups[-1], count + 1)[1:-1])
    bounds = [0, *cuts.tolist(), len(groups) - 1]
    return [slice(start, end) for start, end in pairwise(bounds) if end > start]
