"""Drift alerts and their acknowledgements as records of their topics: written and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.binning import MISSING, Binning
from paywarden.models.drift.counts import AGE_EDGES_MS, AGE_UNKNOWN
from paywarden.models.drift.signals import FEATURE_PREFIX, is_histogram
from paywarden.models.metrics.distances import jensen_shannon, kolmogorov_smirnov, psi
from paywarden.schemas.avro import Encoder, SchemaIds
from paywarden.streams.alerts.alerts import Alert, Comparison
from paywarden.streams.alerts.causes import EPISODE_PREFIX
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender

ALERTS_TOPIC = "drift-alerts"
ACKNOWLEDGEMENTS_TOPIC = "drift-acknowledgements"
ONLY_PARTITION = 0
"""The topics of alerts and acts have one partition each, and their readers read that one.

A broker that makes topics on first use gives them several: writers therefore name the partition.
"""

CountArray = NDArray[np.int64]


@dataclass(frozen=True)
class Histograms:
    """The distribution an alert is about, in the reference and now.

    `edges`: (bins + 1,) float64. `reference` and `current`: (bins,) int64, over the same edges. Missing values are
    counted apart.
    """

    edges: NDArray[np.float64]
    reference: CountArray
    current: CountArray
    reference_missing: int = 0
    current_missing: int = 0

    @classmethod
    def of_score(cls, binning: Binning, reference: CountArray, current: CountArray) -> Histograms:
        """Return histograms of scores that were counted in the binning's bins."""
        return cls(np.concatenate([[0.0], binning.score_edges, [1.0]]), reference, current)

    @classmethod
    def of_feature(cls, binning: Binning, feature: int, reference: CountArray, current: CountArray) -> Histograms:
        """Return histograms of a feature, from counts (FEATURE_BINS + 1,): its bins, then the missing values.

        Bins between infinite edges become one bin.
        """
        inner = binning.feature_edges[feature].astype(np.float64)
        inner = inner[np.isfinite(inner)]
        starts = np.arange(len(inner) + 1)
        return cls(
            np.concatenate([[-np.inf], inner, [np.inf]]),
            np.add.reduceat(reference[:MISSING], starts),
            np.add.reduceat(current[:MISSING], starts),
            int(reference[MISSING]),
            int(current[MISSING]),
        )

    @classmethod
    def of_ages(cls, reference: CountArray, current: CountArray) -> Histograms:
        """Return histograms of profile ages in seconds, from counts (AGE_BINS,). Unknown ages count as missing."""
        known = slice(AGE_UNKNOWN)
        edges = np.concatenate([[0.0], AGE_EDGES_MS / 1000, [np.inf]])
        missing = int(reference[AGE_UNKNOWN]), int(current[AGE_UNKNOWN])
        return cls(edges, reference[known], current[known], *missing)

    @property
    def reference_count(self) -> int:
        return int(self.reference.sum()) + self.reference_missing

    def distances(self) -> dict[str, float]:
        """Return PSI, JS and KS, with the missing values as a bin of their own."""
        both = np.append(self.reference, self.reference_missing), np.append(self.current, self.current_missing)
        named = {"psi": psi, "js": jensen_shannon, "ks": kolmogorov_smirnov}
        return {name: float(distance(*both)) for name, distance in named.items()}

    def records(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the records of the reference and of the current histogram."""
        edges = self.edges.tolist()
        return (
            {"edges": edges, "counts": self.reference.tolist(), "missing": self.reference_missing},
            {"edges": edges, "counts": self.current.tolist(), "missing": self.current_missing},
        )


def record_of(
    alert: Alert,
    *,
    histograms: Histograms | None = None,
    reference_count: int = 0,
    reference_times_ms: tuple[int, int] = (0, 0),
    flags: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the record of an alert as it is now.

    `reference_count` is used if there are no histograms to take it from. `reference_times_ms`: the first and last time
    of the reference, 0 where they are not known. `flags`: the share of payments that had each.
    """
    of_training = alert.comparison is Comparison.TRAINING
    has_range = alert.unchanged_high > alert.unchanged_low
    reference, current = (None, None) if histograms is None else histograms.records()
    statistics = {} if histograms is None else histograms.distances()
    features = [moved for moved in alert.attached if moved.subject.startswith(FEATURE_PREFIX)]
    top = [(moved.subject, moved.effect) for moved in features]
    if alert.subject.startswith(FEATURE_PREFIX):
        top.insert(0, (alert.subject, alert.effect))
    return {
        "alert_id": alert.alert_id,
        "state": str(alert.state),
        "severity": str(alert.severity),
        "time_ms": alert.time_ms,
        "first_seen_time_ms": alert.first_seen_ms,
        "subject": alert.subject,
        "segment": alert.segment,
        "statistic": _statistic(alert),
        "value": alert.effect,
        "threshold": alert.effect_min,
        "window_start_time_ms": alert.window_start_ms,
        "window_end_time_ms": alert.window_end_ms,
        "reference_count": reference_count if histograms is None else histograms.reference_count,
        "current_count": alert.count,
        "reference_histogram": reference,
        "current_histogram": current,
        "top_features": [{"name": name.removeprefix(FEATURE_PREFIX), "value": value} for name, value in top],
        "model_version": alert.model_version,
        "signal": alert.statistic,
        "cause": alert.cause.name.lower(),
        "current": alert.value,
        "expected": alert.expected,
        "evidence": alert.evidence,
        "evidence_threshold": alert.evidence_min,
        "statistics": [{"name": name, "value": value} for name, value in statistics.items()],
        "moved": [
            {
                "subject": moved.subject,
                "signal": moved.statistic,
                "segment": moved.segment,
                "value": moved.effect,
                "deviation": moved.deviation,
            }
            for moved in alert.attached
        ],
        "acknowledged_by": alert.acknowledged_by or None,
        "snoozed_until_time_ms": alert.snoozed_until_ms or None,
        "flags": [
            {"flag": flag, "share": share}
            for flag, share in sorted((flags or {}).items(), key=lambda item: (-item[1], item[0]))
        ],
        "comparison": str(alert.comparison),
        "unchanged_low": alert.unchanged_low if has_range else None,
        "unchanged_high": alert.unchanged_high if has_range else None,
        "outside": alert.outside if of_training else None,
        "reference_start_time_ms": reference_times_ms[0] or None,
        "reference_end_time_ms": reference_times_ms[1] or None,
        "reminders": alert.reminders,
    }


def _statistic(alert: Alert) -> str:
    """Return the meaning of the alert's value and threshold."""
    if alert.subject.startswith(EPISODE_PREFIX):
        return "evidence"
    is_psi = alert.comparison is Comparison.TRAINING or is_histogram(alert.signal)
    return "psi" if is_psi else "relative_change"


class AlertSender:
    """Writes to the topic drift-alerts; the caller flushes the sender before it saves its state."""

    def __init__(self, sender: Sender, kafka: KafkaSettings, ids: SchemaIds) -> None:
        self._sender, self._topic = sender, kafka.topic(ALERTS_TOPIC)
        self._encoder = Encoder(ALERTS_TOPIC, ids.id_of(ALERTS_TOPIC))

    def send(self, record: dict[str, Any]) -> None:
        """Queue the record of an alert. One that is sent again after a crash has the same key, state and time."""
        key = record["alert_id"].encode()
        self._sender.send(self._topic, self._encoder.encode(record), key=key, partition=ONLY_PARTITION)


class AcknowledgementKind(StrEnum):
    """Whether an alert was only seen, or snoozed as well."""

    ACKNOWLEDGED = "acknowledged"
    SNOOZED = "snoozed"


@dataclass(frozen=True)
class Acknowledgement:
    """Somebody has seen an alert. `until_ms`: the end of a snooze; 0 without one."""

    alert_id: str
    time_ms: int
    by: str
    until_ms: int = 0
    note: str = ""

    @property
    def kind(self) -> AcknowledgementKind:
        return AcknowledgementKind.SNOOZED if self.until_ms else AcknowledgementKind.ACKNOWLEDGED

    def to_record(self) -> dict[str, Any]:
        """Return the record of the topic."""
        return {
            "alert_id": self.alert_id,
            "kind": str(self.kind),
            "time_ms": self.time_ms,
            "by": self.by,
            "until_time_ms": self.until_ms or None,
            "note": self.note,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Acknowledgement:
        """Return the acknowledgement of a decoded record."""
        until_ms = record["until_time_ms"] if record["kind"] == AcknowledgementKind.SNOOZED else None
        return cls(record["alert_id"], record["time_ms"], record["by"], until_ms or 0, record["note"])
