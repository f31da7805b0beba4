"""Probabilities of many log-odds at once, to the bit those that `paywarden.models.bundle.bundle.sigmoid` gives of each.

The exponential is the C library's own, as Python's is: NumPy's is another in one of fifty rows, and a row's score must
not depend on whether it was asked about alone. Compiled, so that threads do not wait for each other.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.jit import compiled


def sigmoids(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape (rows,), and so is the result; below -700 it is 0, and of what is not a number."""
    result = np.empty(len(values))
    _fill(values, result)
    return result


@compiled(releases_gil=True)
def _fill(values: NDArray[np.float64], result: NDArray[np.float64]) -> None:
    for row in range(len(values)):
        value = values[row]
        result[row] = 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0
