"""The probability of a row has the same bits in a batch and alone."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.bundle.bundle import calibrated, sigmoid


def assert_same_bits(margins: list[float], slope: float, intercept: float) -> None:
    got = calibrated(np.array(margins, dtype=np.float64), slope, intercept)
    wanted = np.array([sigmoid(slope * margin + intercept) for margin in margins], dtype=np.float64)
    assert got.view(np.int64).tolist() == wanted.view(np.int64).tolist()


def test_a_million_varied_margins_have_the_bits_of_the_c_library() -> None:
    rng = np.random.default_rng(1)
    margins = np.concatenate((rng.normal(0, 5, 800_000), rng.uniform(-720, 720, 200_000)))
    assert_same_bits(margins.tolist(), 1.0, 0.0)
    assert_same_bits(margins[::7].tolist(), 1.0487123, -0.3190217)


@given(
    margins=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20),
    slope=st.floats(0.01, 10),
    intercept=st.floats(-10, 10),
)
def test_extreme_margins_have_the_bits_of_the_c_library(margins: list[float], slope: float, intercept: float) -> None:
    edges = [-700.0, math.nextafter(-700.0, 0.0), 709.9, 0.0, -0.0, math.inf, -math.inf, math.nan]
    assert_same_bits(edges, 1.0, 0.0)
    finite = [margin for margin in margins if abs(margin) < 1e300 or not math.isfinite(margin)]
    assert_same_bits(finite, slope, intercept)
