"""The metrics of a scoring worker, as handles: to count costs one addition."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from paywarden.scoring.metrics.shared_metrics import Counter, Gauge, MetricHistogram, MetricsRegistry

REQUEST_SECONDS_BOUNDS = (
    *(0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.000_75),
    *(0.001, 0.002, 0.003, 0.005, 0.008),
    # 42 ms is the promised p99: a bound of its own, so that the share within it is exact.
    *(0.012, 0.02, 0.03, 0.042, 0.06, 0.1),
)
SCORE_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
ROUTES = ("score", "score_batch", "livez", "readyz", "metrics", "none")
CODES = (200, 400, 401, 404, 405, 408, 409, 413, 415, 417, 429, 431, 500, 503, 504, 505)
GC_PAUSE_SECONDS_BOUNDS = (0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1)
STAGES = ("wait", "parse", "claim", "look_up", "vector", "model", "decide", "append", "answer")
# From half a microsecond to the deadline.
STAGE_SECONDS_BOUNDS = (
    *(0.000_000_5, 0.000_001, 0.000_002, 0.000_003, 0.000_005, 0.000_008),
    *(0.000_012, 0.000_02, 0.000_03, 0.000_05, 0.000_1, 0.000_3),
    *(0.001, 0.003, 0.01, 0.04),
)
_TIMED_EVERY = 16
READY_METRIC = "paywarden_scoring_ready"
ACTIONS = ("approve", "review", "decline")


class RouteMetrics:
    """Metric handles of one route of the HTTP front."""

    __slots__ = ("requests", "seconds")

    def __init__(self, requests: Mapping[int, Counter], seconds: MetricHistogram | None) -> None:
        """`requests` are by status code. Without `seconds` only requests are counted."""
        self.requests, self.seconds = requests, seconds


@dataclass(frozen=True)
class ConnectionMetrics:
    """Counts connections at and beyond their limit."""

    closed_unread: Counter
    evicted: Counter
    refused: Counter

    @classmethod
    def declare(cls, registry: MetricsRegistry, protocol: str) -> ConnectionMetrics:
        """Declare the metrics of one front; `protocol` is "http" or "grpc"."""

        def counter(name: str, help_text: str) -> Counter:
            return registry.counter(f"paywarden_connections_{name}_total", help_text, ("protocol",), (protocol,))

        return cls(
            closed_unread=counter(
                "closed_unread",
                "Connections of refused callers that asked again at once, closed unread under overload.",
            ),
            evicted=counter("evicted", "Connections that had sent no payment, closed to make room for a new one."),
            refused=counter("refused", "Connections refused: connections_max are open and all have sent payments."),
        )


@dataclass(frozen=True)
class HttpMetrics:
    """Metric handles of the HTTP front. The route "none" counts requests without a known route."""

    requests: Mapping[tuple[str, int], Counter]
    seconds: Mapping[str, MetricHistogram]
    connections: ConnectionMetrics

    @classmethod
    def declare(cls, registry: MetricsRegistry) -> HttpMetrics:
        counted = {
            (route, code): registry.counter(
                "paywarden_requests_total", "Requests answered.", ("route", "code"), (route, str(code))
            )
            for route in ROUTES
            for code in CODES
        }
        seconds = {
            route: registry.histogram(
                "paywarden_request_seconds",
                "From a request's last byte read to its answer being written.",
                ("route",),
                (route,),
                bounds=REQUEST_SECONDS_BOUNDS,
            )
            for route in ("score", "score_batch")
        }
        return cls(counted, seconds, ConnectionMetrics.declare(registry, "http"))

    def of_route(self, route: str) -> RouteMetrics:
        """Returns the handles of one of ROUTES."""
        return RouteMetrics({code: self.requests[route, code] for code in CODES}, self.seconds.get(route))


@dataclass(frozen=True)
class ScoringMetrics:
    """Metric handles of the scorer. `mirror_lookups` is keyed by entity and result ("hit", "miss")."""

    decisions: Mapping[str, Counter]
    flags: Mapping[str, Counter]
    mirror_lookups: Mapping[tuple[str, str], Counter]
    mirror_age_seconds: Gauge
    score: MetricHistogram
    explored: Counter
    explored_minor: Counter

    @classmethod
    def declare(
        cls,
        registry: MetricsRegistry,
        *,
        flags: Iterable[str],
        entities: Iterable[str],
        results: Sequence[str] = ("hit", "miss"),
    ) -> ScoringMetrics:
        """Declare the metrics. `flags` and `entities` must be all that can occur."""

        def counters(name: str, help_text: str, label: str, values: Iterable[str]) -> dict[str, Counter]:
            return {value: registry.counter(name, help_text, (label,), (value,)) for value in values}

        return cls(
            decisions=counters("paywarden_decisions_total", "Decisions by action.", "action", ACTIONS),
            flags=counters("paywarden_flags_total", "Flags on decisions.", "flag", flags),
            mirror_lookups={
                (entity, result): registry.counter(
                    "paywarden_mirror_lookups_total",
                    "Profiles looked for in the mirror.",
                    ("entity", "result"),
                    (entity, result),
                )
                for entity in entities
                for result in results
            },
            mirror_age_seconds=registry.gauge(
                "paywarden_mirror_age_seconds", "How far the mirror lags behind the payments stream."
            ),
            score=registry.histogram("paywarden_score", "Scores given.", bounds=SCORE_BOUNDS),
            explored=registry.counter(
                "paywarden_explored_total", "Payments that exploration approved and the policy would have declined."
            ),
            explored_minor=registry.counter(
                "paywarden_explored_minor_total", "Amounts of these payments, in minor units of the reference currency."
            ),
        )


def ready_gauge(registry: MetricsRegistry) -> Gauge:
    """Declare whether a worker is ready. Shown for a host, it is 1 while any worker is."""
    return registry.gauge(READY_METRIC, "Whether any worker of the host is ready to answer payments.", scale=1)


class StageTimes:
    """Measures a payment's time in each stage. One chunk in sixteen is timed, which costs a payment 0.1 µs on average.

    The time of a stage is divided by the payments of the chunk. The stage "wait" is different: it is the time from a
    call's last byte to its chunk.
    """

    def __init__(self, registry: MetricsRegistry) -> None:
        self.seconds = {
            stage: registry.histogram(
                "paywarden_stage_seconds",
                "Time of each stage for a payment, in one chunk of sixteen.",
                ("stage",),
                (stage,),
                bounds=STAGE_SECONDS_BOUNDS,
                scale=1e-9,
            )
            for stage in STAGES
        }
        self.is_timed = False
        """Whether the current chunk is timed. Call `wait` and `lap` only then."""
        self._chunks = 0
        self._since = 0.0

    def begin(self, now_s: float) -> None:
        """Begin a chunk. `now_s` is in seconds of `time.perf_counter`."""
        self._chunks += 1
        self.is_timed = self._chunks % _TIMED_EVERY == 0
        self._since = now_s

    def wait(self, seconds: float) -> None:
        """Note how many seconds a call has waited for its chunk."""
        self.seconds["wait"].observe(max(0.0, seconds))

    def lap(self, stage: str, payments: int, now_s: float | None = None) -> None:
        """Note the end of a stage, which is `now_s` or now. It began when the stage before ended, or with the chunk."""
        now_s = time.perf_counter() if now_s is None else now_s
        if payments > 0:
            self.seconds[stage].observe_many((now_s - self._since) / payments, payments)
        self._since = now_s


class GarbagePauses:
    """Measures every pause for Python's garbage collector."""

    def __init__(self, registry: MetricsRegistry) -> None:
        self.seconds = registry.histogram(
            "paywarden_gc_pause_seconds", "Pauses for collecting garbage.", bounds=GC_PAUSE_SECONDS_BOUNDS
        )
        self._began = 0.0

    def watch(self) -> None:
        """Measure from now on, until `forget`."""
        gc.callbacks.append(self._note)

    def forget(self) -> None:
        """Stop measuring. Call it before the registry is closed."""
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, _: Mapping[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.seconds.observe(time.perf_counter() - self._began)
