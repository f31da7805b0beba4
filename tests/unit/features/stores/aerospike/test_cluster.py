"""The Aerospike store on a cluster of several nodes: one that comes back, one that fails, copies that differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace

import aerospike
import pytest
from prometheus_client import CollectorRegistry

from paywarden.features.stores.aerospike.store import AerospikeMetrics, AerospikeSettings, AerospikeStore
from paywarden.features.stores.base import ABSENT, update_records
from paywarden.schemas.errors import StoreUnavailable
from tests.standin.aerospike_cluster import StandInCluster
from tests.standin.aerospike_records import partition_of
from tests.standin.aerospike_server import Fault
from tests.standin.patience import FakeTime, quick_settings, wait_until

OVERLOAD = 18
NODE_COUNT = 3
CARDS = {b"card:%d" % number: b"value %d" % number for number in range(60)}
LATER = {b"card:%d" % number: b"later %d" % number for number in range(30, 90)}


@pytest.fixture
def cluster() -> Iterator[StandInCluster]:
    with StandInCluster(node_count=NODE_COUNT) as running:
        yield running


@pytest.fixture
def settings(cluster: StandInCluster) -> AerospikeSettings:
    return quick_settings(*cluster.hosts)


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def node_count(store: AerospikeStore) -> int:
    return len(store._client.get_node_names())


def reads(store: AerospikeStore, keys: Iterable[bytes]) -> list[bytes | None] | None:
    """Returns the values, or None while the cluster does not answer."""
    with suppress(StoreUnavailable):
        return store.read(list(keys))
    return None


def lose_and_bring_back(cluster: StandInCluster, store: AerospikeStore) -> None:
    """Let the last node miss the writes of LATER; it is back, and does not have them yet."""
    store.write(CARDS, ttl_s=0)
    cluster.lose(NODE_COUNT - 1)
    cluster.take_over()
    wait_until(lambda: node_count(store) == NODE_COUNT - 1)
    store.write(LATER, ttl_s=0)
    cluster.bring_back(NODE_COUNT - 1, is_behind=True)
    wait_until(lambda: node_count(store) == NODE_COUNT)
    # The client sends records to the node only when it has its partition map, too.
    wait_until(lambda: None in store_of_one_copy_reads(cluster))


def store_of_one_copy_reads(cluster: StandInCluster) -> list[bytes | None]:
    with closing(AerospikeStore(replace(quick_settings(*cluster.hosts), read_mode_ap="one"))) as careless:
        return careless.read(list(LATER))


# A node that comes back


def test_acknowledged_records_are_read_while_a_node_that_came_back_lacks_them(
    cluster: StandInCluster, settings: AerospikeSettings
) -> None:
    with closing(AerospikeStore(settings)) as store:
        lose_and_bring_back(cluster, store)
        assert store.read(list(LATER)) == list(LATER.values())
        assert [store.read([key])[0] for key in LATER] == list(LATER.values())


def test_a_scan_waits_until_a_node_that_came_back_has_its_copies(
    cluster: StandInCluster, settings: AerospikeSettings, time: FakeTime
) -> None:
    patient = replace(settings, scan_patience_ms=10_000)
    with closing(AerospikeStore(patient, clock=time.clock, sleep=time.sleep)) as store:
        lose_and_bring_back(cluster, store)
        time.on_sleep = lambda: cluster.end_migration(NODE_COUNT - 1) if len(time.slept_s) == 3 else None
        assert dict(store.scan("card")) == {**CARDS, **LATER}
        assert len(time.slept_s) == 3


def test_a_scan_that_waited_in_vain_goes_on_and_says_so(
    cluster: StandInCluster, settings: AerospikeSettings, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    patient = replace(settings, scan_patience_ms=1_000)
    with closing(AerospikeStore(patient, clock=time.clock, sleep=time.sleep)) as store:
        lose_and_bring_back(cluster, store)
        scanned = dict(store.scan("card"))
    # Why it waits: the node has the whole partition, and yet not what the others have acknowledged.
    assert CARDS.keys() - LATER.keys() <= scanned.keys()
    assert scanned != {**CARDS, **LATER}
    (record,) = caplog.records
    assert "may miss what was written last" in record.getMessage()


def test_a_write_on_a_node_that_came_back_builds_on_what_was_acknowledged(
    cluster: StandInCluster, settings: AerospikeSettings
) -> None:
    with closing(AerospikeStore(settings)) as store:
        lose_and_bring_back(cluster, store)
        versions = {key: one.version for key, one in zip(LATER, store.read_versioned(list(LATER)), strict=True)}
        assert ABSENT not in versions.values()
        newest = {key: value + b", newest" for key, value in LATER.items()}
        store.write(newest, ttl_s=0, versions=versions)
        cluster.end_migration(NODE_COUNT - 1)
        assert store.read(list(newest)) == list(newest.values())


# A node that the network cuts off


def new_cards_of_the_cut_off(cluster: StandInCluster, settings: AerospikeSettings) -> dict[bytes, bytes]:
    return {key: b"new " + value for key, value in cards_by_node(cluster, settings)[1].items()}


def test_a_write_that_no_second_copy_has_is_never_acknowledged(
    cluster: StandInCluster, settings: AerospikeSettings
) -> None:
    new = new_cards_of_the_cut_off(cluster, settings)
    with closing(AerospikeStore(settings)) as store:
        store.write(CARDS, ttl_s=0)
        versions = {key: one.version for key, one in zip(new, store.read_versioned(list(new)), strict=True)}
        cluster.cut_off(1)
        for _ in range(3):
            # The node has written its own copy, and reads it back.
            with pytest.raises(StoreUnavailable):
                store.write(new, ttl_s=0, versions=versions)
            assert store.read(list(new)) == list(new.values())
        cluster.rejoin(1)
        assert store.read(list(new)) == [CARDS[key] for key in new]
        store.write(new, ttl_s=0, versions=versions)
        assert store.read(list(new)) == list(new.values())


def test_a_change_that_a_record_has_already_is_written_once_more(
    cluster: StandInCluster, settings: AerospikeSettings
) -> None:
    key = next(iter(new_cards_of_the_cut_off(cluster, settings)))

    def add(_: bytes, value: bytes | None) -> bytes | None:
        return None if value == b"added" else b"added"

    with closing(AerospikeStore(settings)) as store:
        store.write(CARDS, ttl_s=0)
        cluster.cut_off(1)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                update_records(store, [key], add, ttl_s=0)
        cluster.rejoin(1)
        update_records(store, [key], add, ttl_s=0)
        assert store.read([key]) == [b"added"]


# A second fault


@pytest.fixture
def pair() -> Iterator[StandInCluster]:
    with StandInCluster(node_count=2) as running:
        yield running


def test_a_second_fault_while_copies_move_is_counted_and_named(pair: StandInCluster) -> None:
    registry = CollectorRegistry()

    def faults() -> float | None:
        return registry.get_sample_value("paywarden_store_second_faults_total")

    with closing(AerospikeStore(quick_settings(*pair.hosts), metrics=AerospikeMetrics(registry))) as store:
        store.write(CARDS, ttl_s=0)
        assert store.health().why_hidden == ""
        pair.lose(1)
        pair.take_over()
        wait_until(lambda: node_count(store) == 1)
        assert store.health().why_hidden == ""
        store.write(LATER, ttl_s=0)
        pair.bring_back(1, is_behind=True)
        wait_until(lambda: node_count(store) == 2)
        assert store.health().why_hidden == "copies of 60 partitions move"
        assert registry.get_sample_value("paywarden_store_moving_partitions") == 60
        assert faults() == 0

        pair.lose(0, hides=True)
        pair.take_over()
        wait_until(lambda: node_count(store) == 1)
        # It may still have the partition map in which the lost node has records.
        wait_until(lambda: reads(store, LATER) is not None)
        assert None in store.read(list(LATER))
        assert pair.nodes[0].node_name in store.health().why_hidden
        assert store.health()
        assert faults() == 1

        pair.bring_back(0)
        wait_until(lambda: node_count(store) == 2 and store.health().why_hidden.startswith("copies of"))
        assert store.read(list(LATER)) == list(LATER.values())
        pair.end_migration(1)
        assert store.health().why_hidden == ""
        assert faults() == 1


# A node that fails


def cards_by_node(cluster: StandInCluster, settings: AerospikeSettings) -> list[dict[bytes, bytes]]:
    found: list[dict[bytes, bytes]] = [{} for _ in cluster.nodes]
    for key, value in CARDS.items():
        digest = bytes(aerospike.calc_digest(settings.namespace, "card", bytearray(key.partition(b":")[2])))
        (owner,) = [n for n, node in enumerate(cluster.nodes) if partition_of(digest) in node.partitions]
        found[owner][key] = value
    return found


def test_with_one_of_three_nodes_failing_the_others_records_are_read_and_written(
    cluster: StandInCluster, settings: AerospikeSettings
) -> None:
    of_node = cards_by_node(cluster, settings)
    with closing(AerospikeStore(replace(settings, max_retries=0))) as store:
        store.write(CARDS, ttl_s=0)
        cluster.nodes[1].faults.add(Fault.refuse(OVERLOAD), times=1_000)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match=f"code {OVERLOAD}"):
                store.read(list(CARDS))
        for healthy in (0, 2):
            assert store.read(list(of_node[healthy])) == list(of_node[healthy].values())
        with pytest.raises(StoreUnavailable, match="write failed"):
            store.write(dict.fromkeys(CARDS, b"new"), ttl_s=0)
        for healthy in (0, 2):
            assert store.read(list(of_node[healthy])) == [b"new"] * len(of_node[healthy])
