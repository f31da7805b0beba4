from __future__ import annotations

import numpy as np
import pytest

from models.distances import distances


def test_the_same_histogram_is_no_distance_away() -> None:
    counts = np.array([1_000, 3_000, 6_000])
    assert distances(counts, 2 * counts) == pytest.approx({"psi": 0, "js": 0, "ks": 0}, abs=1e-6)


def test_what_has_nothing_in_common_is_as_far_away_as_can_be() -> None:
    found = distances(np.array([10**9, 0]), np.array([0, 10**9]))
    assert found["js"] == pytest.approx(1, abs=1e-6)
    assert found["ks"] == 1
    assert found["psi"] > 20


def test_distances_are_those_of_their_definitions() -> None:
    # Shares 0.5, 0.5 against 0.4, 0.6.
    found = distances(np.array([5 * 10**8, 5 * 10**8]), np.array([4 * 10**8, 6 * 10**8]))
    assert found["psi"] == pytest.approx(-0.1 * np.log(0.8) + 0.1 * np.log(1.2), abs=1e-6)
    assert found["ks"] == pytest.approx(0.1)
    entropy = -0.45 * np.log2(0.45) - 0.55 * np.log2(0.55)
    assert found["js"] == pytest.approx(entropy - (1 + (-0.4 * np.log2(0.4) - 0.6 * np.log2(0.6))) / 2, abs=1e-6)


def test_an_empty_histogram_says_nothing() -> None:
    assert distances(np.array([0, 0]), np.array([1, 2])) == {"psi": 0.0, "js": 0.0, "ks": 0.0}
