"""How far apart two histograms over the same bins are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Added to every bin, so that an empty one is improbable, not impossible.
_PSEUDO_COUNT = 0.5


def distances(reference: NDArray[np.int64], current: NDArray[np.int64]) -> dict[str, float]:
    """`psi`, `js` (Jensen-Shannon divergence in bits, 0 to 1) and `ks` (Kolmogorov-Smirnov, 0 to 1) of counts.

    Both of shape (bins,), in order of the bins. All are 0 when one of them is empty.
    """
    if not reference.sum() or not current.sum():
        return {"psi": 0.0, "js": 0.0, "ks": 0.0}
    p, q = _shares(reference), _shares(current)
    middle = (p + q) / 2
    js = (p @ np.log2(p / middle) + q @ np.log2(q / middle)) / 2
    ks = np.abs(np.cumsum(reference) / reference.sum() - np.cumsum(current) / current.sum()).max()
    return {"psi": float((q - p) @ np.log(q / p)), "js": max(0.0, float(js)), "ks": float(ks)}


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    smooth = counts + _PSEUDO_COUNT
    return np.asarray(smooth / smooth.sum(), dtype=np.float64)
