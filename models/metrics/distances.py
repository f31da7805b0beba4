"""Distances between two histograms over the same bins. They measure how large a change is, not how certain.

All functions take counts of shape (…, bins), compare along the last axis and return shape (…,). An empty histogram has
the distance 0 from any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
HistogramArray = NDArray[Any]

SMOOTHING = 0.5
"""The payments per bin that `psi` adds to each histogram."""


def psi(one: HistogramArray, other: HistogramArray) -> F64:
    """Returns the population stability index, Σ (p - q) log(p / q): symmetric, 0 for equal shares, unbounded.

    An empty bin would make it infinite. Therefore SMOOTHING payments per bin are added to both histograms, distributed
    like the mean of the two. Equal shares stay equal, large counts hardly change, and a few payments show little.
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
    """Returns the Jensen–Shannon divergence in bits: symmetric, 0 for equal shares, 1 without a common bin.

    Source: J. Lin, "Divergence measures based on the Shannon entropy" (1991).
    """
    p, q = _shares(one), _shares(other)
    middle = (p + q) / 2
    bits = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.where(_is_both(one, other), np.clip(bits, 0.0, 1.0), 0.0)


def kolmogorov_smirnov(one: HistogramArray, other: HistogramArray) -> F64:
    """Returns the Kolmogorov–Smirnov distance: the largest difference of the cumulative shares at the bins' edges."""
    apart = np.abs(np.cumsum(_shares(one) - _shares(other), axis=-1)).max(axis=-1)
    return np.where(_is_both(one, other), np.clip(apart, 0.0, 1.0), 0.0)


def _totals(counts: HistogramArray) -> F64:
    total: F64 = counts.sum(axis=-1, keepdims=True, dtype=np.float64)
    return total


def _shares(counts: HistogramArray) -> F64:
    return counts / np.maximum(_totals(counts), 1e-300)


def _is_both(one: HistogramArray, other: HistogramArray) -> NDArray[np.bool_]:
    """Whether both histograms have a payment."""
    return ((_totals(one) > 0) & (_totals(other) > 0))[..., 0]


def _relative_entropy(p: F64, q: F64) -> F64:
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    bits: F64 = (p * np.log2(ratio)).sum(axis=-1)
    return bits
