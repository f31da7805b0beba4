"""The stand-in keeps rules of the real server on which the profile store does not rely, but a reader of tests may."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import aerospike
import pytest
from aerospike import exception as client_errors
from aerospike_helpers.batch.records import BatchRecords, Read, Write
from aerospike_helpers.operations import operations

from tests.standin.aerospike_cluster import StandInCluster
from tests.standin.aerospike_records import (
    ENTERPRISE_ONLY,
    NOT_FOUND,
    OK,
    RECORD_EXISTS,
    WRONG_GENERATION,
    partition_of,
)
from tests.standin.aerospike_server import Fault, StandIn
from tests.standin.patience import wait_until

KEY = ("test", "demo", "key")


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def client(server: StandIn) -> Iterator[aerospike.Client]:
    aerospike.set_log_level(aerospike.LOG_LEVEL_OFF)
    connected = aerospike.client({"hosts": [("127.0.0.1", server.port)]})
    yield connected
    connected.close()


def test_a_record_is_put_read_and_removed(client: aerospike.Client) -> None:
    client.put(KEY, {"number": 7, "text": "seven", "blob": b"\0seven"})
    _, _, bins = client.get(KEY)
    assert bins == {"number": 7, "text": "seven", "blob": b"\0seven"}
    client.remove(KEY)
    with pytest.raises(client_errors.RecordNotFound):
        client.get(KEY)


def test_a_write_adds_bins_and_raises_the_generation_or_replaces_all(client: aerospike.Client) -> None:
    client.put(KEY, {"a": 1})
    client.put(KEY, {"b": 2})
    _, meta, bins = client.get(KEY)
    assert bins == {"a": 1, "b": 2}
    assert meta["gen"] == 2
    client.put(KEY, {"c": 3}, policy={"exists": aerospike.POLICY_EXISTS_CREATE_OR_REPLACE})
    assert client.get(KEY)[2] == {"c": 3}


def test_a_batch_may_mix_reads_and_writes_and_answers_each(client: aerospike.Client) -> None:
    other = ("test", "demo", "other")
    absent = ("test", "demo", "absent")
    client.put(KEY, {"a": 1})
    batch = BatchRecords(
        [
            Read(KEY, [operations.read("a")]),
            Write(other, [operations.write("a", 2)]),
            Read(other, None, read_all_bins=True),
            Read(absent, None, read_all_bins=True),
        ]
    )
    client.batch_write(batch)
    assert [one.result for one in batch.batch_records] == [OK, OK, OK, NOT_FOUND]
    assert [batch.batch_records[at].record[2] for at in (0, 2)] == [{"a": 1}, {"a": 2}]


def test_the_client_and_the_stand_in_agree_on_partitions(server: StandIn, client: aerospike.Client) -> None:
    for number in range(50):
        client.put(("test", "demo", number), {"a": number})
    for number in range(50):
        digest = bytes(aerospike.calc_digest("test", "demo", number))
        assert digest in server.records.by_digest
        assert client.get_key_partition_id("test", "demo", number) == partition_of(digest)


def test_faults_meet_messages_in_order_and_then_end(server: StandIn, client: aerospike.Client) -> None:
    client.put(KEY, {"a": 1})
    server.faults.add(Fault.refuse(18))
    server.faults.add(Fault.refuse(14), times=2)
    codes: list[int | None] = []
    for _ in range(4):
        try:
            client.get(KEY, policy={"max_retries": 0})
            codes.append(OK)
        except client_errors.AerospikeError as error:
            codes.append(error.code)
    assert codes == [18, 14, 14, OK]


def test_one_unknown_name_makes_the_client_lose_all_answers(client: aerospike.Client) -> None:
    (node,) = client.get_node_names()
    assert "edition" in client.info_single_node("edition", node["node_name"])
    with pytest.raises(client_errors.AerospikeError, match="unrecognized command"):
        client.info_single_node("edition\nrelease", node["node_name"])


# Generations and existence: the rules of the real server, in its order


def code_of(action: Callable[[], object]) -> int | None:
    try:
        action()
    except client_errors.AerospikeError as error:
        return error.code
    return OK


def put(client: aerospike.Client, generation: int | None, exists: int = aerospike.POLICY_EXISTS_IGNORE) -> int | None:
    policy = {
        "exists": exists,
        "gen": aerospike.POLICY_GEN_IGNORE if generation is None else aerospike.POLICY_GEN_EQ,
    }
    meta = {} if generation is None else {"gen": generation}
    return code_of(lambda: client.put(KEY, {"a": 1}, meta=meta, policy=policy))


def test_a_write_that_names_a_generation_needs_that_generation(client: aerospike.Client) -> None:
    assert [put(client, None), put(client, 1), put(client, 1), put(client, 3), put(client, 2)] == [
        OK,
        OK,
        WRONG_GENERATION,
        WRONG_GENERATION,
        OK,
    ]
    assert client.get(KEY)[1]["gen"] == 3


def test_an_absent_record_has_generation_0(client: aerospike.Client) -> None:
    assert put(client, 1) == WRONG_GENERATION
    assert put(client, 0) == OK
    assert put(client, 0) == WRONG_GENERATION


def test_a_refused_write_leaves_the_record_and_its_generation(server: StandIn, client: aerospike.Client) -> None:
    put(client, None)
    before = dict(server.records.by_digest)
    put(client, 7)
    put(client, None, aerospike.POLICY_EXISTS_CREATE)
    assert server.records.by_digest == before


def test_after_the_highest_generation_comes_1(server: StandIn, client: aerospike.Client) -> None:
    put(client, None)
    (record,) = server.records.by_digest.values()
    record.generation = 65_535
    assert put(client, 65_535) == OK
    assert client.get(KEY)[1]["gen"] == 1


@pytest.mark.parametrize("exists", [aerospike.POLICY_EXISTS_UPDATE, aerospike.POLICY_EXISTS_REPLACE])
def test_existence_is_checked_before_the_generation(client: aerospike.Client, exists: int) -> None:
    assert put(client, 4, exists) == NOT_FOUND
    assert put(client, None) == OK
    assert put(client, 4, exists) == WRONG_GENERATION
    assert put(client, 1, exists) == OK


def test_absence_is_checked_before_the_generation(client: aerospike.Client) -> None:
    assert put(client, None, aerospike.POLICY_EXISTS_CREATE) == OK
    assert put(client, 4, aerospike.POLICY_EXISTS_CREATE) == RECORD_EXISTS


def test_a_removal_may_name_a_generation_too(client: aerospike.Client) -> None:
    put(client, None)

    def removal_at(generation: int) -> int | None:
        policy = {"gen": aerospike.POLICY_GEN_EQ, "generation": generation}
        return code_of(lambda: client.remove(KEY, policy=policy))

    assert removal_at(2) == WRONG_GENERATION
    assert removal_at(1) == OK
    assert code_of(lambda: client.get(KEY)) == NOT_FOUND


# Deletes, devices and copies: what callers meet after a cold start, a kill, or a node that was away


def remove(client: aerospike.Client, *, durably: bool) -> int | None:
    return code_of(lambda: client.remove(KEY, policy={"durable_delete": durably}))


def test_only_an_enterprise_server_deletes_durably(server: StandIn, client: aerospike.Client) -> None:
    put(client, None)
    server.records.is_enterprise = False
    assert remove(client, durably=True) == ENTERPRISE_ONLY
    assert remove(client, durably=False) == OK
    server.records.start_cold()
    assert client.get(KEY)[2] == {"a": 1}
    server.records.is_enterprise = True
    assert remove(client, durably=True) == OK
    server.records.start_cold()
    assert code_of(lambda: client.get(KEY)) == NOT_FOUND


def test_a_record_that_was_written_again_is_not_brought_back(server: StandIn, client: aerospike.Client) -> None:
    client.put(KEY, {"a": 1})
    remove(client, durably=False)
    client.put(KEY, {"a": 2})
    server.records.start_cold()
    assert client.get(KEY)[2] == {"a": 2}


def test_a_killed_server_has_what_it_had_flushed(server: StandIn, client: aerospike.Client) -> None:
    client.put(KEY, {"a": 1})
    server.records.flush()
    client.put(KEY, {"a": 2})
    client.put(("test", "demo", "other"), {"a": 1})
    server.records.kill()
    assert client.get(KEY)[2] == {"a": 1}
    assert code_of(lambda: client.get(("test", "demo", "other"))) == NOT_FOUND


def test_a_read_gets_this_node_s_copy_unless_it_asks_for_all(server: StandIn, client: aerospike.Client) -> None:
    client.put(KEY, {"a": 1})
    (digest,) = server.records.by_digest
    server.copies[digest] = None
    assert code_of(lambda: client.get(KEY)) == NOT_FOUND
    assert client.get(KEY, policy={"read_mode_ap": aerospike.POLICY_READ_MODE_AP_ALL})[2] == {"a": 1}


# Statistics


def test_the_server_reports_the_content_of_its_namespace_and_sets(client: aerospike.Client) -> None:
    for number in range(3):
        client.put(("test", "demo", number), {"a": number})
    (name,) = [node["node_name"] for node in client.get_node_names()]
    asked = ["namespace/test", "sets/test/demo", "sets/test/no_progress", "sets/no/demo", "namespace/no"]
    said = client.info_single_node("\n".join(asked), name)
    lines = dict(line.split("\t") for line in said.splitlines())
    assert "effective_replication_factor=1;" in lines["namespace/test"]
    assert lines["sets/test/demo"].startswith("objects=3:")
    assert lines["sets/test/no_progress"] == ""
    assert lines["sets/no/demo"] == "ns_type=unknown"
    assert lines["namespace/no"] == "type=unknown"


def test_a_set_is_truncated_and_others_stay(server: StandIn, client: aerospike.Client) -> None:
    client.put(("test", "demo", 1), {"a": 1})
    client.put(("test", "other", 1), {"a": 1})
    # `client.truncate` sends the same, but lets no other Python thread run: the stand-in could not answer.
    client.info_random_node("truncate:namespace=test;set=demo")
    assert server.records.set_counts() == {"other": 1}


def test_the_server_lists_its_sets(client: aerospike.Client) -> None:
    for number in range(3):
        client.put(("test", "demo", number), {"a": number})
    client.put(("test", "other", 1), {"a": 1})
    said = client.info_random_node("sets/test").rstrip("\n").partition("\t")[2]
    assert sorted(said.rstrip(";").split(";")) == [
        "ns=test:set=demo:objects=3:tombstones=0:truncating=false:stop-writes-count=0",
        "ns=test:set=other:objects=1:tombstones=0:truncating=false:stop-writes-count=0",
    ]


def test_faults_of_statistics_spare_records_and_the_clients_own_requests(
    server: StandIn, client: aerospike.Client
) -> None:
    server.info_faults.add(Fault.drop())
    client.put(KEY, {"a": 1})
    assert code_of(lambda: client.info_random_node("namespace/test")) != OK
    assert code_of(lambda: client.info_random_node("namespace/test")) == OK
    assert server.statistics_asked == ["namespace/test"] * 2


# Scans and clusters


def scan(client: aerospike.Client, max_retries: int = 0) -> list[int]:
    return sorted(key[2] for key, _, _ in client.query("test", "demo").results({"max_retries": max_retries}))


def put_numbers(client: aerospike.Client, count: int) -> None:
    for number in range(count):
        client.put(("test", "demo", number), {"a": number}, policy={"key": aerospike.POLICY_KEY_SEND})


def test_half_a_scan_arrives_before_the_connection_closes(server: StandIn, client: aerospike.Client) -> None:
    put_numbers(client, 20)
    arrived: list[int] = []
    server.faults.add(Fault.drop_midway())
    query = client.query("test", "demo")
    assert code_of(lambda: query.foreach(lambda record: arrived.append(record[0][2]), {"max_retries": 0})) != OK
    assert 0 < len(arrived) < 20


def test_an_unavailable_partition_fails_a_scan_that_may_not_retry(server: StandIn, client: aerospike.Client) -> None:
    put_numbers(client, 20)
    server.faults.add(Fault.unavailable(frozenset(range(2048))))
    assert code_of(lambda: scan(client)) == 11
    server.faults.add(Fault.unavailable(frozenset(range(2048))))
    assert scan(client, max_retries=1) == list(range(20))


def test_the_nodes_of_a_cluster_share_records_and_divide_partitions() -> None:
    with StandInCluster(node_count=3) as cluster:
        client = aerospike.client({"hosts": [("127.0.0.1", cluster.nodes[0].port)], "tend_interval": 250})
        assert len(client.get_node_names()) == 3
        put_numbers(client, 60)
        assert scan(client) == list(range(60))
        assert [len(node.scans) for node in cluster.nodes] == [1, 1, 1]
        assert all(node.record_counts for node in cluster.nodes)
        cluster.lose(1)
        assert code_of(lambda: scan(client)) != OK
        cluster.take_over()
        wait_until(lambda: len(client.get_node_names()) == 2 and code_of(lambda: scan(client)) == OK)
        assert scan(client) == list(range(60))
        cluster.bring_back(1)
        wait_until(lambda: len(client.get_node_names()) == 3)
        client.close()
