"""Writes at a version on Aerospike: what is sent, and what becomes of a write whose answer is lost or comes late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from paywarden.features.stores.aerospike.store import AerospikeStore
from paywarden.features.stores.base import StoreConflict
from paywarden.schemas.errors import StoreUnavailable
from tests.standin.aerospike_records import NOT_FOUND, RECORD_EXISTS, WRONG_GENERATION
from tests.standin.aerospike_server import Fault, StandIn
from tests.standin.patience import quick_settings, wait_until

OVERLOAD = 18
CARDS = {b"card:%d" % number: b"value %d" % number for number in range(5)}
NEW = {key: b"new " + value for key, value in CARDS.items()}
# The client sends a batch of one as another kind of message.
SIZES = pytest.mark.parametrize("size", [1, 5])


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def store(server: StandIn) -> Iterator[AerospikeStore]:
    opened = AerospikeStore(quick_settings(server.address))
    yield opened
    opened.close()


def first(values: dict[bytes, bytes], count: int) -> dict[bytes, bytes]:
    return dict(list(values.items())[:count])


def versions_of(store: AerospikeStore, values: dict[bytes, bytes]) -> dict[bytes, int]:
    return {key: found.version for key, found in zip(values, store.read_versioned(list(values)), strict=True)}


def generations(server: StandIn) -> list[int]:
    return [record.generation for record in server.records.by_digest.values()]


def test_a_generation_that_starts_again_at_one_is_a_version_like_any_other(
    server: StandIn, store: AerospikeStore
) -> None:
    store.write({b"card:1": b"old"}, ttl_s=0)
    (record,) = server.records.by_digest.values()
    record.generation = 65_534
    for value in (b"last", b"first"):
        store.write({b"card:1": value}, ttl_s=0, versions=versions_of(store, {b"card:1": b""}))
    assert generations(server) == [1]
    assert store.read([b"card:1"]) == [b"first"]


@SIZES
@pytest.mark.parametrize("is_new", [True, False])
def test_a_write_without_an_answer_is_done_and_no_conflict(
    server: StandIn, store: AerospikeStore, size: int, is_new: bool
) -> None:
    """The client tries again by itself, and then the record is at another version: the one its own write made.

    The bytes are written once more, because only the server's answer counts.
    """
    if not is_new:
        store.write(first(CARDS, size), ttl_s=0)
    versions = versions_of(store, first(CARDS, size))
    server.faults.add(Fault.drop_answer())
    store.write(first(NEW, size), ttl_s=0, versions=versions)
    assert store.read(list(first(NEW, size))) == list(first(NEW, size).values())
    assert generations(server) == [2 if is_new else 3] * size


@SIZES
def test_a_write_that_was_done_and_never_answered_can_be_written_again(
    server: StandIn, store: AerospikeStore, size: int
) -> None:
    store.write(first(CARDS, size), ttl_s=0)
    versions = versions_of(store, first(CARDS, size))
    server.faults.add(Fault.drop_answer(), times=3)
    with pytest.raises(StoreUnavailable):
        store.write(first(NEW, size), ttl_s=0, versions=versions)
    store.write(first(NEW, size), ttl_s=0, versions=versions)
    assert store.read(list(first(NEW, size))) == list(first(NEW, size).values())
    assert generations(server) == [3] * size


def test_a_lost_answer_does_not_hide_what_another_has_written_since(server: StandIn, store: AerospikeStore) -> None:
    store.write(CARDS, ttl_s=0)
    versions = versions_of(store, CARDS)
    server.faults.add(Fault.drop_answer(), times=3)
    with pytest.raises(StoreUnavailable):
        store.write(NEW, ttl_s=0, versions=versions)
    store.write({b"card:2": b"by another"}, ttl_s=0)
    with pytest.raises(StoreConflict, match="1 of 5 records"):
        store.write(NEW, ttl_s=0, versions=versions)
    assert store.read([b"card:2"]) == [b"by another"]


def test_an_abandoned_attempt_does_not_undo_a_newer_write(server: StandIn, store: AerospikeStore) -> None:
    hasty = AerospikeStore(quick_settings(server.address, timeout_ms=100))
    store.write({b"card:1": b"old"}, ttl_s=0)
    versions = versions_of(store, {b"card:1": b""})
    # Each attempt is carried out, but later than the client waits for it.
    server.faults.add(Fault.delay(0.4), times=3)
    with pytest.raises(StoreUnavailable):
        hasty.write({b"card:1": b"late"}, ttl_s=0, versions=versions)
    server.faults.clear()
    store.write({b"card:1": b"newer"}, ttl_s=0)
    wait_until(lambda: server.done_count == len(server.record_counts))
    assert store.read([b"card:1"]) == [b"newer"]
    hasty.close()


def test_if_records_cannot_be_read_again_the_outcome_is_unknown(server: StandIn, store: AerospikeStore) -> None:
    store.write(CARDS, ttl_s=0)
    versions = versions_of(store, CARDS)
    server.faults.add(Fault.drop_answer())
    server.faults.add(Fault())
    server.faults.add(Fault.refuse(OVERLOAD), times=3)
    with pytest.raises(StoreUnavailable, match="read failed"):
        store.write(NEW, ttl_s=0, versions=versions)
    store.write(NEW, ttl_s=0, versions=versions)
    assert store.read(list(NEW)) == list(NEW.values())


def test_records_that_failed_come_before_records_that_changed(server: StandIn, store: AerospikeStore) -> None:
    # A caller reads again after a conflict, which is useless while records do not answer.
    store.write(CARDS, ttl_s=0)
    versions = versions_of(store, CARDS)
    store.write({b"card:0": b"by another"}, ttl_s=0)
    server.faults.add(Fault.refuse_records(OVERLOAD, frozenset({4})))
    with pytest.raises(StoreUnavailable, match=f"1 of 5 records, code {OVERLOAD}"):
        store.write(NEW, ttl_s=0, versions=versions)
    with pytest.raises(StoreConflict, match="1 of 5 records"):
        store.write(NEW, ttl_s=0, versions=versions)


def test_a_conflict_in_a_later_batch_is_a_conflict(server: StandIn) -> None:
    store = AerospikeStore(replace(quick_settings(server.address), batch_record_count_max=2))
    store.write(CARDS, ttl_s=0)
    versions = versions_of(store, CARDS)
    store.write({b"card:4": b"by another"}, ttl_s=0)
    with pytest.raises(StoreConflict):
        store.write(NEW, ttl_s=0, versions=versions)
    assert store.read([b"card:4"]) == [b"by another"]
    store.close()


@pytest.mark.parametrize("code", [NOT_FOUND, WRONG_GENERATION, RECORD_EXISTS])
def test_an_answer_about_versions_to_a_write_without_any_is_a_failed_write(
    server: StandIn, store: AerospikeStore, code: int
) -> None:
    server.faults.add(Fault.refuse_records(code, frozenset({1})))
    with pytest.raises(StoreUnavailable, match=f"1 of 5 records, code {code}"):
        store.write(CARDS, ttl_s=0)


def test_a_client_without_a_node_takes_no_versioned_write_for_done_either(
    server: StandIn, store: AerospikeStore
) -> None:
    store.write(CARDS, ttl_s=0)
    versions = versions_of(store, CARDS)
    server.stop()

    def no_node_is_left() -> bool:
        with pytest.raises(StoreUnavailable) as failed:
            store.write(NEW, ttl_s=0, versions=versions)
        return "the whole batch" in str(failed.value)

    wait_until(no_node_is_left)
