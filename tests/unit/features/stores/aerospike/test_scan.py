"""Scans on Aerospike: at what rate, with what progress, and what becomes of one when nodes are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore
from paywarden.schemas.errors import StoreUnavailable
from tests.standin.aerospike_cluster import StandInCluster
from tests.standin.aerospike_server import Fault, StandIn, namespace_statistics
from tests.standin.aerospike_wire import FIELD_MAX_RECORDS, FIELD_RECORDS_PER_SECOND
from tests.standin.patience import FakeTime, quick_settings, wait_until

OVERLOAD = 18
TEND_S = 0.25
PAGE_RECORD_COUNT = 10
CARDS = {b"card:%d" % number: b"value %d" % number for number in range(35)}


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


Open = Callable[..., AerospikeStore]


@pytest.fixture
def open_store(time: FakeTime) -> Iterator[Open]:
    """Opens a store on these hosts, with settings that differ, and writes the cards."""
    opened: list[AerospikeStore] = []

    def open_it(*hosts: str, **settings: int) -> AerospikeStore:
        small = replace(quick_settings(*hosts), scan_page_record_count=PAGE_RECORD_COUNT, scan_records_per_second=0)
        changed: AerospikeSettings = replace(small, **settings)  # type: ignore[arg-type]
        opened.append(AerospikeStore(changed, clock=time.clock, sleep=time.sleep))
        opened[-1].write(CARDS, ttl_s=0)
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def cluster() -> Iterator[StandInCluster]:
    with StandInCluster(node_count=2) as running:
        yield running


def told_by(store: AerospikeStore, entity: str = "card") -> list[tuple[int, int | None]]:
    told: list[tuple[int, int | None]] = []
    list(store.scan(entity, progress=lambda *progress: told.append(progress)))
    return told


# Rate


def test_a_scan_goes_page_by_page_and_sends_the_rate_to_the_server(server: StandIn, open_store: Open) -> None:
    store = open_store(server.address, scan_records_per_second=1_234)
    scanned = list(store.scan("card"))
    assert len(scanned) == 35
    assert dict(scanned) == CARDS
    assert len(server.scans) == 4
    for page in server.scans:
        assert int.from_bytes(page.fields[FIELD_MAX_RECORDS], "big") == PAGE_RECORD_COUNT
        assert int.from_bytes(page.fields[FIELD_RECORDS_PER_SECOND], "big") == 1_234


def test_a_scan_waits_between_pages_to_keep_the_rate(server: StandIn, open_store: Open, time: FakeTime) -> None:
    store = open_store(server.address, scan_records_per_second=20)
    list(store.scan("card"))
    assert time.slept_s == [0.5, 0.5, 0.5]


# Progress


def test_a_record_that_is_kept_twice_is_expected_once(cluster: StandInCluster, open_store: Open) -> None:
    assert told_by(open_store(*cluster.hosts))[0] == (0, 35)


@pytest.mark.parametrize(
    "answer",
    [
        namespace_statistics(node_count=3, copy_count=1),
        "type=unknown",
        "ns_cluster_size=1;effective_replication_factor=soon",
        "ns_cluster_size=1;effective_replication_factor=0",
    ],
    ids=["a node is missing", "no namespace", "no number", "no copies"],
)
def test_an_unknown_number_of_records_is_expected_as_none(server: StandIn, open_store: Open, answer: str) -> None:
    store = open_store(server.address)
    server.info["namespace/test"] = answer
    told = told_by(store)
    assert told[0] == (0, None)
    assert told[-1] == (35, None)


def test_a_server_that_is_silent_about_itself_is_scanned_all_the_same(server: StandIn, open_store: Open) -> None:
    store = open_store(server.address, info_timeout_ms=100)
    server.info_faults.add(Fault.never_answer())
    assert told_by(store)[-1] == (35, None)


# Lost nodes and other trouble


@pytest.mark.parametrize("page", [0, 1, 2, 3])
def test_a_half_received_page_is_read_again_without_loss_or_repeats(
    server: StandIn, open_store: Open, page: int
) -> None:
    """The client's query, asked again after such an error, goes on behind the records it has thrown away."""
    store = open_store(server.address, max_retries=0, scan_patience_ms=1_000)
    server.faults.add(Fault(), times=page)
    server.faults.add(Fault.drop_midway())
    scanned = list(store.scan("card"))
    assert len(scanned) == 35
    assert dict(scanned) == CARDS


@pytest.mark.parametrize(
    "fault",
    [Fault.drop(), Fault.refuse(OVERLOAD), Fault.refuse(9), Fault.refuse(210)],
    ids=["dropped", "overloaded", "timed out there", "aborted there"],
)
def test_a_scan_waits_for_a_temporary_failure(server: StandIn, open_store: Open, time: FakeTime, fault: Fault) -> None:
    store = open_store(server.address, max_retries=0, scan_patience_ms=1_000)
    server.faults.add(Fault())
    server.faults.add(fault, times=3)
    scanned = list(store.scan("card"))
    assert len(scanned) == 35
    assert dict(scanned) == CARDS
    assert time.slept_s == [TEND_S] * 3


@pytest.mark.parametrize("fault", [Fault.never_answer(), Fault.delay(0.6)], ids=["silent", "late"])
def test_a_page_that_does_not_come_in_time_is_asked_for_again(server: StandIn, open_store: Open, fault: Fault) -> None:
    store = open_store(server.address, max_retries=0, scan_patience_ms=60_000, scan_page_timeout_ms=200)
    server.faults.add(Fault())
    server.faults.add(fault, times=2)
    scanned = list(store.scan("card"))
    assert len(scanned) == 35
    assert dict(scanned) == CARDS


def test_a_lasting_failure_ends_a_scan_after_its_patience(server: StandIn, open_store: Open, time: FakeTime) -> None:
    store = open_store(server.address, scan_patience_ms=1_000)
    scan = store.scan("card")
    given = [next(scan) for _ in range(PAGE_RECORD_COUNT)]
    server.faults.add(Fault.refuse(OVERLOAD), times=50)
    with pytest.raises(StoreUnavailable, match=f"scan failed .*code {OVERLOAD}"):
        given += list(scan)
    assert time.slept_s == [TEND_S] * 4
    assert len(given) == PAGE_RECORD_COUNT


def test_a_missing_partition_ends_a_scan_with_an_error(server: StandIn, open_store: Open) -> None:
    store = open_store(server.address)
    server.faults.add(Fault.unavailable(frozenset(range(0, 4096, 2))), times=50)
    with pytest.raises(StoreUnavailable):
        list(store.scan("card"))


def test_a_scan_waits_until_another_node_takes_over(cluster: StandInCluster, open_store: Open, time: FakeTime) -> None:
    store = open_store(*cluster.hosts, scan_patience_ms=60_000)
    scan = store.scan("card")
    scanned = [next(scan)]
    cluster.lose(1)

    def heal() -> None:
        # The scan is the only one that waits, so the cluster heals while it does, and the client learns of it.
        if len(time.slept_s) == 2:
            cluster.take_over()
            wait_until(lambda: len(store._client.get_node_names()) == 1)

    time.on_sleep = heal
    scanned += scan
    assert len(time.slept_s) >= 2
    assert len(scanned) == 35
    assert dict(scanned) == CARDS


def test_losing_more_nodes_than_copies_ends_a_scan(cluster: StandInCluster, open_store: Open, time: FakeTime) -> None:
    """The nodes that are left answer for the partitions of a lost one, as if these had never held anything."""
    for node in cluster.nodes:
        node.info["namespace/test"] = namespace_statistics(node_count=2, copy_count=1)
    store = open_store(*cluster.hosts, scan_patience_ms=1_000)
    scan = store.scan("card")
    scanned = [next(scan)]
    cluster.lose(1)
    cluster.take_over()
    wait_until(lambda: len(store._client.get_node_names()) == 1)
    with pytest.raises(StoreUnavailable, match=r"lost 1 of 2 nodes.*copies on 1"):
        scanned += scan
    assert time.slept_s == [TEND_S] * 4


def test_at_the_end_a_silent_node_is_asked_again_before_it_is_lost(
    server: StandIn, open_store: Open, time: FakeTime
) -> None:
    store = open_store(server.address, scan_patience_ms=1_000)
    scan = store.scan("card")
    scanned = [next(scan)]
    server.info_faults.add(Fault.drop())
    scanned += scan
    assert dict(scanned) == CARDS
    assert time.slept_s == [TEND_S]
