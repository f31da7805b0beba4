"""What the Aerospike store counts, for Prometheus. Whoever runs the store passes the registry to show it in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from paywarden.features.stores.aerospike.client import REASONS
from paywarden.features.stores.circuit_breaker import BreakerState

OPERATIONS = ("read", "write", "delete", "scan")

# Failures that are not the cluster's: a setting that is wrong, and calls that the breaker kept from it.
MISCONFIGURED = "misconfigured"
BREAKER_OPEN = "breaker_open"

# A batch on the local network takes about half a millisecond; a call ends after total_timeout_ms, two seconds,
# and a page of a scan after scan_page_timeout_ms, thirty.
_BOUNDS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 30)


class AerospikeMetrics:
    """Counters of one store. With `registry` None they count all the same, and nobody shows them.

    Labels are bounded: operations, reasons and states are those of this module and its neighbours. Safe to use
    from several threads.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        calls = Counter("paywarden_store_calls", "Calls to the store's cluster.", ["operation"], registry=registry)
        failures = Counter(
            "paywarden_store_failures",
            "Calls that failed after the client's own retries, or were not made.",
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
        breaker = Gauge(
            "paywarden_store_breaker", "1 at the state of the circuit breaker.", ["state"], registry=registry
        )
        # Labels are looked up once, here.
        self._calls = {operation: calls.labels(operation) for operation in OPERATIONS}
        self._seconds = {operation: seconds.labels(operation) for operation in OPERATIONS}
        self._failures = {
            (operation, reason): failures.labels(operation, reason)
            for operation in OPERATIONS
            for reason in (*REASONS, MISCONFIGURED, BREAKER_OPEN)
        }
        self._breaker = {state: breaker.labels(state.value) for state in BreakerState}
        self.read = records.labels("read")
        self.written = records.labels("written")
        self.deleted = records.labels("deleted")
        self.scanned = records.labels("scanned")
        self.confirmed = records.labels("confirmed")
        self.conflict = records.labels("conflict")
        self._retries = _Retries()
        if registry is not None:
            registry.register(self._retries)
        self.breaker_is(BreakerState.CLOSED)

    def call_ended(self, operation: str, seconds: float) -> None:
        """A call was made and took so long."""
        self._calls[operation].inc()
        self._seconds[operation].observe(seconds)

    def call_failed(self, operation: str, reason: str) -> None:
        """A call failed, or was not made; `reason` as in REASONS, MISCONFIGURED or BREAKER_OPEN."""
        self._failures[operation, reason].inc()

    def breaker_is(self, state: BreakerState) -> None:
        """The circuit breaker is in this state from now on."""
        for one, gauge in self._breaker.items():
            gauge.set(one is state)

    def count_retries_by(self, count: Callable[[], int]) -> None:
        """Where to ask how many attempts the client has made again by itself; asked when someone collects."""
        self._retries.count = count


class _Retries(Collector):
    """The client's own count, which no counter of ours could follow."""

    def __init__(self) -> None:
        self.count: Callable[[], int] = lambda: 0

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "paywarden_store_retries", "Attempts that the client made again by itself.", value=self.count()
        )
