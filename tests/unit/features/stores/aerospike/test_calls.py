"""The Aerospike store's counters and health, against the stand-in and a clock that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from paywarden.features.stores.aerospike.client import REASONS
from paywarden.features.stores.aerospike.metrics import MISCONFIGURED, OPERATIONS, AerospikeMetrics
from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore
from paywarden.features.stores.base import StoreConflict
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from tests.standin.aerospike_server import Fault, StandIn
from tests.standin.patience import FakeTime, quick_settings

RECORD_BUSY = 14
OVERLOAD = 18
SERVER_TIMEOUT = 9
NOT_ONE_WE_KNOW = 99
CARDS = {b"card:%d" % number: b"value %d" % number for number in range(5)}


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def settings(server: StandIn) -> AerospikeSettings:
    return replace(quick_settings(server.address), max_retries=0)


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def store(settings: AerospikeSettings, time: FakeTime, registry: CollectorRegistry) -> Iterator[AerospikeStore]:
    opened = AerospikeStore(settings, metrics=AerospikeMetrics(registry), clock=time.clock, sleep=time.sleep)
    yield opened
    opened.close()


# Counters


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"paywarden_store_{name}", labels)


def test_calls_and_records_are_counted_by_what_was_done(store: AerospikeStore, registry: CollectorRegistry) -> None:
    store.write(CARDS, ttl_s=0)
    store.read([*CARDS, b"card:absent"])
    store.read_versioned([b"card:1"])
    assert len(list(store.scan("card"))) == 5
    store.delete([b"card:1", b"card:2"])
    for operation, call_count in zip(OPERATIONS, (2, 1, 1, 1), strict=True):
        assert value(registry, "calls_total", operation=operation) == call_count
        assert value(registry, "call_seconds_count", operation=operation) == call_count
    counted = {"read": 7, "written": 5, "scanned": 5, "deleted": 2, "confirmed": 0, "conflict": 0}
    for what, count in counted.items():
        assert value(registry, "records_total", what=what) == count


def test_records_of_a_lost_answer_and_of_a_conflict_are_counted(
    server: StandIn, settings: AerospikeSettings, registry: CollectorRegistry
) -> None:
    store = AerospikeStore(replace(settings, max_retries=2), metrics=AerospikeMetrics(registry))
    server.faults.add(Fault.drop_answer())
    store.write(CARDS, ttl_s=0, versions=dict.fromkeys(CARDS, 0))
    assert value(registry, "records_total", what="confirmed") == 5
    assert value(registry, "records_total", what="written") == 5
    with pytest.raises(StoreConflict):
        store.write({b"card:1": b"mine", b"card:2": b"mine"}, ttl_s=0, versions={b"card:1": 7, b"card:2": 2})
    assert value(registry, "records_total", what="conflict") == 1
    assert value(registry, "records_total", what="written") == 6
    store.close()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault.drop(), "connection"),
        (Fault.refuse(SERVER_TIMEOUT), "timeout"),
        (Fault.refuse(OVERLOAD), "overload"),
        (Fault.refuse_records(OVERLOAD, frozenset({2})), "overload"),
        (Fault.refuse_records(RECORD_BUSY), "busy"),
        (Fault.refuse(11), "cluster"),
        (Fault.refuse(8), "full"),
        (Fault.refuse_records(81), MISCONFIGURED),
        (Fault.refuse(NOT_ONE_WE_KNOW), "other"),
    ],
)
def test_failures_are_counted_by_reason(
    server: StandIn, store: AerospikeStore, registry: CollectorRegistry, fault: Fault, reason: str
) -> None:
    server.faults.add(fault)
    with pytest.raises((StoreUnavailable, Misconfigured)):
        store.write(CARDS, ttl_s=0)
    for one in (*REASONS, MISCONFIGURED):
        assert value(registry, "failures_total", operation="write", reason=one) == (one == reason)
    assert value(registry, "calls_total", operation="write") == 1
    assert value(registry, "records_total", what="written") == 0


def test_the_client_s_own_retries_are_counted(
    server: StandIn, settings: AerospikeSettings, registry: CollectorRegistry
) -> None:
    store = AerospikeStore(replace(settings, max_retries=2), metrics=AerospikeMetrics(registry))
    assert value(registry, "retries_total") == 0
    server.faults.add(Fault.refuse(OVERLOAD), times=2)
    store.read(list(CARDS))
    assert value(registry, "retries_total") == 2
    store.close()


def test_every_series_is_there_from_the_start_and_none_comes_later(
    server: StandIn, settings: AerospikeSettings, registry: CollectorRegistry
) -> None:
    store = AerospikeStore(settings, metrics=AerospikeMetrics(registry))

    def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for metric in registry.collect()
            for sample in metric.samples
        }

    at_start = series()
    for code in range(1, 256):
        server.faults.add(Fault.refuse_records(code))
        with pytest.raises((StoreUnavailable, Misconfigured), match=f"code {code}"):
            store.write(CARDS, ttl_s=0)
    assert series() == at_start
    store.close()


# Health


@pytest.mark.parametrize("fault", [Fault.never_answer(), Fault.drop(), Fault.drop_midway()])
def test_a_silent_server_is_unwell_with_a_reason_in_one_line(
    server: StandIn, settings: AerospikeSettings, fault: Fault
) -> None:
    store = AerospikeStore(replace(settings, info_timeout_ms=100))
    server.info_faults.add(fault)
    health = store.health()
    assert not health
    assert server.address in health.reason
    assert "no answer" in health.reason
    assert "\n" not in health.reason
    store.close()


@pytest.mark.parametrize("switch", ["stop_writes", "clock_skew_stop_writes"])
def test_a_server_that_takes_no_writes_is_unwell(server: StandIn, store: AerospikeStore, switch: str) -> None:
    server.info["namespace/test"] = f"effective_replication_factor=1;{switch}=true;objects=1"
    assert store.health().reason.endswith(f"takes no writes now ({switch})")


def test_a_namespace_that_is_gone_is_unwell(server: StandIn, store: AerospikeStore) -> None:
    server.info["namespace/test"] = "type=unknown"
    assert "namespace" in store.health().reason
