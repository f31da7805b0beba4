"""Bins and segments in which decisions are counted."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paywarden.models.drift.binning import FEATURE_BINS, MISSING, Binning

INFINITY = float("inf")
EDGES = np.array([[0.0, 1.0] + [INFINITY] * (FEATURE_BINS - 3)], dtype=np.float32)
BINNING = Binning(np.array([0.1, 0.5]), EDGES, (("pos", "ecom"), ("DE",), ()))


def test_features_have_bins_and_a_count_of_missing_values() -> None:
    vectors = np.array([[-5.0], [0.0], [0.5], [1.0], [1e30], [np.nan]], dtype=np.float32)
    assert BINNING.bins_of_features(vectors)[:, 0].tolist() == [0, 1, 1, 2, 2, MISSING]


@given(hnp.arrays(np.float32, (7, 1), elements=st.floats(width=32)))
def test_every_value_has_a_place(vectors: np.ndarray) -> None:
    bins = BINNING.bins_of_features(vectors)
    assert (bins <= MISSING).all()
    assert ((bins == MISSING) == np.isnan(vectors)).all()
