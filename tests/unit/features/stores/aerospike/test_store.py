"""The Aerospike adapter against the stand-in: what it sends, and what it does when the server is unwell."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore
from paywarden.schemas.errors import Misconfigured, PaywardenError, StoreUnavailable
from tests.standin.aerospike_server import Fault, StandIn
from tests.standin.aerospike_wire import VALUE_BLOB
from tests.standin.patience import quick_settings, wait_until

OVERLOAD = 18
WRONG_PASSWORD = 65
CARDS = {b"card:%d" % number: b"value %d" % number for number in range(5)}
# A port nobody listens on: reserved, and below those that a system hands out.
UNREACHABLE = "127.0.0.1:1"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def settings(server: StandIn) -> AerospikeSettings:
    return quick_settings(server.address)


@pytest.fixture
def store(settings: AerospikeSettings) -> Iterator[AerospikeStore]:
    opened = AerospikeStore(settings)
    yield opened
    opened.close()


def failure_of(call: Callable[[], object]) -> str:
    """Returns the text of the error that the call raises; empty if it succeeds."""
    try:
        call()
    except PaywardenError as error:
        return f"{type(error).__name__}: {error}"
    return ""


# Requests


def test_a_record_is_one_bin_in_the_entity_s_set_with_its_key_kept(server: StandIn, store: AerospikeStore) -> None:
    store.write({b"merchant:a:b": b"profile"}, ttl_s=0)
    (record,) = server.records.by_digest.values()
    assert record.set_name == "merchant"
    assert record.key == bytes([VALUE_BLOB]) + b"a:b"
    assert record.bins == {"profile": (VALUE_BLOB, b"profile")}
    assert record.expires_s is None


def test_a_write_is_one_operation_and_leaves_no_other_bin(server: StandIn, store: AerospikeStore) -> None:
    store.write({b"card:1": b"old"}, ttl_s=0)
    (record,) = server.records.by_digest.values()
    record.bins["foreign"] = (VALUE_BLOB, b"left by something else")
    before = len(server.record_counts)
    store.write({b"card:1": b"new"}, ttl_s=0)
    assert server.record_counts[before:] == [1]
    (record,) = server.records.by_digest.values()
    assert record.bins == {"profile": (VALUE_BLOB, b"new")}


def test_no_batch_holds_more_records_than_the_setting_says(server: StandIn, settings: AerospikeSettings) -> None:
    store = AerospikeStore(replace(settings, batch_record_count_max=10))
    values = {b"card:%d" % number: b"value" for number in range(25)}
    store.write(values, ttl_s=0)
    store.read(list(values))
    store.delete(list(values))
    # The first is the probe of opening.
    assert server.record_counts == [1, *[10, 10, 5] * 3]
    store.close()


def test_no_write_batch_holds_more_bytes_than_the_setting_says(server: StandIn, settings: AerospikeSettings) -> None:
    store = AerospikeStore(replace(settings, batch_bytes_max=1_000))
    sizes = [400, 400, 400, 999, 1, 1, 5_000, 1]
    values = {b"card:%d" % number: bytes(size) for number, size in enumerate(sizes)}
    store.write(values, ttl_s=0)
    assert server.record_counts[1:] == [2, 1, 2, 1, 1, 1]
    assert store.read(list(values)) == list(values.values())
    store.close()


# When the server is unwell


def test_an_overload_that_stays_is_unavailable(server: StandIn, store: AerospikeStore) -> None:
    for call in (
        lambda: store.write(CARDS, ttl_s=0),
        lambda: store.read(list(CARDS)),
        lambda: list(store.scan("card")),
    ):
        server.faults.clear()
        server.faults.add(Fault.refuse(OVERLOAD), times=50)
        with pytest.raises(StoreUnavailable, match=f"code {OVERLOAD}") as overload:
            call()
        assert server.address in str(overload.value)
    assert server.records.by_digest == {}


def test_an_overload_of_a_record_written_alone_is_a_failed_write(server: StandIn, store: AerospikeStore) -> None:
    # The client sends a batch of one as another kind of message.
    server.faults.add(Fault.refuse(OVERLOAD), times=50)
    for call in (lambda: store.write({b"card:1": b"one"}, ttl_s=0), lambda: store.read([b"card:1"])):
        with pytest.raises(StoreUnavailable, match=f"code {OVERLOAD}"):
            call()
    server.faults.clear()
    store.write({b"card:1": b"one"}, ttl_s=0)
    assert store.read([b"card:1"]) == [b"one"]


@pytest.mark.parametrize("position", [0, 2, 4])
def test_one_refused_record_of_a_batch_is_a_failed_write(server: StandIn, store: AerospikeStore, position: int) -> None:
    server.faults.add(Fault.refuse_records(OVERLOAD, frozenset({position})))
    with pytest.raises(StoreUnavailable, match=rf"1 of 5 records, code {OVERLOAD}"):
        store.write(CARDS, ttl_s=0)
    assert len(server.records.by_digest) == 4
    store.write(CARDS, ttl_s=0)
    assert store.read(list(CARDS)) == list(CARDS.values())


def test_one_refused_record_of_a_batch_makes_the_read_fail(server: StandIn, store: AerospikeStore) -> None:
    store.write(CARDS, ttl_s=0)
    server.faults.add(Fault.refuse_records(OVERLOAD, frozenset({3})))
    with pytest.raises(StoreUnavailable, match="1 of 5 records"):
        store.read(list(CARDS))


def test_one_refused_record_of_a_batch_is_a_failed_delete(server: StandIn, store: AerospikeStore) -> None:
    store.write(CARDS, ttl_s=0)
    server.faults.add(Fault.refuse_records(OVERLOAD, frozenset({3})))
    with pytest.raises(StoreUnavailable, match="1 of 5 records"):
        store.delete(list(CARDS))
    assert len(server.records.by_digest) == 1


def test_a_failure_in_a_later_batch_is_a_failed_write(server: StandIn, settings: AerospikeSettings) -> None:
    store = AerospikeStore(replace(settings, batch_record_count_max=2))
    server.faults.add(Fault())
    server.faults.add(Fault.refuse_records(OVERLOAD))
    with pytest.raises(StoreUnavailable, match="2 of 2 records"):
        store.write(CARDS, ttl_s=0)
    store.close()


@pytest.mark.parametrize("fault", [Fault.drop(), Fault.drop_answer()], ids=["before", "after it was done"])
def test_a_dropped_connection_is_retried(server: StandIn, store: AerospikeStore, fault: Fault) -> None:
    server.faults.add(fault)
    store.write(CARDS, ttl_s=0)
    server.faults.add(fault)
    assert store.read(list(CARDS)) == list(CARDS.values())


def test_a_silent_server_is_given_up_after_the_retries(server: StandIn) -> None:
    store = AerospikeStore(quick_settings(server.address, timeout_ms=100))
    server.faults.add(Fault.never_answer(), times=50)
    for call in (
        lambda: store.write(CARDS, ttl_s=0),
        lambda: store.read(list(CARDS)),
        lambda: list(store.scan("card")),
    ):
        before = len(server.record_counts) + len(server.scans)
        with pytest.raises(StoreUnavailable):
            call()
        assert 1 <= len(server.record_counts) + len(server.scans) - before <= 3
    store.close()


def test_a_late_answer_is_not_taken_for_the_next_calls_answer(server: StandIn, store: AerospikeStore) -> None:
    hasty = AerospikeStore(quick_settings(server.address, timeout_ms=100))
    store.write({b"card:1": b"one", b"card:2": b"two"}, ttl_s=0)
    server.faults.add(Fault.delay(0.4), times=3)
    with pytest.raises(StoreUnavailable):
        hasty.read([b"card:1"])
    server.faults.clear()
    late_count = len(server.record_counts)

    def reads_the_right_one_until_the_late_answers_have_come() -> bool:
        with contextlib.suppress(StoreUnavailable):
            assert hasty.read([b"card:2"]) == [b"two"]
        return server.done_count >= late_count + 20

    wait_until(reads_the_right_one_until_the_late_answers_have_come)
    hasty.close()


def test_a_client_without_nodes_does_not_report_a_write_as_done(server: StandIn, store: AerospikeStore) -> None:
    # With no node left the client's batch reports success for each record; only the batch's own code tells.
    store.write(CARDS, ttl_s=0)
    # A deletion asks once whether it can be durable.
    store.delete([b"card:absent"])
    server.stop()
    calls: list[Callable[[], object]] = [
        lambda: store.write({b"card:1": b"new"}, ttl_s=0),
        lambda: store.read([b"card:1"]),
        lambda: store.delete([b"card:1"]),
        lambda: list(store.scan("card")),
    ]

    def every_node_is_lost() -> bool:
        failures = [failure_of(call) for call in calls]
        assert all(failure.startswith("StoreUnavailable") for failure in failures), failures
        return all("the whole batch" in failure for failure in failures[:3])

    wait_until(every_node_is_lost)
    assert not store.health()
    server.start()
    wait_until(lambda: bool(store.health()))
    assert store.read([b"card:1"]) == [b"value 1"]


def test_a_closed_store_is_unavailable(settings: AerospikeSettings) -> None:
    store = AerospikeStore(settings)
    store.close()
    for call in (
        lambda: store.write(CARDS, ttl_s=0),
        lambda: store.read(list(CARDS)),
        lambda: list(store.scan("card")),
    ):
        with pytest.raises(StoreUnavailable):
            call()
    assert not store.health()


def test_the_client_s_own_error_is_kept_as_the_cause(server: StandIn, store: AerospikeStore) -> None:
    server.faults.add(Fault.refuse(OVERLOAD), times=50)
    with pytest.raises(StoreUnavailable) as failed:
        list(store.scan("card"))
    assert type(failed.value.__cause__).__name__ == "DeviceOverload"


# When retrying cannot help


def test_a_server_that_takes_smaller_records_than_we_do_is_misconfigured(
    server: StandIn, store: AerospikeStore
) -> None:
    server.records.record_bytes_max = 1_000
    with pytest.raises(Misconfigured, match="record_bytes_max"):
        store.write({**CARDS, b"card:big": bytes(2_000)}, ttl_s=0)


def test_a_set_with_other_bins_is_misconfigured_and_not_absent(
    settings: AerospikeSettings, store: AerospikeStore
) -> None:
    store.write(CARDS, ttl_s=0)
    other = AerospikeStore(replace(settings, bin_name="other"))
    with pytest.raises(Misconfigured, match="bin_name"):
        other.read([b"card:1"])
    with pytest.raises(Misconfigured, match="bin_name"):
        list(other.scan("card"))
    other.close()


def test_a_record_without_its_key_is_misconfigured_when_scanned(server: StandIn, store: AerospikeStore) -> None:
    store.write({b"card:1": b"one"}, ttl_s=0)
    (record,) = server.records.by_digest.values()
    record.key = b""
    with pytest.raises(Misconfigured, match="set card"):
        list(store.scan("card"))


# Opening


def test_silent_hosts_are_unavailable_and_named_in_one_line() -> None:
    hosts = (UNREACHABLE, "nowhere.invalid:3000")
    with pytest.raises(StoreUnavailable) as refused:
        AerospikeStore(AerospikeSettings(hosts=hosts))
    assert all(host in str(refused.value) for host in hosts)
    assert "\n" not in str(refused.value)


def test_a_host_that_accepts_and_says_nothing_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(StoreUnavailable, match=address):
            AerospikeStore(AerospikeSettings(hosts=(address,), connect_timeout_ms=100))


@pytest.mark.parametrize("first", [True, False])
def test_any_of_the_hosts_is_enough(settings: AerospikeSettings, server: StandIn, first: bool) -> None:
    # The client's own check would refuse to open while a single node of the cluster is down.
    hosts = (server.address, "nowhere.invalid:3000")
    store = AerospikeStore(replace(settings, hosts=hosts if first else hosts[::-1]))
    store.write(CARDS, ttl_s=0)
    store.close()


def test_a_namespace_the_cluster_lacks_is_misconfigured(settings: AerospikeSettings) -> None:
    with pytest.raises(Misconfigured, match="namespace absent") as refused:
        AerospikeStore(replace(settings, namespace="absent"))
    assert "\n" not in str(refused.value)


def test_an_unwell_server_at_opening_is_unavailable_and_leaves_no_client(
    server: StandIn, settings: AerospikeSettings
) -> None:
    server.faults.add(Fault.refuse(OVERLOAD), times=50)
    with pytest.raises(StoreUnavailable) as refused:
        AerospikeStore(settings)
    wait_until(lambda: not server.is_connected)
    # Until here the error holds on to what failed, so it was not the garbage collector that closed it.
    assert refused.value.__traceback__ is not None


def test_a_missing_certificate_file_is_misconfigured(settings: AerospikeSettings) -> None:
    with pytest.raises(Misconfigured, match="tls_"):
        AerospikeStore(replace(settings, tls=True, tls_name="node", tls_ca_file="/nowhere/ca.pem"))


def test_a_refused_login_is_misconfigured_and_tells_no_secret() -> None:
    with StandIn(login_result=WRONG_PASSWORD) as server:
        settings = AerospikeSettings(hosts=(server.address,), user="scorer", password="hunter2-secret")
        with pytest.raises(Misconfigured, match="user or password is wrong") as refused:
            AerospikeStore(settings)
    assert "hunter2-secret" not in f"{refused.value!r} {refused.value.__cause__!r}"


def test_a_server_without_security_is_used_even_when_a_user_is_set(settings: AerospikeSettings) -> None:
    store = AerospikeStore(replace(settings, user="scorer", password="hunter2-secret"))
    store.write(CARDS, ttl_s=0)
    store.close()


def test_a_user_without_a_password_is_misconfigured(settings: AerospikeSettings) -> None:
    with pytest.raises(Misconfigured, match="password"):
        AerospikeStore(replace(settings, user="scorer"))
