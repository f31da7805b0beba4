"""Write the measures of outcomes as records of the topic outcome-metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paywarden.models.metrics.outcome_measures import OutcomeMeasures
from paywarden.schemas.avro import Encoder, SchemaIds
from paywarden.streams.alerts.alert_records import AlertSender
from paywarden.streams.alerts.alert_records import record_of as alert_record
from paywarden.streams.alerts.alerts import Alert
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.outcomes.payments import DAY_MS, Arm

METRICS_TOPIC = "outcome-metrics"
_FLUSH_TIMEOUT_S = 30.0

MetricsRecord = dict[str, Any]


def record_of(arm: Arm, day: int, maturity_days: int, windows: Mapping[int, OutcomeMeasures]) -> MetricsRecord:
    """Return the record of one arm and day. `windows`: measures by their number of days; all windows end with `day`."""
    return {
        "model_version": arm.version,
        "variant": arm.variant,
        "day_start_time_ms": day * DAY_MS,
        "maturity_days": maturity_days,
        "windows": [_window(days, measures) for days, measures in sorted(windows.items())],
    }


def _window(days: int, measures: OutcomeMeasures) -> dict[str, Any]:
    shares: dict[str, float | None] = {}
    for name, share in measures.shares.items():
        shares |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
    approved, reviewed, declined = measures.actions
    money = measures.money
    return {
        "days": days,
        "payments": measures.payments,
        "labelled": measures.labelled,
        "frauds": measures.frauds,
        "approved": approved,
        "reviewed": reviewed,
        "declined": declined,
        **shares,
        "brier_score": measures.brier_score,
        "calibration_error": measures.calibration_error,
        "mean_score": measures.mean_score,
        "fraud_share": measures.fraud_share,
        "fraud_missed_minor": money.fraud_missed_minor,
        "fraud_reviewed_minor": money.fraud_reviewed_minor,
        "fraud_declined_minor": money.fraud_declined_minor,
        "genuine_declined_minor": money.genuine_declined_minor,
        "genuine_reviewed_minor": money.genuine_reviewed_minor,
        "net_minor": money.net_minor,
        "label_lag_p50_ms": measures.label_lag_p50_ms,
        "label_lag_p99_ms": measures.label_lag_p99_ms,
        "fraud_lag_p50_ms": measures.fraud_lag_p50_ms,
        "fraud_lag_p99_ms": measures.fraud_lag_p99_ms,
    }


class OutcomeSender:
    """Sends the records and alerts of a day, and returns once the broker has all of them."""

    def __init__(self, make_sender: Callable[[], Sender], kafka: KafkaSettings, ids: SchemaIds) -> None:
        """`make_sender` makes a new sender for each day: a sender that has failed once keeps failing."""
        self._make_sender, self._kafka, self._ids = make_sender, kafka, ids
        self._encoder = Encoder(METRICS_TOPIC, ids.id_of(METRICS_TOPIC))

    def __call__(self, records: Sequence[MetricsRecord], alerts: Sequence[tuple[Alert, int]]) -> None:
        """Send all. `alerts`: each with the size of its reference. Raises BrokerUnavailable: send all again."""
        if not records and not alerts:
            return
        sender = self._make_sender()
        alert_sender = AlertSender(sender, self._kafka, self._ids)
        for record in records:
            key = f"{record['model_version']}:{record['variant']}".encode()
            sender.send(self._kafka.topic(METRICS_TOPIC), self._encoder.encode(record), key=key)
        for alert, reference_count in alerts:
            alert_sender.send(alert_record(alert, reference_count=reference_count))
        sender.flush(_FLUSH_TIMEOUT_S)
