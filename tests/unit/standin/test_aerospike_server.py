"""The stand-in keeps those rules of the real server that the profile store does not lean on, but a reader may."""

from __future__ import annotations

from collections.abc import Iterator

import aerospike
import pytest
from aerospike import exception as client_errors
from aerospike_helpers.batch.records import BatchRecords, Read, Write
from aerospike_helpers.operations import operations

from tests.standin.aerospike_records import NOT_FOUND, OK, partition_of
from tests.standin.aerospike_server import Fault, StandIn

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


def test_a_put_is_got_and_removed(client: aerospike.Client) -> None:
    client.put(KEY, {"number": 7, "text": "seven", "blob": b"\0seven"})
    _, _, bins = client.get(KEY)
    assert bins == {"number": 7, "text": "seven", "blob": b"\0seven"}
    client.remove(KEY)
    with pytest.raises(client_errors.RecordNotFound):
        client.get(KEY)


def test_a_write_adds_its_bins_and_counts_generations_unless_it_replaces(client: aerospike.Client) -> None:
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


def test_faults_are_met_in_order_and_then_are_over(server: StandIn, client: aerospike.Client) -> None:
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
