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
@given(both=HISTOGRAMS, times=st.integers(1, 1000))
def test_equal_shares_are_at_no_distance(distance: Distance, both: np.ndarray, times: int) -> None:
    assert np.allclose(distance(both[0], both[0] * times), 0.0, atol=1e-12)


@pytest.mark.parametrize("distance", ALL)
@given(both=HISTOGRAMS)
def test_distances_are_symmetric_and_not_negative(distance: Distance, both: np.ndarray) -> None:
    one, other = both
    assert np.allclose(distance(one, other), distance(other, one))
    assert (distance(one, other) >= -1e-15).all()


@pytest.mark.parametrize("distance", [jensen_shannon, kolmogorov_smirnov])
@given(both=HISTOGRAMS, times=st.integers(1, 1000))
def test_distances_do_not_depend_on_the_number_of_payments(distance: Distance, both: np.ndarray, times: int) -> None:
    assert np.allclose(distance(both[0] * times, both[1]), distance(both[0], both[1]))


@pytest.mark.parametrize("distance", [jensen_shannon, kolmogorov_smirnov])
def test_histograms_without_a_common_bin_have_distance_one(distance: Distance) -> None:
    assert distance(np.array([3, 2, 0, 0]), np.array([0, 0, 1, 9])) == pytest.approx(1.0)


@pytest.mark.parametrize("distance", ALL)
@given(both=HISTOGRAMS)
def test_adding_the_other_comes_no_further_from_it(distance: Distance, both: np.ndarray) -> None:
    one, other = both
    assert (distance(one + other, other) <= distance(one, other) + 1e-9).all()


@pytest.mark.parametrize("distance", ALL)
def test_an_empty_histogram_has_distance_zero(distance: Distance) -> None:
    assert distance(np.zeros((2, 3)), np.array([[1, 0, 4], [0, 0, 0]])).tolist() == [0.0, 0.0]


def test_with_many_payments_psi_is_that_of_the_shares() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    assert psi(p * 1e9, q * 1e9) == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-6)


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
