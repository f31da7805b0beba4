"""The page of charts: shares with intervals, young labels apart, CSV, roles, and segments with hostile names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from paywarden.models.metrics.intervals import wilson_interval
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.outcome_charts import OutcomeCharts
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
from paywarden.streams.decision_index.tallies import DAY_MS
from tests.services.product.console import NOW_MS, console_under_test
from tests.unit.streams.decision_index.test_episodes import made

HOSTILE = "<script>alert(1)</script>"


class World:
    """A console over ten payments of 20 days ago, one of them a fraud and four declined, and one payment of today."""

    def __init__(self, folder: Path) -> None:
        self.database = DuckDbDatabase(folder / "index.duckdb")
        index = DecisionIndex(self.database, worth=lambda minor, _currency, _time: minor)
        old = {"decided_time_ms": NOW_MS - 20 * DAY_MS, "merchant_id": HOSTILE}
        decisions = [made(number, 0, **old, action="decline" if number < 4 else "approve") for number in range(10)]
        decisions.append(made(10, 0, decided_time_ms=NOW_MS - 60_000, country="BR"))
        outcomes = [("p1", "genuine"), ("p2", "fraud"), ("p9", "fraud")]
        with self.database.transaction() as transaction:
            index.add_decisions(transaction, [Stored(one, b"") for one in decisions])
            index.add_outcomes(
                transaction,
                [{"payment_id": p, "outcome_time_ms": NOW_MS, "label": label, "source": ""} for p, label in outcomes],
            )
        parts = index, ReviewQueue(self.database, ReviewRules())
        opened = OpenedIndex(lambda: nullcontext(parts), None, now_ms=lambda: NOW_MS)
        self.sections = (OutcomeCharts(opened, 7).section(),)
        self.console = console_under_test(folder / "console")

    def get(self, person: str, address: str, status: int = 200) -> str:
        answer = self.console.browser(self.sections, person).get(address)
        assert answer.status_code == status
        return answer.text

    def rows(self, address: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.get("demo-analyst", address))))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made_world = World(tmp_path)
    yield made_world
    made_world.database.close()


def test_the_csv_has_shares_with_their_wilson_intervals(world: World) -> None:
    row, young = world.rows("/charts/csv")
    assert (row["payments"], row["frauds"], row["fraud_bp"]) == ("10", "2", "2000.0")
    low, high = wilson_interval(0.2, 10)
    assert (float(row["fraud_bp_low"]), float(row["fraud_bp_high"])) == pytest.approx((low * 1e4, high * 1e4), abs=1e-3)
    # One of six payments that were not declined is a fraud. One of two declines with an outcome is genuine.
    assert float(row["loss_bp"]) == pytest.approx(10_000 / 6, abs=1e-3)
    assert (row["declined_percent"], row["false_positive_percent"]) == ("40.0", "50.0")
    assert (row["yield_percent"], row["review_s"]) == ("", "")
    assert (row["is_young"], young["is_young"]) == ("False", "True")
    assert young["fraud_bp"] == "0.0"


def test_young_periods_are_drawn_apart_and_named(world: World) -> None:
    page = world.get("demo-analyst", "/charts")
    assert page.count("young: outcomes still come in") == 2
    assert page.count('class="dot was"') == 2
    assert "are in</td>" in page
    assert "still come in</td>" in page
    # Declines wait for no outcome: both days are drawn alike.
    declines = page.partition('id="declined_percent"')[2].partition("</section>")[0]
    assert declines.count('class="dot now"') == 2


def test_links_and_csv_keep_the_filters_of_a_segment(world: World) -> None:
    page = world.get("demo-analyst", "/charts?by=week&country=BR&merchant_id=")
    assert 'href="/charts?by=week&amp;country=BR#fraud_bp"' in page
    assert 'href="/charts/csv?by=week&amp;country=BR"' in page
    (row,) = world.rows("/charts/csv?by=week&country=BR")
    assert row["payments"] == "1"
    assert "meets this" in world.get("demo-analyst", "/charts?currency=XXX")


def test_a_hostile_name_of_a_segment_stays_text(world: World) -> None:
    page = world.get("demo-analyst", f"/charts?merchant_id={HOSTILE}")
    assert "<script>alert" not in page
    assert "merchant_id &lt;script&gt;alert(1)" in page
    assert world.rows(f"/charts/csv?merchant_id={HOSTILE}")[0]["payments"] == "10"
    world.get("demo-analyst", "/charts?by=year", status=400)
    world.get("demo-analyst", "/charts?card_id=c1", status=400)


def test_everybody_sees_charts_and_some_roles_take_the_csv(world: World) -> None:
    assert "/charts/csv" not in world.get("demo-operator", "/charts")
    world.get("demo-operator", "/charts/csv", status=403)
    for person in ("demo-lead", "demo-auditor"):
        assert "/charts/csv" in world.get(person, "/charts")
        world.get(person, "/charts/csv")
