"""How far apart two histograms over the same bins are: numbers that say how large a change is, not how certain.

All take counts of shape (…, bins) and compare along the last axis. A histogram of nothing is at distance 0 of any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
HistogramArray = NDArray[Any]

SMOOTHING = 0.5
"""Payments a bin that `psi` adds to either histogram."""


def psi(one: HistogramArray, other: HistogramArray) -> F64:
    """The population stability index, Σ (p - q) log(p / q): symmetric, 0 for equal shares, without an upper bound.

    An empty bin would make it infinite. So SMOOTHING payments a bin are added to both, spread over the bins as
    the mean of the two shares is: equal shares stay equal, large counts hardly change, and a handful of payments says
    little.
    """
    p, q = _shares(one), _shares(other)
    added, middle = SMOOTHING * one.shape[-1], (p + q) / 2
    p, q = (
        (share * count + middle * added) / (count + added) for share, count in ((p, _totals(one)), (q, _totals(other)))
    )
    ratio = np.divide(p, q, out=np.ones_like(p), where=middle > 0)
    index: F64 = ((p - q) * np.log(ratio)).sum(axis=-1)
    return np.where(_is_both(one, other), index, 0.0)


def jensen_shannon(one: HistogramArray, other: HistogramArray) -> F64:
    """The Jensen–Shannon divergence in bits: symmetric, 0 for equal shares, 1 for those that have no bin in common."""
    p, q = _shares(one), _shares(other)
    middle = (p + q) / 2
    bits = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.where(_is_both(one, other), np.clip(bits, 0.0, 1.0), 0.0)


def kolmogorov_smirnov(one: HistogramArray, other: HistogramArray) -> F64:
    """The largest difference of the two distribution functions at the edges of bins, 0 to 1."""
    apart = np.abs(np.cumsum(_shares(one) - _shares(other), axis=-1)).max(axis=-1)
    return np.where(_is_both(one, other), np.clip(apart, 0.0, 1.0), 0.0)


def _totals(counts: HistogramArray) -> F64:
    total: F64 = counts.sum(axis=-1, keepdims=True, dtype=np.float64)
    return total


def _shares(counts: HistogramArray) -> F64:
    return counts / np.maximum(_totals(counts), 1e-300)


def _is_both(one: HistogramArray, other: HistogramArray) -> NDArray[np.bool_]:
    """Whether there is something in both."""
    return ((_totals(one) > 0) & (_totals(other) > 0))[..., 0]


def _relative_entropy(p: F64, q: F64) -> F64:
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    bits: F64 = (p * np.log2(ratio)).sum(axis=-1)
    return bits
