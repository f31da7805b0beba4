"""ops/alerts.yml: it is what Prometheus reads, and speaks of metrics and labels that there are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from paywarden.features.stores.aerospike.metrics import AerospikeMetrics
from paywarden.models.policy.policy import FLAGS
from paywarden.scoring.grpc.metrics import GrpcMetrics
from paywarden.scoring.idempotency.decision_cache import DecisionCacheMetrics
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.release import SwapMetrics
from paywarden.scoring.metrics.shared_metrics import Gauge, MetricsRegistry, _DirectoryCollector
from paywarden.scoring.metrics.worker_metrics import GarbagePauses, HttpMetrics, ScoringMetrics, StageTimes, ready_gauge
from paywarden.scoring.server.supervisor import SupervisorMetrics
from paywarden.scoring.server.watch import declare_failures
from paywarden.scoring.state.outbox import OutboxMetrics
from paywarden.scoring.state.overlay.overlay import OverlayMetrics
from paywarden.streams.companion.companion_health import CompanionHealth
from paywarden.streams.companion.companion_metrics import CompanionMetrics
from paywarden.streams.counts.checked_state import SetAsideState
from paywarden.streams.dead_letters.letter_counts import DeadLetterCounts
from paywarden.streams.drift.drift_metrics import DetectionMetrics, DriftMetrics
from paywarden.streams.kafka.stalls.open_transactions import transaction_gauge
from paywarden.streams.outcomes.outcome_metrics import OutcomeMetrics
from paywarden.streams.profiles.profile_metrics import StreamMetrics
from paywarden.streams.registry.follower import FollowerMetrics
from paywarden.streams.rollouts.rollout_metrics import RolloutCollector
from paywarden.streams.shadow.host import ShadowMetrics
from tests.checkout import CHECKOUT

ALERTS = CHECKOUT / "ops" / "alerts.yml"
OBJECTIVES = {"card": 1000, "merchant": 1000}
# Labels that Prometheus adds itself.
ADDED_LABELS = {"instance", "job"}
_FIELDS = re.compile(r" {8}(for|labels|annotations|expr): ?(.*)| {10}(severity|area|summary): (.*)| {10}([^ ].*)")


def alerts() -> list[dict[str, str]]:
    """Every alert's fields. Strict: a line that is none of the few forms that the file has fails."""
    found: list[dict[str, str]] = []
    for number, line in enumerate(ALERTS.read_text(encoding="utf-8").splitlines()):
        if re.fullmatch(r" *#.*|groups:| {2}- name: [a-z-]+| {4}rules:", line):
            continue
        if alert := re.fullmatch(r" {6}- alert: (\w+)", line):
            found.append({"alert": alert[1], "expr": ""})
            continue
        match = _FIELDS.fullmatch(line)
        assert match, f"line {number + 1} is of no form that is known: {line}"
        outer, value, inner, text, more = match.groups()
        if more is not None:
            found[-1]["expr"] += f" {more}"
        elif inner is not None:
            found[-1][inner] = text
        elif outer == "expr":
            assert value == ">-", line
        else:
            found[-1][outer] = value
    return found


def declare_workers(registry: MetricsRegistry) -> list[Gauge]:
    """All that a scoring worker counts; returns gauges that are shown once they have a value."""
    HttpMetrics.declare(registry)
    GrpcMetrics.declare(registry)
    ScoringMetrics.declare(registry, flags=FLAGS, entities=OBJECTIVES)
    DecisionCacheMetrics.declare(registry)
    OverlayMetrics.declare(registry)
    SwapMetrics.declare(registry)
    GarbagePauses(registry)
    StageTimes(registry)
    declare_failures(registry)
    SupervisorMetrics.declare(registry)
    outbox = OutboxMetrics.declare(registry)
    return [outbox.unshipped_bytes, ready_gauge(registry), *ModelMetrics.declare(registry).is_out.values()]


def declared(folder: Path) -> dict[str, set[str]]:
    """The name of each sample that a process of ours can show, with its labels."""
    registry = MetricsRegistry()
    gauges = declare_workers(registry)
    registry.open(folder, "worker-0")
    for gauge in gauges:
        gauge.set(0)
    names = labels_of(_DirectoryCollector(folder).collect())
    # A gauge without a value is not shown.
    names["paywarden_mirror_age_seconds"] = set()
    registry.close()
    prometheus = CollectorRegistry()
    StreamMetrics(prometheus, OBJECTIVES)
    CompanionMetrics(prometheus, OBJECTIVES, CompanionHealth(mirror_age_ms_max=1))
    ShadowMetrics(prometheus, ["b-42"])
    DeadLetterCounts(prometheus, "")
    DriftMetrics(prometheus)
    SetAsideState(prometheus)
    DetectionMetrics(prometheus)
    OutcomeMetrics(prometheus)
    transaction_gauge(prometheus)
    FollowerMetrics(prometheus)
    prometheus.register(RolloutCollector(None))
    AerospikeMetrics(prometheus)
    for collector in prometheus._collector_to_names:
        names |= labels_of(collector.collect(), collector)
    return names


def labels_of(families: Iterable[Metric], collector: Any = None) -> dict[str, set[str]]:
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
    names: dict[str, set[str]] = {}
    for family in families:
        labels = set(getattr(collector, "_labelnames", ())) | {key for s in family.samples for key in s.labels}
        for ending in endings.get(family.type, [""]):
            names[family.name + ending] = labels
    return names


def test_every_metric_and_label_that_an_alert_names_is_there(tmp_path: Path) -> None:
    names = declared(tmp_path) | {"up": ADDED_LABELS, "process_start_time_seconds": ADDED_LABELS}
    for alert in alerts():
        asked = re.findall(r"\b(paywarden_\w+|up|process_start_time_seconds)\b(?:\{([^}]*)\})?", alert["expr"])
        assert asked, alert["alert"]
        known: set[str] = set(ADDED_LABELS)
        for name, matchers in asked:
            assert name in names, f"{alert['alert']}: there is no {name}"
            labels = set(re.findall(r"(\w+)=~?\"", matchers))
            assert labels <= names[name], f"{alert['alert']}: {name} has no label {labels - names[name]}"
            known |= names[name]
        spoken = set(re.findall(r"\$labels\.(\w+)", alert["summary"]))
        grouped = {label for by in re.findall(r"by \(([^)]*)\)", alert["expr"]) for label in by.split(", ")}
        assert spoken | grouped <= known, alert["alert"]
        if grouped:
            assert spoken <= grouped, f"{alert['alert']} speaks of a label that is summed away"


def test_the_label_values_in_alerts_can_occur(tmp_path: Path) -> None:
    """A flag or a bound of a histogram that was renamed would silence its alert."""
    registry = MetricsRegistry()
    declare_workers(registry)
    registry.open(tmp_path, "worker-0")
    shown = {
        (sample.name, key, value)
        for family in _DirectoryCollector(tmp_path).collect()
        for sample in family.samples
        for key, value in sample.labels.items()
    }
    registry.close()
    prometheus = CollectorRegistry()
    DetectionMetrics(prometheus)
    OutcomeMetrics(prometheus)
    AerospikeMetrics(prometheus)
    StreamMetrics(prometheus, OBJECTIVES)
    prometheus.register(RolloutCollector(None))
    shown |= {
        (sample.name, key, value)
        for family in prometheus.collect()
        for sample in family.samples
        for key, value in sample.labels.items()
    }
    asked = [
        (name, key, value)
        for alert in alerts()
        for name, matchers in re.findall(r"(paywarden_\w+)\{([^}]*)\}", alert["expr"])
        for key, value in re.findall(r'(\w+)="([^"]*)"', matchers)
    ]
    assert len(asked) >= 6
    assert set(asked) <= shown
