from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.metrics.intervals import (
    auc_interval,
    average_precision_interval,
    wilson_interval,
)

SHARES = st.floats(0.0, 1.0)
COUNTS = st.integers(1, 10_000)


@given(SHARES, COUNTS, COUNTS)
def test_an_interval_holds_its_value_and_narrows_with_more_frauds(value: float, frauds: int, genuine: int) -> None:
    for few, many in (
        (wilson_interval(value, frauds), wilson_interval(value, 4 * frauds)),
        (average_precision_interval(value, frauds), average_precision_interval(value, 4 * frauds)),
        (auc_interval(value, frauds, genuine), auc_interval(value, 4 * frauds, 4 * genuine)),
    ):
        assert -1e-12 <= few[0] <= value + 1e-9
        assert value - 1e-9 <= few[1] <= 1 + 1e-12
        assert many[1] - many[0] <= few[1] - few[0] + 1e-9


def test_the_interval_of_an_area_holds_the_truth_as_often_as_it_says() -> None:
    """Scores of frauds and genuine payments are normal, one apart: the true area is 0.7602."""
    random, held = np.random.default_rng(5), 0
    for _ in range(300):
        frauds, genuine = random.normal(1, 1, 25), random.normal(0, 1, 100)
        area = float((frauds[:, None] > genuine).mean())
        low, high = auc_interval(area, 25, 100)
        held += low <= 0.7602 <= high
    assert 0.91 <= held / 300 <= 0.99
