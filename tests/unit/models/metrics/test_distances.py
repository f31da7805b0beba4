"""Distances between two histograms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paywarden.models.metrics.distances import SMOOTHING, jensen_shannon, kolmogorov_smirnov, psi

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
ALL: list[Distance] = [psi, jensen_shannon, kolmogorov_smirnov]
HISTOGRAMS = hnp.arrays(np.int64, (2, 3, 6), elements=st.integers(0, 1000))


@pytest.mark.parametrize("distance", ALL)
@given(both=HISTOGRAMS)
def test_distances_are_symmetric_and_not_negative(distance: Distance, both: np.ndarray) -> None:
    one, other = both
    assert np.allclose(distance(one, other), distance(other, one))
    assert (distance(one, other) >= -1e-15).all()


@pytest.mark.parametrize("distance", [jensen_shannon, kolmogorov_smirnov])
def test_histograms_without_a_common_bin_have_distance_one(distance: Distance) -> None:
    assert distance(np.array([3, 2, 0, 0]), np.array([0, 0, 1, 9])) == pytest.approx(1.0)


@pytest.mark.parametrize("distance", ALL)
@given(both=HISTOGRAMS)
def test_adding_the_other_comes_no_further_from_it(distance: Distance, both: np.ndarray) -> None:
    one, other = both
    assert (distance(one + other, other) <= distance(one, other) + 1e-9).all()


def test_with_few_payments_psi_is_smoothed_as_documented() -> None:
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    smooth = (p * 4 + SMOOTHING) / (4 + 2 * SMOOTHING)
    assert psi(p * 4, q * 4) == pytest.approx(2 * (smooth[0] - smooth[1]) * np.log(smooth[0] / smooth[1]))


def test_kolmogorov_smirnov_is_exact_at_the_edges() -> None:
    random = np.random.default_rng(3)
    one, other, edges = random.normal(size=500), random.normal(0.3, size=300), np.linspace(-2, 2, 9)
    binned = [np.bincount(np.searchsorted(edges, values, side="right"), minlength=10) for values in (one, other)]
    apart = [abs((one < edge).mean() - (other < edge).mean()) for edge in edges]
    assert kolmogorov_smirnov(*binned) == pytest.approx(max(apart))
