"""Result code 22: what the servers are asked before anybody is blamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry

from paywarden.features.stores.aerospike.servers import NodeReport, why_forbidden
from paywarden.features.stores.aerospike.store import AerospikeMetrics, AerospikeStore
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from tests.standin.aerospike_server import Fault, StandIn
from tests.standin.patience import quick_settings

CARDS = {b"card:%d" % number: b"value %d" % number for number in range(5)}
FORBIDDEN = 22


class Clock:
    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[StandIn]:
    with StandIn(clock=clock) as running:
        yield running


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def store(server: StandIn, registry: CollectorRegistry) -> Iterator[AerospikeStore]:
    with closing(AerospikeStore(quick_settings(server.address), metrics=AerospikeMetrics(registry))) as opened:
        yield opened


def skew(server: StandIn) -> None:
    server.records.clock_skewed = True


def limit(server: StandIn) -> None:
    server.records.count_limits["card"] = 3


def truncate(server: StandIn) -> None:
    server.records.truncated_until_s["card"] = server.clock() + 60


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (skew, "clocks of the nodes differ too much"),
        (limit, "set card is at its stop-writes-count of 3"),
        (truncate, "set card is being truncated"),
    ],
)
@pytest.mark.parametrize("ttl_s", [0, 60])
def test_what_passes_is_a_temporary_failure_that_names_its_cause(
    server: StandIn,
    store: AerospikeStore,
    happens: Callable[[StandIn], None],
    said: str,
    ttl_s: int,
) -> None:
    store.write({b"card:a": b"a", b"card:b": b"b", b"card:c": b"c"}, ttl_s=0)
    happens(server)
    with pytest.raises(StoreUnavailable, match=said) as failed:
        store.write(CARDS, ttl_s=ttl_s)
    assert "nsup-period" not in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_write_goes_on_when_the_cause_has_passed(server: StandIn, store: AerospikeStore) -> None:
    skew(server)
    with pytest.raises(StoreUnavailable):
        store.write(CARDS, ttl_s=60)
    server.records.clock_skewed = False
    store.write(CARDS, ttl_s=60)
    assert store.read(list(CARDS)) == list(CARDS.values())


def test_only_a_namespace_without_expiry_is_misconfigured(server: StandIn, store: AerospikeStore) -> None:
    server.records.expiry_allowed = False
    with pytest.raises(Misconfigured, match="nsup-period is 0 on node"):
        store.write(CARDS, ttl_s=60)
    store.write(CARDS, ttl_s=0)
    # A record that does not expire is not forbidden for that reason.
    skew(server)
    with pytest.raises(StoreUnavailable, match="clocks"):
        store.write(CARDS, ttl_s=0)


def test_a_cause_that_no_node_tells_is_retried_all_the_same(server: StandIn, store: AerospikeStore) -> None:
    server.faults.add(Fault.refuse_records(FORBIDDEN))
    with pytest.raises(StoreUnavailable, match="no node says why"):
        store.write(CARDS, ttl_s=60)
    server.faults.add(Fault.refuse_records(FORBIDDEN))
    server.info_faults.add(Fault.drop())
    with pytest.raises(StoreUnavailable, match="no node says why"):
        store.write(CARDS, ttl_s=60)


def test_a_forbidden_write_is_counted_apart_and_stops_no_read(
    server: StandIn, store: AerospikeStore, registry: CollectorRegistry
) -> None:
    skew(server)
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            store.write(CARDS, ttl_s=60)
    labels = {"operation": "write", "reason": "forbidden"}
    assert registry.get_sample_value("paywarden_store_failures_total", labels) == 5
    assert "clock_skew_stop_writes" in store.health().reason
    assert store.read(list(CARDS)) == [None] * len(CARDS)


def report(**namespace: str) -> NodeReport:
    return NodeReport("N1", {name.replace("_", "-"): value for name, value in namespace.items()}, {}, {}, "", "")


def test_ttl_without_nsup_may_be_allowed_by_the_namespace() -> None:
    allowed = report(nsup_period="0", allow_ttl_without_nsup="true")
    assert not why_forbidden([allowed], [], expires=True).is_lasting
    assert why_forbidden([report(nsup_period="0")], [], expires=True).is_lasting


def test_a_set_over_its_bytes_is_named_with_its_limit() -> None:
    of_set = {"stop-writes-size": "1000", "data_used_bytes": "1001"}
    one = NodeReport("N1", {}, {"card": of_set, "merchant": of_set}, {}, "", "")
    said = why_forbidden([one], ["card"], expires=False).why
    assert said == "set card is at its stop-writes-size of 1000 bytes on N1"
