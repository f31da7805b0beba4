"""The metrics of the gRPC front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paywarden.scoring.grpc.messages import CODES
from paywarden.scoring.metrics.shared_metrics import Counter, MetricHistogram, MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import REQUEST_SECONDS_BOUNDS, ConnectionMetrics

# "none" counts requests without a known method.
METHODS = ("Score", "ScoreBatch", "Check", "List", "Watch", "ServerReflectionInfo", "none")
_TIMED = ("Score", "ScoreBatch")


@dataclass(frozen=True)
class GrpcMetrics:
    """Metric handles by method and code. `seconds` has only the methods that score."""

    requests: Mapping[tuple[str, str], Counter]
    seconds: Mapping[str, MetricHistogram]
    connections: ConnectionMetrics

    @classmethod
    def declare(cls, registry: MetricsRegistry) -> GrpcMetrics:
        requests = {
            (method, code): registry.counter(
                "paywarden_grpc_requests_total", "gRPC calls answered.", ("method", "code"), (method, code)
            )
            for method in METHODS
            for code in CODES
        }
        seconds = {
            method: registry.histogram(
                "paywarden_grpc_request_seconds",
                "From a gRPC request's last byte read to its answer being handed to HTTP/2.",
                ("method",),
                (method,),
                bounds=REQUEST_SECONDS_BOUNDS,
            )
            for method in _TIMED
        }
        return cls(requests, seconds, ConnectionMetrics.declare(registry, "grpc"))
