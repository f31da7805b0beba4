"""The page about a table of payments."""

from __future__ import annotations

from pathlib import Path

from paywarden.features.tables.profile import DELAY_EDGES_DAYS, TableProfile
from paywarden.models.replay.report.table_page import table_page
from paywarden.schemas.payment_fields import TABLE_ALONE
from tests.unit.features.tables.tables import HEAD, convert, csv_of, mapping_with


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


def test_the_median_delay_is_told_as_the_bin_it_is_in(tmp_path: Path) -> None:
    """Labels that all come after exactly 30 days have no median "within 45 days"."""
    rows = [f"pay-{n},2026-05-{1 + n % 20:02}T12:00:00Z,card-{n % 3},shop,{n}.00,{int(n % 9 == 0)}" for n in range(40)]
    profile = TableProfile(TABLE_ALONE)
    _, report = convert(tmp_path, csv_of(*rows), mapping_with(), profile=profile)
    for counts in profile.delays.values():
        counts[:] = 0
        counts[DELAY_EDGES_DAYS.index(30)] = 7
    assert "the median delay is 30 to 45 days" in table_page(profile, report, ["table.csv"])
