"""Counts about the data, without a value of an id."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from paywarden.features.catalogue.fields import Payment, integer
from paywarden.features.tables import profile as module
from paywarden.features.tables.profile import EntityCounts, TableProfile
from tests.unit.features.tables.tables import HEAD, MAY_1_NOON_MS, convert, csv_of, mapping_with

HOUR_MS = 3_600_000


def test_a_profile_counts_the_payments_that_stay(tmp_path: Path) -> None:
    # Card c1 has three payments, card c2 one; a row comes twice, and one has no age.
    rows = [
        "p1,2026-05-01T12:00:00Z,c1,m1,1.00,0,ecom,7",
        "p2,2026-05-01T13:00:00Z,c1,m1,2.00,1,pos,9",
        "p3,2026-05-02T12:00:00Z,c2,m2,4.00,?,ecom,",
        "p4,2026-05-02T14:00:00Z,c1,m1,3.00,0,,8",
    ]
    payment = Payment(integer("age", 1, unit="days", least=0, most=9)).fields
    profile = TableProfile(payment)
    mapping = mapping_with(channel='"entry"', age='"age"').replace('["0"]', '["0"]\nunknown = ["?"]')
    convert(tmp_path, csv_of(*rows, rows[0], head=f"{HEAD},entry,age"), mapping, payment=payment, profile=profile)
    assert (profile.payments, profile.missing["channel"], profile.missing["age"]) == (4, 1, 1)
    assert profile.entities["card_id"] == EntityCounts([(1, 1), (3, 1)])
    assert profile.categories["channel"] == {"ecom": (2, 0, 1), "pos": (1, 1, 0)}
    assert profile.amounts["EUR"][1][0::3] == [100, 250, 400]
    assert profile.numbers["age"][0::3] == [7, 8, 9]
    day = MAY_1_NOON_MS // module.DAY_MS
    assert profile.days == {day: (2, 1, 1), day + 1: (2, 0, 1)}
    assert profile.gaps == [(23 * HOUR_MS, MAY_1_NOON_MS + HOUR_MS), (2 * HOUR_MS, MAY_1_NOON_MS + 24 * HOUR_MS),
                            (HOUR_MS, MAY_1_NOON_MS)]  # fmt: skip
    # Labels are known after seven days.
    assert {label: counts.tolist()[5] for label, counts in profile.delays.items()} == {1: 1, 0: 2}


def test_quantiles_of_many_numbers_are_of_a_sample_with_exact_ends(tmp_path: Path) -> None:
    profile = TableProfile(Payment().fields)
    rows = [f"p{n},2026-05-01,c{n},m,{n}.00,0" for n in range(3000)]
    with patch.object(module, "_NUMBERS", module._NUMBERS.replace(str(module.SAMPLE_MAX), "500")):
        convert(tmp_path, csv_of(*rows), mapping_with(), profile=profile)
    payments, quantiles = profile.amounts["EUR"]
    assert (payments, quantiles[0], quantiles[-1]) == (3000, 0, 299_900)
    assert 100_000 < quantiles[3] < 200_000


def test_a_field_of_too_many_values_is_no_category(tmp_path: Path) -> None:
    profile = TableProfile(Payment().fields)
    rows = [f"p{n},2026-05-01,c{n},m,1.00,0,e{n}" for n in range(201)]
    convert(tmp_path, csv_of(*rows, head=f"{HEAD},entry"), mapping_with(channel='"entry"'), profile=profile)
    assert profile.categories["channel"] is None


def test_quantiles_of_payments_count_each_value_once() -> None:
    counts = EntityCounts([(1, 1), (2, 2), (3, 1)])
    assert (counts.distinct, counts.once, counts.quantiles([0.0, 0.5, 1.0])) == (4, 0.25, [1, 2, 3])
