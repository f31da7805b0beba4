"""The Prometheus metrics of the Aerospike store. The caller of the store passes the registry that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from paywarden.features.stores.aerospike.client import REASONS

OPERATIONS = ("read", "write", "delete", "scan")

# The levels of faults in a cluster's settings: cluster_check.py says what they mean.
FINDING_LEVELS = ("error", "warning")

# A failure outside the cluster: a wrong setting.
MISCONFIGURED = "misconfigured"

# A batch on the local network takes about half a millisecond; a call ends after total_timeout_ms, two seconds,
# and a page of a scan after scan_page_timeout_ms, thirty.
_BOUNDS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 30)


class AerospikeMetrics:
    """The counters of all stores of a process. Without a registry they count, but nothing shows them.

    The labels are bounded: the operations, reasons and states come from this module and its neighbours. Safe to use
    from several threads.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        calls = Counter("paywarden_store_calls", "Calls to the store's cluster.", ["operation"], registry=registry)
        failures = Counter(
            "paywarden_store_failures",
            "Calls that failed after the client's own retries.",
            ["operation", "reason"],
            registry=registry,
        )
        seconds = Histogram(
            "paywarden_store_call_seconds",
            "How long calls to the store's cluster take, retries included; failed ones too.",
            ["operation"],
            buckets=_BOUNDS_S,
            registry=registry,
        )
        records = Counter(
            "paywarden_store_records",
            "Records read, written, deleted and scanned; found written by an earlier attempt (confirmed); "
            "changed by someone else before they could be written (conflict).",
            ["what"],
            registry=registry,
        )
        findings = Gauge(
            "paywarden_store_findings",
            "Findings of `paywarden doctor --only store` about the cluster, at the last opening of a profile set.",
            ["level"],
            registry=registry,
        )
        self.moving = Gauge(
            "paywarden_store_moving_partitions",
            "Partitions whose copies have yet to move, of all nodes; the stream looks every two seconds.",
            registry=registry,
        )
        self.second_faults = Counter(
            "paywarden_store_second_faults",
            "Nodes that went while copies moved, or as many at once as a record has copies: they hide records.",
            registry=registry,
        )
        # The labels are resolved once, here.
        self._calls = {operation: calls.labels(operation) for operation in OPERATIONS}
        self._seconds = {operation: seconds.labels(operation) for operation in OPERATIONS}
        self._failures = {
            (operation, reason): failures.labels(operation, reason)
            for operation in OPERATIONS
            for reason in (*REASONS, MISCONFIGURED)
        }
        self._findings = {level: findings.labels(level) for level in FINDING_LEVELS}
        self.read = records.labels("read")
        self.written = records.labels("written")
        self.deleted = records.labels("deleted")
        self.scanned = records.labels("scanned")
        self.confirmed = records.labels("confirmed")
        self.conflict = records.labels("conflict")
        self._retries = _Retries()
        if registry is not None:
            registry.register(self._retries)

    def call_ended(self, operation: str, seconds: float) -> None:
        """Record a call and its duration."""
        self._calls[operation].inc()
        self._seconds[operation].observe(seconds)

    def call_failed(self, operation: str, reason: str) -> None:
        """Record a call that failed; `reason` is one of REASONS, or MISCONFIGURED."""
        self._failures[operation, reason].inc()

    def found(self, level: str, count: int) -> None:
        """Record how many findings the last look at the cluster gave; `level` is one of FINDING_LEVELS."""
        self._findings[level].set(count)

    def opened(self, store: object, retry_count: Callable[[], int]) -> None:
        """Add a store, with the function that returns its client's own number of retries, called at each collection."""
        self._retries.counts[store] = retry_count

    def closed(self, store: object) -> None:
        """Remove a store. Its retries stay in the sum. A second time has no effect."""
        count = self._retries.counts.pop(store, None)
        if count is not None:
            self._retries.past += count()


class _Retries(Collector):
    """Shows the clients' own count of retries, which happen inside the clients."""

    def __init__(self) -> None:
        self.counts: dict[object, Callable[[], int]] = {}
        self.past = 0

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "paywarden_store_retries",
            "Attempts that the client made again by itself.",
            value=self.past + sum(count() for count in list(self.counts.values())),
        )
