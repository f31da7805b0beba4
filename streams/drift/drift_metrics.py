"""Metrics of drift detection: how decisions are counted, and how far the newest blocks are from their reference.

Counts are updated once a batch. Labels are bounded: at most VERSIONS_MAX versions, actions, three lengths of blocks,
three distances, severities, and the partitions of this worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS, MINUTE_MS
from paywarden.models.drift.reference import Reference
from paywarden.models.metrics.distances import jensen_shannon, kolmogorov_smirnov, psi
from paywarden.models.metrics.tally import ACTION_COUNT
from paywarden.streams.alerts.alerts import Alert, Severity

SCORE_EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# The first versions that this process sees have series of their own; all later ones share one.
VERSIONS_MAX = 16
OTHER_VERSIONS = "other"
_LENGTHS = {5 * MINUTE_MS: "5m", HOUR_MS: "1h", DAY_MS: "24h"}
_ACTIONS = ("approve", "review", "decline")
_DISTANCES = {"psi": psi, "js": jensen_shannon, "ks": kolmogorov_smirnov}

assert len(_ACTIONS) == ACTION_COUNT


class ScoreCollector(Collector):
    """Scores by model version, a batch at a time."""

    def __init__(self) -> None:
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}
        self._lock = Lock()

    def observe(self, version: str, scores: Sequence[float]) -> None:
        """Note scores."""
        values = np.asarray(scores)
        # A bucket holds the scores up to and including its edge.
        bucket_counts = np.bincount(np.searchsorted(SCORE_EDGES, values, side="left"), minlength=len(SCORE_EDGES) + 1)
        with self._lock:
            self._counts[version] = self._counts.get(version, 0) + bucket_counts
            self._sums[version] = self._sums.get(version, 0.0) + float(values.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See prometheus_client.registry.Collector."""
        family = HistogramMetricFamily(
            "paywarden_drift_score", "Scores of the decisions counted, by model version.", labels=["version"]
        )
        bounds = [*map(str, SCORE_EDGES), "+Inf"]
        with self._lock:
            for version, counts in self._counts.items():
                buckets = list(zip(bounds, np.cumsum(counts).astype(float).tolist(), strict=True))
                family.add_metric([version], buckets, self._sums[version])
        yield family


class DriftMetrics:
    """Metrics of counting. Counters grow from the start of this process and include repetitions after a crash."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"paywarden_drift_{name}", documentation, labels, registry=registry)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"paywarden_drift_{name}", documentation, labels, registry=registry)

        self._parts = {
            "decisions": counter("decisions", "Decisions read and saved, counted in a cell or not."),
            "late": counter("late", "Decisions counted after their block may have been evaluated."),
            "future": counter("future", "Decisions not counted: dated ahead of the clock by more than future_ms_max."),
            "old": counter("old", "Decisions not counted: older than the kept counts."),
            "unknown": counter("unknown_version", "Decisions of a model version without a known bundle."),
            "other": counter("other_version", "Decisions counted together, of versions beyond versions_max."),
        }
        self.undecodable = counter("undecodable", "Records on the topic decisions that cannot be decoded.")
        self.retries = counter("store_retries", "Times that counts had to wait for the store.")
        self.trimmed = counter("trimmed", "Times that a record was too large and lost the features of its segments.")
        self.lost = counter("unmerged", "Times that counts of a model that is no longer watched were not added up.")
        self.blocks = counter("blocks", "Blocks of five minutes evaluated by this worker.")
        self.store_up = gauge("store_up", "1 while the store takes counts, 0 while they wait for it.")
        self.unsaved = gauge("unsaved", "Decisions read that are not saved yet.")
        self._actions = counter("actions", "Actions of the decisions counted, by model version.", "version", "action")
        self._behind = gauge(
            "partition_behind_seconds", "How far the counts of a partition of decisions are behind now.", "partition"
        )
        self.evaluated = gauge("evaluated_timestamp_seconds", "End of the last evaluated block, Unix time; 0: none.")
        self._scores = ScoreCollector()
        registry.register(self._scores)
        self._versions: set[str] = set()
        self._behind_of: set[int] = set()
        self.store_up.set(1)

    def counted(self, version: str, scores: Sequence[float], actions: Mapping[str, int]) -> None:
        """Count scores and actions of decisions of one version."""
        if version not in self._versions and len(self._versions) >= VERSIONS_MAX:
            version = OTHER_VERSIONS
        self._versions.add(version)
        self._scores.observe(version, scores)
        for action, count in actions.items():
            self._actions.labels(version, action).inc(count)

    def saved(self, more: Mapping[str, int]) -> None:
        """Add the growth of the saved totals of a partition."""
        for name, count in more.items():
            self._parts[name].inc(count)

    def behind(self, seconds: Mapping[int, float]) -> None:
        """Show the lag of the partitions this worker has, in seconds, and remove the others."""
        for partition in self._behind_of - seconds.keys():
            self._behind.remove(str(partition))
        for partition, age_s in seconds.items():
            self._behind.labels(str(partition)).set(age_s)
        self._behind_of = set(seconds)


class DetectionMetrics:
    """Metrics of the blocks this worker has evaluated; they stay as they were if another worker takes over."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"paywarden_drift_{name}", documentation, labels, registry=registry)

        self._distance = gauge(
            "score_distance",
            "Distance of the newest block's scores from the reference's.",
            "version",
            "length",
            "statistic",
        )
        self._share = gauge("action_share", "Share of the newest block's payments.", "version", "length", "action")
        self._training = gauge(
            "training_distance",
            "PSI of the newest week against the training window, beyond the natural distance between weeks: of the "
            "score, of the feature that moved most, and of the traffic of each dimension.",
            "version",
            "group",
        )
        self._open = gauge("open_alerts", "Alerts that have not cleared.", "severity")
        for severity in Severity:
            self._open.labels(str(severity)).set(0)

    def note(self, version: str, length_ms: int, reference: Reference, counts: Counts) -> None:
        """Show the distances and the actions of an evaluated block."""
        length = _LENGTHS[length_ms]
        for name, distance in _DISTANCES.items():
            value = float(distance(counts.scores[0], reference.counts.scores[0]))
            self._distance.labels(version, length, name).set(value)
        payments = max(1, int(counts.payments[0]))
        for action, count in zip(_ACTIONS, counts.actions[0], strict=True):
            self._share.labels(version, length, action).set(int(count) / payments)

    def training(self, version: str, distances: Mapping[str, float]) -> None:
        """Show how far the newest week lies from the training window, by group of subjects."""
        for group, value in distances.items():
            self._training.labels(version, group).set(value)

    def open_alerts(self, alerts: Sequence[Alert]) -> None:
        """Show how many alerts are open, by severity."""
        for severity in Severity:
            self._open.labels(str(severity)).set(sum(alert.severity is severity for alert in alerts))
