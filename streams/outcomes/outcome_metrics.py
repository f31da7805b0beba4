"""Metrics of outcomes. Labels are bounded: effects of rows, and the versions and variants of one evaluation."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from paywarden.models.metrics.outcome_tally import LAG_EDGES_MS
from paywarden.models.metrics.tally import FRAUD, GENUINE
from paywarden.streams.alerts.alerts import Alert, Severity
from paywarden.streams.outcomes.outcome_records import MetricsRecord
from paywarden.streams.outcomes.outcome_state import DECISIONS, OUTCOMES, JoinResult
from paywarden.streams.outcomes.payments import DAY_MS, RowEffect, SourcePartition

_TOPICS = {DECISIONS: "decisions", OUTCOMES: "outcomes"}
_LABELS = {GENUINE: "genuine", FRAUD: "fraud"}
# The fields of a window that become gauges, each with its help text.
_MEASURES = {
    "precision": "Share of frauds among reviewed and declined payments.",
    "recall": "Share of the frauds that were reviewed or declined.",
    "average_precision": "Average precision of the scores.",
    "brier_score": "Mean squared distance of score and label.",
    "calibration_error": "Expected calibration error.",
    "fraud_missed_minor": "Money lost to frauds that were approved, minor units of the reference currency.",
    "net_minor": "Worth of the decisions against approving everything, minor units of the reference currency.",
}


class OutcomeMetrics:
    """Counters grow from the start of this process and include repetitions after a crash."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"paywarden_outcomes_{name}", documentation, labels, registry=registry)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"paywarden_outcomes_{name}", documentation, labels, registry=registry)

        self._rows = counter("rows", "Decisions and outcomes processed and saved, by effect.", "topic", "result")
        self._without_amount = counter("without_amount", "Decisions whose amount has no rate, counted as 0.")
        self._other_arm = counter("other_arm", "Decisions counted together, of versions and variants beyond arms_max.")
        self.undecodable = counter("undecodable", "Records on the topic outcomes that cannot be decoded.")
        self.retries = counter("store_retries", "Times that outcomes had to wait for the store.")
        self.store_up = gauge("store_up", "1 while the store takes outcomes, 0 while they wait for it.")
        self.unsaved = gauge("unsaved", "Outcomes read that are not saved yet.")
        self.days = counter("days", "Days evaluated by this worker.")
        self._evaluated = gauge("evaluated_timestamp_seconds", "End of the last day evaluated, Unix time; 0: none.")
        self._open = gauge("open_alerts", "Open alerts about outcomes, where this worker evaluates.", "severity")
        self._lag = Histogram(
            "paywarden_outcomes_label_lag_seconds",
            "Time from a decision to the outcome that counts, as outcomes come.",
            ["label"],
            buckets=[edge / 1000 for edge in LAG_EDGES_MS],
            registry=registry,
        )
        by = ("version", "variant", "days")
        self._measures = {name: gauge(name, text, *by) for name, text in _MEASURES.items()}
        self._lag_quantiles = gauge(
            "label_lag_quantile_seconds", "Quantile of the label lag on mature days.", *by, "quantile"
        )
        self.store_up.set(1)
        for kind in RowEffect:
            for topic in _TOPICS.values():
                self._rows.labels(topic, kind.name.lower())
        self.show([], [])

    def saved(self, source: SourcePartition, more: Counts[str], results: Sequence[JoinResult]) -> None:
        """Add a save's additions to the totals of a partition, and the lags of the labels it counted."""
        for kind in RowEffect:
            name = kind.name.lower()
            self._rows.labels(_TOPICS[source.topic], name).inc(more[name])
        self._without_amount.inc(more["without_amount"])
        self._other_arm.inc(more["other_arm"])
        for result in results:
            for change in result.changes:
                if change.times > 0 and change.outcome is not None:
                    self._lag.labels(_LABELS[change.label]).observe(change.lag_ms / 1000)

    def show(self, latest: Iterable[MetricsRecord], alerts: Sequence[Alert]) -> None:
        """Show the records of the newest mature day and the open alerts; empty if another worker evaluates."""
        for family in (*self._measures.values(), self._lag_quantiles):
            family.clear()
        day_end_ms = 0
        for record in latest:
            day_end_ms = max(day_end_ms, record["day_start_time_ms"] + DAY_MS)
            for window in record["windows"]:
                self._show(record, window)
        self._evaluated.set(day_end_ms / 1000)
        counts = Counts(alert.severity for alert in alerts)
        for severity in Severity:
            self._open.labels(severity).set(counts[severity])

    def _show(self, record: MetricsRecord, window: Mapping[str, float | None]) -> None:
        labels = record["model_version"], record["variant"], str(window["days"])
        for name, family in self._measures.items():
            value = window[name]
            if value is not None:
                family.labels(*labels).set(value)
        for quantile, name in (("0.5", "label_lag_p50_ms"), ("0.99", "label_lag_p99_ms")):
            lag_ms = window[name]
            if lag_ms is not None:
                self._lag_quantiles.labels(*labels, quantile).set(lag_ms / 1000)
