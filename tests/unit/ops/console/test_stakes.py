"""What is at stake in an alert, by a sample of decisions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paywarden.ops.console.database import Database
from paywarden.ops.console.inbox import stakes, store
from paywarden.ops.console.inbox.stakes import Stakes
from paywarden.ops.console.inbox.store import AlertStore
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.feed import FeedBatch, FeedRecord
from paywarden.streams.alerts.records import ALERTS_TOPIC
from paywarden.streams.alerts.samples import is_of
from tests.worlds.alerts_on_topics import NOW_MS, alert_record


class _Decisions:
    """Decisions in memory: two before the change began, and three in the window."""

    def sample(self, _: Mapping[str, Any], first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        is_window = (first_ms, last_ms) == (NOW_MS - 300_000, NOW_MS)
        amounts = [(1000, "EUR"), (2000, "USD"), (5000, "XXX")] if is_window else [(1, "EUR"), (2, "EUR")]
        return [
            {"payment_id": f"{'a' if is_window else 'b'}{n}", "amount_minor": m, "currency": c, "event_time_ms": 0}
            for n, (m, c) in enumerate(amounts)
        ]

    def close(self) -> None:
        pass


def _minor(amount: int, currency: str, _: int) -> int:
    if currency == "XXX":
        raise InvalidEvent("not a currency there is a rate for")
    return amount * (2 if currency == "USD" else 1)


def test_money_is_affected_payments_times_the_mean_amount(tmp_path: Path) -> None:
    database = Database(tmp_path / "console.sqlite", (*store.TABLES, *stakes.TABLES))
    alerts = AlertStore(database)
    alerts.take(FeedBatch((FeedRecord(ALERTS_TOPIC, 0, alert_record(1)),)))
    made = Stakes(database, _Decisions, _minor)
    version = alerts.version
    assert made.step(_Decisions()) == 1
    assert made.step(_Decisions()) == 0
    found = alerts.find("alert-00001")
    assert found is not None
    # 400 affected payments; the mean of 1000 and 4000, without the currency that has no rate.
    assert found[0].money_minor == 400 * 2500
    assert made.samples("alert-00001") == (["b0", "b1"], ["a0", "a1", "a2"])
    assert alerts.version > version
    alerts.take(FeedBatch((FeedRecord(ALERTS_TOPIC, 1, alert_record(1, time_ms=NOW_MS + 1)),)))
    assert made.step(_Decisions()) == 1
    database.close()


def test_a_decision_belongs_to_an_alert_by_model_and_segment() -> None:
    decision = {"model_version": "m1", "variant": "v", "country": "BR", "mcc": None}
    assert is_of({"model_version": "m1", "segment": "overall"}, decision)
    assert is_of({"model_version": "m1/v", "segment": "country=BR"}, decision)
    assert not is_of({"model_version": "m1/w", "segment": "country=BR"}, decision)
    assert not is_of({"model_version": "m2", "segment": "overall"}, decision)
    assert not is_of({"model_version": "m1", "segment": "country=US"}, decision)
    assert is_of({"model_version": "m1", "segment": "amount=10 to 20"}, decision)
