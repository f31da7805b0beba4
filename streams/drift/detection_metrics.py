"""What drift detection tells Prometheus: how far the newest block of each length is from the reference, open alerts.

Labels are bounded: model versions that have a bundle here, three lengths, three distances, severities.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge

from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS, MINUTE_MS
from paywarden.models.drift.reference import Reference
from paywarden.models.metrics.distances import jensen_shannon, kolmogorov_smirnov, psi
from paywarden.models.metrics.tally import ACTION_COUNT
from paywarden.streams.alerts.alerts import Alert, Severity

_LENGTHS = {5 * MINUTE_MS: "5m", HOUR_MS: "1h", DAY_MS: "24h"}
_ACTIONS = ("approve", "review", "decline")
_DISTANCES = {"psi": psi, "js": jensen_shannon, "ks": kolmogorov_smirnov}

assert len(_ACTIONS) == ACTION_COUNT


class DetectionMetrics:
    """Of what this worker has evaluated; another worker's are where it was the last to evaluate."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"paywarden_drift_{name}", documentation, labels, registry=registry)

        self._distance = gauge(
            "score_distance", "Of the scores of the newest block from the reference.", "version", "length", "statistic"
        )
        self._share = gauge("action_share", "In the newest block.", "version", "length", "action")
        self._open = gauge("open_alerts", "Alerts that have not cleared.", "severity")
        for severity in Severity:
            self._open.labels(str(severity)).set(0)

    def note(self, version: str, length_ms: int, reference: Reference, counts: Counts) -> None:
        """A block was evaluated."""
        length = _LENGTHS[length_ms]
        for name, distance in _DISTANCES.items():
            value = float(distance(counts.scores[0], reference.counts.scores[0]))
            self._distance.labels(version, length, name).set(value)
        payments = max(1, int(counts.payments[0]))
        for action, count in zip(_ACTIONS, counts.actions[0], strict=True):
            self._share.labels(version, length, action).set(int(count) / payments)

    def open_alerts(self, alerts: Sequence[Alert]) -> None:
        """Those that are open now."""
        for severity in Severity:
            self._open.labels(str(severity)).set(sum(alert.severity is severity for alert in alerts))
