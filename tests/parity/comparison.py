"""Compares vectors to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def same_bits(left: NDArray[np.float32], right: NDArray[np.float32]) -> bool:
    """Returns whether two arrays of float32 hold the same bits. Any two NaNs count as equal."""
    assert left.dtype == right.dtype == np.float32
    if left.shape != right.shape:
        return False
    both_missing = np.isnan(left) & np.isnan(right)
    same = np.ascontiguousarray(left).view(np.uint32) == np.ascontiguousarray(right).view(np.uint32)
    return bool((same | both_missing).all())


def differing(
    names: Sequence[str], got: NDArray[np.float32], wanted: NDArray[np.float32]
) -> Iterator[tuple[int, str, float, float]]:
    """Returns (row, feature, got, wanted) for each difference: the message of a failed test."""
    for row in range(len(wanted)):
        for column, name in enumerate(names):
            if not same_bits(got[row, column : column + 1], wanted[row, column : column + 1]):
                yield row, name, float(got[row, column]), float(wanted[row, column])
