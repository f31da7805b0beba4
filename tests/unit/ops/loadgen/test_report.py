import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.ops.loadgen.report import RELATIVE_ERROR, LatencyHistogram

SHARES = (0.5, 0.9, 0.99, 0.999)


def histogram_of(seconds: list[float]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for each in seconds:
        histogram.add(each)
    return histogram


def nearest_rank(ordered: list[float], share: float) -> float:
    return ordered[max(0, int(np.ceil(share * len(ordered))) - 1)]


@given(st.lists(st.floats(1e-6, 4000), min_size=1, max_size=200), st.sampled_from(SHARES))
def test_a_quantile_is_exact_or_too_high_by_the_relative_error(values: list[float], share: float) -> None:
    exact_ms = nearest_rank(sorted(values), share) * 1000
    quantile_ms = histogram_of(values).quantile_ms(share)
    assert exact_ms * (1 - 1e-12) <= quantile_ms <= exact_ms * (1 + RELATIVE_ERROR) * (1 + 1e-12)


def test_many_samples_are_as_exact_as_few() -> None:
    values = np.random.default_rng(1).lognormal(-7, 1.5, 100_000)
    histogram = histogram_of(values.tolist())
    assert histogram.count == 100_000
    ordered = np.sort(values).tolist()
    for share in SHARES:
        assert histogram.quantile_ms(share) == pytest.approx(nearest_rank(ordered, share) * 1000, rel=RELATIVE_ERROR)
