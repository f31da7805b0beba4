"""Counts about the data, in bounded memory, without a value of an id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paywarden.features.tables.profile import CategoryCounts, HashCounts, NumberSample, TableProfile
from paywarden.models.replay.report.table_page import table_page
from paywarden.schemas.payment_fields import TABLE_ALONE
from tests.unit.features.tables.tables import HEAD, convert, csv_of, mapping_with


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
    import pyarrow as pa

    counts = CategoryCounts()
    counts.add(pa.array([str(number) for number in range(300)]), np.zeros(300, dtype=np.int8))
    assert counts.values is None


def test_the_page_names_categories_and_no_id(tmp_path: Path) -> None:
    rows = [
        f"pay-{n},2026-05-{1 + n % 20:02}T12:00:00Z,secret-card-{n % 3},secret-shop,{n}.00,{int(n % 9 == 0)},<b>{n % 2}"
        for n in range(40)
    ]
    profile = TableProfile(TABLE_ALONE)
    table = csv_of(*rows, "bad", head=HEAD + ",entry")
    _, report = convert(tmp_path, table, mapping_with(channel='"entry"'), profile=profile)
    page = table_page(profile, report, ["table.csv"])
    assert (profile.payments, profile.entities["card_id"].distinct, len(profile.days)) == (40, 3, 20)
    assert "secret" not in page
    assert "pay-" not in page
    assert "&lt;b&gt;1" in page
    assert "has 1 cell; wanted 7" in page
    assert "Only 5 frauds" in page
