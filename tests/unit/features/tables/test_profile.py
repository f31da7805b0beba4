"""Counts about the data, in bounded memory, without a value of an id."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from paywarden.features.tables.profile import CategoryCounts, HashCounts, NumberSample


def test_counts_beyond_the_limit_are_of_a_sample_of_the_values() -> None:
    counts, hashes = HashCounts(most=1000), np.random.default_rng(1).integers(0, 2**62, 20_000)
    for part in np.array_split(np.repeat(hashes, 3), 7):
        counts.add(part)
    assert not counts.is_exact
    assert counts.distinct == pytest.approx(20_000, rel=0.15)
    assert counts.quantiles([0, 1]) == [3, 3]


def test_counts_within_the_limit_are_exact() -> None:
    counts = HashCounts()
    counts.add(np.array([1, 2, 2, 3]))
    counts.add(np.array([3, 3]))
    assert (counts.distinct, counts.is_exact, counts.quantiles([0.0, 0.5, 1.0])) == (3, True, [1, 2, 3])
    assert counts.once == pytest.approx(1 / 3)


def test_quantiles_of_many_numbers_are_of_a_sample_with_exact_ends() -> None:
    sample, values = NumberSample(), np.arange(250_000, dtype=np.float64)
    for part in np.array_split(values, 3):
        sample.add(part.astype(np.int64), part)
    found = sample.quantiles()
    assert (found[0], found[-1]) == (0, 249_999)
    assert found[3] == pytest.approx(125_000, rel=0.01)


def test_a_field_of_too_many_values_is_no_category() -> None:
    counts = CategoryCounts()
    counts.add(pa.array([str(number) for number in range(300)]), np.zeros(300, dtype=np.int8))
    assert counts.values is None
