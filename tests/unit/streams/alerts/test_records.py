"""Alerts written to their topic and read back, and the journal made from the topics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paywarden.models.drift.binning import FEATURE_BINS, Binning
from paywarden.models.drift.detectors import DetectorSettings
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds, topic_schema
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.alerts.alert_records import (
    ACKNOWLEDGEMENTS_TOPIC,
    ALERTS_TOPIC,
    ONLY_PARTITION,
    Acknowledgement,
    AlertSender,
    Histograms,
    record_of,
)
from paywarden.streams.alerts.alert_watch import DriftWatch
from paywarden.streams.alerts.alerts import Alert, AlertSettings, MovedSignal, Severity, State
from paywarden.streams.alerts.journal import Journal
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topics import TopicSettings, _config, _partition_count
from tests.worlds.drift.drift_world import SIGNALS, World

IDS = LocalSchemaIds()
EDGES = np.full((2, FEATURE_BINS - 1), np.inf, dtype=np.float32)
EDGES[1, :2] = 10, 20
BINNING = Binning(np.array([0.25, 0.5]), EDGES, (("ecom",), (), ()))
HISTOGRAMS = Histograms(np.array([0.0, 0.5, 1.0]), np.array([600, 400]), np.array([30, 70]), 0, 5)


def alert_of(**changes: Any) -> Alert:
    fields: dict[str, Any] = {
        "alert_id": "00ff", "model_version": "model-1", "state": State.RAISED, "severity": Severity.WARNING,
        "time_ms": 1_000, "first_seen_ms": 400, "slack_ms": 10, "raised_ms": 1_000, "subject": "feature:amount",
        "statistic": "location", "segment": "channel=ecom", "length_ms": 300_000, "effect": 0.5, "effect_min": 0.02,
        "value": 0.4, "expected": 0.5, "count": 100, "evidence": 6.0, "evidence_min": 5.5, "shift": -2.0,
        "window_start_ms": 700, "window_end_ms": 1_000,
        "attached": (
            MovedSignal("score", "location", "overall", 0.1, 3.0),
            MovedSignal("feature:mcc", "missing", "overall", 2, 9),
        ),
    }  # fmt: skip
    return Alert(**{**fields, **changes})


def coded(record: dict[str, Any]) -> dict[str, Any]:
    return Decoder(ALERTS_TOPIC, IDS).decode(Encoder(ALERTS_TOPIC, IDS.id_of(ALERTS_TOPIC)).encode(record))


@pytest.mark.parametrize("histograms", [None, HISTOGRAMS])
@pytest.mark.parametrize("changes", [{}, {"acknowledged_by": "ana", "snoozed_until_ms": 5_000}])
def test_every_field_of_an_alert_is_read_back_from_its_record(
    histograms: Histograms | None, changes: dict[str, Any]
) -> None:
    record = record_of(alert_of(**changes), histograms=histograms, reference_count=77)
    assert set(record) == {field["name"] for field in topic_schema(ALERTS_TOPIC)["fields"]}
    assert coded(record) == record


def test_a_record_says_what_moved_how_much_and_where() -> None:
    record = record_of(alert_of(), histograms=HISTOGRAMS)
    assert (record["subject"], record["signal"], record["segment"]) == ("feature:amount", "location", "channel=ecom")
    assert (record["statistic"], record["value"], record["threshold"]) == ("psi", 0.5, 0.02)
    assert (record["reference_count"], record["current_count"]) == (1_000, 100)
    assert record["current_histogram"] == {"edges": [0.0, 0.5, 1.0], "counts": [30, 70], "missing": 5}
    assert record["top_features"] == [{"name": "amount", "value": 0.5}, {"name": "mcc", "value": 2}]
    assert {one["name"] for one in record["statistics"]} == {"psi", "js", "ks"}
    assert record["cause"] == "input"


def test_a_real_alert_goes_on_the_topic_under_its_id() -> None:
    world, watch = World(1), DriftWatch("model-1", SIGNALS, DetectorSettings(), AlertSettings())
    world.missing = {"distance"}
    told = [alert for _ in range(5) for alert in watch.step(world.block())]
    sender = _Sent()
    AlertSender(sender, KafkaSettings(topic_prefix="test-"), IDS).send(record_of(told[0]))  # type: ignore[arg-type]
    (topic, value, key) = sender.records[0]
    assert (topic, key) == ("test-drift-alerts", told[0].alert_id.encode())
    assert Decoder(ALERTS_TOPIC, IDS).decode(value)["subject"] == "feature:distance"


def test_a_features_histogram_has_only_finite_inner_edges() -> None:
    counts = np.arange(FEATURE_BINS + 1)
    found = Histograms.of_feature(BINNING, 1, counts, 2 * counts)
    assert found.edges.tolist() == [-np.inf, 10, 20, np.inf]
    # An infinite value lies in the very last bin.
    assert found.reference.tolist() == [0, 1, sum(range(2, FEATURE_BINS))]
    assert (found.reference_missing, found.current_missing) == (FEATURE_BINS, 2 * FEATURE_BINS)
    assert found.reference_count == counts.sum()
    constant = Histograms.of_feature(BINNING, 0, counts, counts)
    assert constant.edges.tolist() == [-np.inf, np.inf]
    assert constant.reference.tolist() == [sum(range(FEATURE_BINS))]


def test_a_scores_histogram_goes_from_zero_to_one() -> None:
    found = Histograms.of_score(BINNING, np.array([1, 2, 3]), np.array([3, 2, 1]))
    assert found.edges.tolist() == [0, 0.25, 0.5, 1]


def test_missing_values_count_in_the_distance_of_histograms() -> None:
    full = Histograms(np.array([0.0, 1.0]), np.array([1_000]), np.array([1_000]))
    half = Histograms(np.array([0.0, 1.0]), np.array([1_000]), np.array([500]), 0, 500)
    assert full.distances()["ks"] == 0
    assert half.distances()["ks"] == pytest.approx(0.5)


@pytest.mark.parametrize("until_ms", [0, 99])
def test_an_acknowledgement_is_read_back_from_its_record(until_ms: int) -> None:
    encoder, decoder = (
        Encoder(ACKNOWLEDGEMENTS_TOPIC, IDS.id_of(ACKNOWLEDGEMENTS_TOPIC)),
        Decoder(ACKNOWLEDGEMENTS_TOPIC, IDS),
    )
    said = Acknowledgement("00ff", 5, "ana", until_ms, "known")
    assert Acknowledgement.of_record(decoder.decode(encoder.encode(said.to_record()))) == said
    assert said.kind == ("snoozed" if until_ms else "acknowledged")


@pytest.mark.parametrize("topic", [ALERTS_TOPIC, ACKNOWLEDGEMENTS_TOPIC])
def test_both_topics_have_one_partition_and_outlive_their_alerts(topic: str) -> None:
    assert _partition_count(topic, TopicSettings()) == 1
    assert _config(topic, TopicSettings(drift_days=2)) == {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": "1",
        "retention.ms": "172800000",
    }


def journal_of(*alerts: Alert) -> Journal:
    journal = Journal()
    for alert in alerts:
        journal.take_alert(record_of(alert))
    return journal


def test_the_journal_lists_the_newest_state_of_alerts_worst_first() -> None:
    journal = journal_of(
        alert_of(alert_id="aaaa1"),
        alert_of(alert_id="bbbb1", severity=Severity.INFO),
        alert_of(alert_id="cccc1"),
        alert_of(alert_id="bbbb1", state=State.ESCALATED, severity=Severity.CRITICAL, time_ms=2_000),
        alert_of(alert_id="cccc1", state=State.CLEARED, time_ms=3_000),
    )
    assert [alert.alert_id for alert in journal.open()] == ["bbbb1", "aaaa1"]
    assert [state for _, state, _, _ in journal.alerts["bbbb1"].states] == ["raised", "escalated"]


def test_a_record_that_comes_twice_counts_once() -> None:
    journal = journal_of(alert_of(), alert_of(state=State.CLEARED, time_ms=2_000), alert_of())
    assert len(journal.alerts["00ff"].states) == 2
    assert journal.open() == []


def test_acknowledgements_belong_to_their_alert() -> None:
    journal = journal_of(alert_of())
    journal.take_acknowledgement(Acknowledgement("00ff", 5, "ana", 99))
    journal.take_acknowledgement(Acknowledgement("00ff", 6, "ben"))
    journal.take_acknowledgement(Acknowledgement("gone", 6, "ben"))
    known = journal.alerts["00ff"]
    assert (known.acknowledged_by, known.snoozed_until_ms, len(known.acknowledgements)) == ("ben", 99, 2)


def test_an_alert_is_found_by_the_beginning_of_its_id() -> None:
    journal = journal_of(alert_of(alert_id="abcd1"), alert_of(alert_id="abcd2"), alert_of(alert_id="ffff1"))
    assert journal.find("abcd1").alert_id == "abcd1"
    assert journal.find("ffff").alert_id == "ffff1"
    with pytest.raises(Misconfigured, match="'abcd' begins the ids of 2 alerts"):
        journal.find("abcd")
    for text in ("fff", "0000"):
        with pytest.raises(Misconfigured, match=f"there is no alert '{text}'"):
            journal.find(text)


class _Sent:
    """A sender that remembers what is sent."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes, bytes]] = []

    def send(self, topic: str, value: bytes, *, key: bytes, partition: int) -> None:
        assert partition == ONLY_PARTITION
        self.records.append((topic, value, key))
