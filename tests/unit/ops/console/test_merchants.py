"""The pages about merchants: episodes, the month's ratios, and their CSV."""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paywarden.features.catalogue.attributes import amount
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.merchants import Merchants
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.decision_index.episodes import EpisodeFeatures
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.ledger import MerchantLedger
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
from tests.services.product.console import NOW_MS, console_under_test
from tests.unit.streams.decision_index.test_episodes import made

MERCHANT, DEVICE = Entity("merchant", key="merchant_id"), Entity("device", key="device_id")
MARKS = ((amount < 3_00, 0.02, 5),)
FEATURES = (MERCHANT.episode("merchant_episode", "1h", of=MARKS), DEVICE.episode("device_episode", "1h", of=MARKS))


class World:
    """A console over an index with two episodes, and a merchant that looks like a formula."""

    def __init__(self, folder: Path) -> None:
        self.database = DuckDbDatabase(folder / "index.duckdb")
        features = EpisodeFeatures.of(Catalogue((MERCHANT, DEVICE), FEATURES), "digest")
        self.index = index = DecisionIndex(
            self.database, worth=lambda minor, _currency, _time: minor, features=features
        )
        queue = ReviewQueue(self.database, ReviewRules())
        decisions = [
            self.decided(1, 1.5, 0.0),
            self.decided(2, 2.5, 1.5, device_id="device-of-a-person"),
            self.decided(3, 0.0, 0.0, merchant_id="=SUM(A1)"),
        ]
        with self.database.transaction() as transaction:
            index.add_decisions(transaction, [Stored(each, b"") for each in decisions])
            index.add_outcomes(
                transaction, [{"payment_id": "p1", "outcome_time_ms": NOW_MS, "label": "fraud", "source": "chargeback"}]
            )
        MerchantLedger(self.database, now_ms=lambda: NOW_MS).step()

        @contextmanager
        def opens() -> Iterator[tuple[DecisionIndex, ReviewQueue]]:
            yield index, queue

        self.sections = (Merchants(OpenedIndex(opens, None, now_ms=lambda: NOW_MS)).section(),)
        self.console = console_under_test(folder / "console")

    def decided(self, number: int, *values: float, **changes: Any) -> dict[str, Any]:
        vector = struct.pack("<2f", *values)
        return made(number, 0, **{"vector": vector, "decided_time_ms": NOW_MS - 60_000} | changes)

    def get(self, person: str, address: str) -> str:
        answer = self.console.browser(self.sections, person).get(address)
        assert answer.status_code == 200
        return answer.text


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made_world = World(tmp_path)
    yield made_world
    made_world.database.close()


def test_impossible_amounts_do_not_end_the_ledger(world: World) -> None:
    """The sum of a day did not fit into its column, so no later step counted anything."""
    with world.database.transaction() as transaction:
        huge = [world.decided(number, 0.0, 0.0, amount_minor=2**62) for number in (4, 5)]
        world.index.add_decisions(transaction, [Stored(each, b"") for each in huge])
    MerchantLedger(world.database, now_ms=lambda: NOW_MS).step()
    assert "m1" in world.get("demo-analyst", "/merchants")


def test_the_ledger_shows_ratios_of_the_newest_month(world: World) -> None:
    page = world.get("demo-analyst", "/merchants")
    assert "m1" in page
    # One of two payments is a fraud and a dispute; both came during an episode.
    assert page.count("100.00 %") == 2


def test_the_csv_has_every_merchant_and_no_formula(world: World) -> None:
    rows = list(csv.DictReader(io.StringIO(world.get("demo-analyst", "/merchants/csv"))))
    assert [row["merchant_id"] for row in rows] == ["m1", "'=SUM(A1)"]
    assert (rows[0]["payments"], rows[0]["frauds"], rows[0]["fraud_ratio"]) == ("2", "1", "1.000000")
    assert rows[1]["enumeration_ratio"] == "0.000000"


def test_episodes_show_their_size_and_hide_devices_from_some(world: World) -> None:
    page = world.get("demo-analyst", "/merchants/episodes")
    assert page.count("goes on") == 2
    assert "2.5" in page
    for person in ("demo-analyst", "demo-model-owner"):
        assert ("device-of-a-person" in world.get(person, "/merchants/episodes")) == (person == "demo-analyst")


def test_a_month_that_the_ledger_lacks_is_not_found(world: World) -> None:
    browser = world.console.browser(world.sections, "demo-analyst")
    for month in ("2001-01", "=1+1", "x"):
        assert browser.get(f"/merchants?month={month}").status_code == 404
