"""The metrics that each process declares: docs/reference/metrics.md.

The page needs no running process. It makes the same metric objects as `stream`, `companion` and `serve`, and asks
Prometheus's own client library for their names, types, labels and help texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.ops.reference.page import MADE_FROM_CODE, code, entry, prose

_SERVICES = (
    (
        "serve",
        "`GET /metrics` on `[serve] admin_host` and `admin_port`, or on `[http] port`, for all workers of the host. "
        "Counters and histograms are sums over the workers. A gauge has the largest value of any worker.",
    ),
    (
        "stream",
        "`GET /metrics` on `[stream] http_host` and `http_port`. Counts begin with the process.",
    ),
    (
        "companion",
        "`GET /metrics` on `[companion] http_host` and `http_port`. Counts begin with the process.",
    ),
    (
        "shadow",
        "`GET /metrics` on `[shadow] http_host` and `http_port`. Counts begin with `paywarden shadow run`, summed over "
        "its challengers' processes.",
    ),
)
_PROCESS = (
    "`stream`, `companion` and `shadow` also show `process_…` (CPU, memory, open files, start), `python_gc_…` and "
    "`python_info`. `paywarden_store_…` exist with `[store] kind` aerospike."
)


def metrics_page() -> str:
    """Returns the page of every metric, by the process that shows it."""
    of_service = families()
    lines = [
        "# Metrics\n",
        *prose(f"Every Prometheus metric of the services. {MADE_FROM_CODE}"),
        *prose(
            "The labels stand after the name. In brackets: the type, if the metric is no gauge. "
            "`…_total` is a counter, `…_timestamp_seconds` a Unix time; `…_seconds`, `…_bytes` and `…_minor` (of "
            "the reference currency) name their unit. `…_distance` is a value of its statistic. Shares and measures "
            "are from 0 to 1, a gauge of a state is 0 or 1, and other gauges are counts. No label holds a card or a "
            "payment. `ops/alerts.yml` has the alerts that watch a metric ([runbook](../operate/runbook/README.md))."
        ),
        *prose(_PROCESS),
    ]
    seen: set[_Family] = set()
    for service, where in _SERVICES:
        lines += [f"## paywarden {service}\n", *prose(where)]
        lines += [_line(family) for family in sorted(of_service[service]) if family not in seen]
        if again := [code(family[0]) for family in sorted(of_service[service]) if family in seen]:
            lines.append(f"- as above: {', '.join(again)}")
        lines.append("")
        seen.update(of_service[service])
    return "\n".join(lines)


def families() -> dict[str, list[_Family]]:
    """Returns the metrics that each process declares, by its command: name, type, labels and help text."""
    return {
        "serve": list(_serve()),
        "stream": list(_stream()),
        "companion": list(_companion()),
        "shadow": list(_shadow()),
    }


# A metric as the page shows it: name, type, labels, help.
_Family = tuple[str, str, tuple[str, ...], str]


def _line(family: _Family) -> str:
    name, kind, labels, text = family
    shown = "" if name.endswith("_total") or kind == "gauge" else kind
    return entry(f"{name}{{{','.join(labels)}}}" if labels else name, (shown,), text)


class _Recorder(CollectorRegistry):
    """A registry that remembers registered metrics, so that metrics without a series are listed as well."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        self.collectors.append(collector)

    def families(self) -> Iterator[_Family]:
        for collector in self.collectors:
            if isinstance(collector, Counter | Gauge | Histogram):
                _add_series(collector)
            yield from map(_family, collector.collect())


def _add_series(metric: Counter | Gauge | Histogram) -> None:
    """Give a metric with labels a series: only a series shows the names of its labels."""
    for count in range(10):
        try:
            metric.labels(*[""] * count)
        except ValueError:
            continue
        return


def _family(metric: Metric) -> _Family:
    labels = tuple(name for name in (metric.samples[0].labels if metric.samples else {}) if name != "le")
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    return name, metric.type, labels, metric.documentation


def _objectives() -> dict[str, int]:
    return {entity.name: 1 for entity in CATALOGUE.entities}


def _stream() -> Iterable[_Family]:
    from paywarden.features.stores.aerospike.metrics import AerospikeMetrics
    from paywarden.streams.counts.checked_state import SetAsideState
    from paywarden.streams.dead_letters.letter_counts import DeadLetterCounts
    from paywarden.streams.drift.drift_metrics import DetectionMetrics, DriftMetrics
    from paywarden.streams.kafka.stalls.open_transactions import transaction_gauge
    from paywarden.streams.outcomes.outcome_metrics import OutcomeMetrics
    from paywarden.streams.profiles.profile_metrics import StreamMetrics

    registry = _Recorder()
    StreamMetrics(registry, _objectives())
    DeadLetterCounts(registry, "")
    # Scores have a series once a decision is counted.
    DriftMetrics(registry).counted("", [0.5], {})
    DetectionMetrics(registry)
    OutcomeMetrics(registry)
    transaction_gauge(registry)
    SetAsideState(registry)
    AerospikeMetrics(registry)
    return registry.families()


def _companion() -> Iterable[_Family]:
    from paywarden.features.stores.aerospike.metrics import AerospikeMetrics
    from paywarden.streams.companion.companion_health import CompanionHealth
    from paywarden.streams.companion.companion_metrics import CompanionMetrics
    from paywarden.streams.kafka.stalls.open_transactions import transaction_gauge
    from paywarden.streams.registry.follower import FollowerMetrics
    from paywarden.streams.rollouts.rollout_metrics import RolloutCollector

    registry = _Recorder()
    # The gauges of age and readiness ask the health object as long as the metrics are read.
    health = CompanionHealth(1)
    CompanionMetrics(registry, _objectives(), health)
    transaction_gauge(registry)
    FollowerMetrics(registry)
    registry.register(RolloutCollector(None))
    AerospikeMetrics(registry)
    return list(registry.families())


def _shadow() -> Iterable[_Family]:
    from paywarden.streams.shadow.host import ShadowMetrics

    registry = _Recorder()
    ShadowMetrics(registry, [""])
    return list(registry.families())


def _serve() -> Iterable[_Family]:
    from paywarden.models.bundle.version import Version
    from paywarden.models.policy.policy import flags_of
    from paywarden.scoring.grpc.metrics import GrpcMetrics
    from paywarden.scoring.idempotency.decision_cache import DecisionCacheMetrics
    from paywarden.scoring.metrics.model import ModelMetrics
    from paywarden.scoring.metrics.release import ShownRelease, SwapMetrics, declare_info
    from paywarden.scoring.metrics.shared_metrics import MetricsRegistry, render
    from paywarden.scoring.metrics.worker_metrics import (
        GarbagePauses,
        HttpMetrics,
        ScoringMetrics,
        StageTimes,
        ready_gauge,
    )
    from paywarden.scoring.server.supervisor import SupervisorMetrics
    from paywarden.scoring.server.watch import declare_failures
    from paywarden.scoring.state.outbox import OutboxMetrics
    from paywarden.scoring.state.overlay.overlay import OverlayMetrics

    registry, entities = MetricsRegistry(), tuple(_objectives())
    HttpMetrics.declare(registry)
    GrpcMetrics.declare(registry)
    GarbagePauses(registry)
    StageTimes(registry)
    scoring = ScoringMetrics.declare(registry, flags=flags_of(entities), entities=entities)
    models, outbox = ModelMetrics.declare(registry), OutboxMetrics.declare(registry)
    DecisionCacheMetrics.declare(registry)
    OverlayMetrics.declare(registry)
    declare_failures(registry)
    SupervisorMetrics.declare(registry)
    SwapMetrics.declare(registry).time.set(0)
    declare_info(registry, [ShownRelease("active", Version(""))])
    # A gauge without a value is not shown.
    ready = ready_gauge(registry)
    for gauge in (scoring.mirror_age_seconds, outbox.unshipped_bytes, ready, *models.is_out.values()):
        gauge.set(0)
    with TemporaryDirectory() as folder, closing(registry):
        registry.open(Path(folder), "worker-0")
        text = render(Path(folder)).decode()
    return [_family(metric) for metric in text_string_to_metric_families(text)]
