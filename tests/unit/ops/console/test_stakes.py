"""The money at stake in an alert, by a sample of decisions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.inbox import alert_store as store
from paywarden.ops.console.inbox import segments, stakes
from paywarden.ops.console.inbox.alert_store import AlertStore
from paywarden.ops.console.inbox.stakes import Stakes
from paywarden.streams.alerts.alert_records import ALERTS_TOPIC
from paywarden.streams.alerts.feed import FeedBatch, FeedRecord
from paywarden.streams.alerts.samples import is_of
from tests.worlds.drift.alerts_on_topics import NOW_MS, alert_record


class _Decisions:
    """Decisions in memory: two before the change began, and three in the window."""

    def sample(self, _: Mapping[str, Any], first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        is_window = (first_ms, last_ms) == (NOW_MS - 300_000, NOW_MS)
        amounts = [(1000, "EUR"), (2000, "USD"), (5000, "NGN")] if is_window else [(1, "EUR"), (2, "EUR")]
        return [
            {
                "payment_id": f"{'a' if is_window else 'b'}{n}",
                "amount_minor": m,
                "currency": c,
                "event_time_ms": 0,
                "score": 0.5,
                **dict.fromkeys(("channel", "country", "mcc")),
            }
            for n, (m, c) in enumerate(amounts)
        ]

    def close(self) -> None:
        pass


def _minor(amount: int, currency: str, _: int) -> int | None:
    return None if currency == "NGN" else amount * (2 if currency == "USD" else 1)


def test_money_is_affected_payments_times_the_mean_amount(tmp_path: Path) -> None:
    database = ConsoleDatabase(tmp_path / "console.sqlite", (*store.TABLES, *stakes.TABLES))
    alerts = AlertStore(database)
    alerts.take(FeedBatch((FeedRecord(ALERTS_TOPIC, 0, alert_record(1)),)))
    made = Stakes(database, _Decisions, _minor, lambda _digest, _name: None)
    version = alerts.version
    assert made.sample_of("alert-00001") is None
    assert made.step(_Decisions()) == 1
    assert made.step(_Decisions()) == 0
    found = alerts.find("alert-00001")
    assert found is not None
    # 400 affected payments; the mean of 1000 and 4000, without the currency that has no rate.
    assert found[0].money_minor == 400 * 2500
    sample = made.sample_of("alert-00001")
    assert sample is not None
    assert (sample.before, sample.after) == (("b0", "b1"), ("a0", "a1", "a2"))
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


def _sampled(count: int, channel: str, **values: Any) -> list[dict[str, Any]]:
    empty: dict[str, Any] = {
        "country": None,
        "mcc": None,
        "flags": [],
        "catalogue_digest": "c",
        "vector": b"",
        "profile_age_ms": None,
    }
    return [{**empty, "channel": channel, "score": 0.1, "action": "approve", **values} for _ in range(count)]


def test_a_change_is_where_most_payments_moved() -> None:
    """Scores rise in ecom alone, and a rare channel has too few decisions to say anything."""
    before = [*_sampled(100, "ecom"), *_sampled(200, "pos"), *_sampled(5, "atm")]
    now = [*_sampled(40, "ecom"), *_sampled(60, "ecom", score=0.9), *_sampled(200, "pos"), *_sampled(5, "atm")]
    record = alert_record(0, subject="score", segment="overall", reference_histogram=None)
    found = segments.by_segment(record, before, now, _no_feature)
    assert [one.segment for one in found] == ["channel=ecom", "country=none", "mcc=none", "channel=pos"]
    assert [round(one.moved) for one in found] == [60, 60, 60, 0]
    assert all(len(one.labels) == len(one.before) == len(one.now) for one in found)
    # The alert's own dimension says nothing new.
    own = segments.by_segment({**record, "segment": "channel=ecom"}, before, now, _no_feature)
    assert {one.segment for one in own} == {"country=none", "mcc=none"}


def test_features_flags_actions_and_traffic_are_counted_by_their_values() -> None:
    vector = np.array([5.0, 15.0], dtype="<f4").tobytes()
    missing = np.array([5.0, np.nan], dtype="<f4").tobytes()
    before, now = _sampled(30, "ecom", vector=vector), _sampled(30, "ecom", vector=missing, flags=["unknown_card"])

    def counts(subject: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        record = alert_record(0, subject=subject, segment="country=BR")
        (found, *_) = segments.by_segment(record, before, now, lambda _, name: 1 if name == "amount" else None)
        return tuple(found.before), tuple(found.now)

    # The edges are 10 and 20, and what is missing comes last.
    assert counts("feature:amount") == ((0, 30, 0, 0), (0, 0, 0, 30))
    assert counts("flag:unknown_card") == ((0, 30), (30, 0))
    assert counts("action") == ((30, 0, 0), (30, 0, 0))
    traffic = segments.by_segment(alert_record(0, subject="traffic"), before, _sampled(30, "pos"), _no_feature)
    assert (traffic[0].segment, traffic[0].labels, traffic[0].moved) == ("channel", ("ecom", "pos"), 30.0)
    for unknown in ("feature:gone", "recall", "profile_age"):
        record = alert_record(0, subject=unknown)
        assert not any(sum(one.now) for one in segments.by_segment(record, before, now, _no_feature))


def _no_feature(_digest: str, _name: str) -> int | None:
    return None
