"""The promises of every profile store, tested on each kind of store.

With PAYWARDEN_TEST_AEROSPIKE=host:port the tests also run on that real server, in the namespace
PAYWARDEN_TEST_AEROSPIKE_NAMESPACE (default `test`). Each test has sets of its own there, because a Community server
keeps markers of what earlier tests erased. A server remembers 4,095 names of sets until it restarts: some ten runs.
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paywarden.features.stores.aerospike.store import SET_SEPARATOR, AerospikeSettings, AerospikeStore
from paywarden.features.stores.base import (
    ABSENT,
    KEY_BYTES_MAX,
    TTL_S_MAX,
    ProfileStore,
    StoreConflict,
    Versioned,
    update_records,
)
from paywarden.features.stores.lmdb import LmdbStore
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.errors import InvalidEvent, Misconfigured, StoreUnavailable, TemporaryFailure
from tests.services.missing_tools import AEROSPIKE
from tests.standin.aerospike_server import StandIn

REAL_SERVER = "PAYWARDEN_TEST_AEROSPIKE"
REAL_NAMESPACE = "PAYWARDEN_TEST_AEROSPIKE_NAMESPACE"
RECORD_BYTES_MAX = 200_000
# Small, so that the tests write more records than a batch or a page of a scan holds.
BATCH_RECORD_COUNT_MAX = 16
SCAN_PAGE_RECORD_COUNT = 20


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Subject:
    """A store, and a function that lets time pass for it."""

    store: ProfileStore
    advance: Callable[[float], None]


def _memory(_: Path) -> Iterator[Subject]:
    clock = Clock()
    yield Subject(MemoryStore(clock=clock, record_bytes_max=RECORD_BYTES_MAX), clock.advance)


def _lmdb(path: Path) -> Iterator[Subject]:
    clock = Clock()
    store = LmdbStore(
        path / "profiles",
        map_size_bytes=64 << 20,
        record_bytes_max=RECORD_BYTES_MAX,
        fsync=False,
        clock=clock,
    )
    yield Subject(store, clock.advance)


def _aerospike_settings(address: str, namespace: str) -> AerospikeSettings:
    return AerospikeSettings(
        hosts=(address,),
        namespace=namespace,
        record_bytes_max=RECORD_BYTES_MAX,
        batch_record_count_max=BATCH_RECORD_COUNT_MAX,
        scan_page_record_count=SCAN_PAGE_RECORD_COUNT,
    )


def _aerospike_standin(_: Path) -> Iterator[Subject]:
    clock = Clock()
    with StandIn(clock=clock) as server:
        yield Subject(AerospikeStore(_aerospike_settings(server.address, server.namespace)), clock.advance)


def _aerospike_standin_of_a_further_profile_set(_: Path) -> Iterator[Subject]:
    clock = Clock()
    with StandIn(clock=clock) as server:
        settings = _aerospike_settings(server.address, server.namespace)
        yield Subject(AerospikeStore(settings, set_prefix="b20260101t093000$"), clock.advance)


def own_prefix() -> str:
    """Returns a beginning for the names of sets that no other test has."""
    return f"t{uuid.uuid4().hex[:8]}{SET_SEPARATOR}"


@cache
def community() -> tuple[StandIn, Clock]:
    """Returns one Community server for all tests, as a real one is: markers of each test stay."""
    clock = Clock()
    server = StandIn(clock=clock)
    server.records.is_enterprise = False
    server.start()
    atexit.register(server.stop)
    return server, clock


def _aerospike_community_standin(_: Path) -> Iterator[Subject]:
    server, clock = community()
    settings = _aerospike_settings(server.address, server.namespace)
    yield Subject(AerospikeStore(settings, set_prefix=own_prefix()), clock.advance)


def _aerospike_server(_: Path) -> Iterator[Subject]:
    namespace = os.environ.get(REAL_NAMESPACE, "test")
    store = AerospikeStore(_aerospike_settings(os.environ[REAL_SERVER], namespace), set_prefix=own_prefix())
    # A test cannot move the clock of a real server, so the tests of expiry wait. That server counts whole seconds.
    yield Subject(store, lambda seconds: time.sleep(seconds + 1))


STORES = [_memory, _lmdb, _aerospike_standin, _aerospike_community_standin, _aerospike_standin_of_a_further_profile_set]
if os.environ.get(REAL_SERVER):
    STORES.append(_aerospike_server)


@pytest.fixture(params=STORES, ids=lambda make: make.__name__.strip("_"))
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    for made in request.param(tmp_path):
        yield made
        made.store.close()


@pytest.fixture
def store(subject: Subject) -> ProfileStore:
    return subject.store


def card(identity: str | bytes) -> bytes:
    return b"contract-card:" + (identity.encode() if isinstance(identity, str) else identity)


def write_expiring(store: ProfileStore, values: dict[bytes, bytes], ttl_s: int) -> None:
    try:
        store.write(values, ttl_s=ttl_s)
    except Misconfigured as error:
        if "nsup-period" not in str(error):
            raise
        pytest.skip(f"this server's namespace takes no records that expire: {error}")


def test_a_real_server_keeps_the_contract_too() -> None:
    if not os.environ.get(REAL_SERVER):
        pytest.skip(AEROSPIKE.reason)
    assert _aerospike_server in STORES


def test_a_written_record_is_read(store: ProfileStore) -> None:
    store.write({card("1"): b"one", card("2"): b"two"}, ttl_s=0)
    assert store.read([card("1"), card("2")]) == [b"one", b"two"]


def test_values_come_in_the_order_of_the_keys_and_absent_ones_are_none(store: ProfileStore) -> None:
    store.write({card("a"): b"A", card("b"): b"B"}, ttl_s=0)
    keys = [card("b"), card("absent"), card("a"), card("b"), b"contract-merchant:a"]
    assert store.read(keys) == [b"B", None, b"A", b"B", None]


def test_a_call_without_keys_does_nothing(store: ProfileStore) -> None:
    store.write({}, ttl_s=0)
    store.delete([])
    assert store.read([]) == []
    assert list(store.scan("contract-card")) == []


def test_more_keys_than_a_batch_are_read_written_and_deleted_in_order(store: ProfileStore) -> None:
    count = 5 * BATCH_RECORD_COUNT_MAX + 3
    values = {card(f"{number:05d}"): b"value %d" % number for number in range(count)}
    store.write(values, ttl_s=0)
    assert store.read(list(values)) == list(values.values())
    assert store.read(list(values)[::-1]) == list(values.values())[::-1]
    store.delete(list(values)[:-1])
    assert store.read(list(values)) == [None] * (count - 1) + [b"value %d" % (count - 1)]


def test_a_write_replaces_the_whole_record(store: ProfileStore) -> None:
    store.write({card("1"): b"a long value of the first write"}, ttl_s=0)
    store.write({card("1"): b"short"}, ttl_s=0)
    assert store.read([card("1")]) == [b"short"]


def test_a_deleted_record_is_gone_and_an_absent_one_can_be_deleted(store: ProfileStore) -> None:
    store.write({card("1"): b"one", card("2"): b"two"}, ttl_s=0)
    store.delete([card("1"), card("absent"), card("1")])
    assert store.read([card("1"), card("2")]) == [None, b"two"]
    assert list(store.scan("contract-card")) == [(card("2"), b"two")]


def test_a_record_expires_after_its_ttl_and_not_before(subject: Subject) -> None:
    write_expiring(subject.store, {card("1"): b"one", card("2"): b"two"}, ttl_s=3)
    subject.store.write({card("ever"): b"ever"}, ttl_s=0)
    assert subject.store.read([card("1"), card("ever")]) == [b"one", b"ever"]
    subject.advance(4)
    assert subject.store.read([card("1"), card("2"), card("ever")]) == [None, None, b"ever"]
    assert list(subject.store.scan("contract-card")) == [(card("ever"), b"ever")]


def test_records_of_one_write_may_live_differently_long(subject: Subject) -> None:
    short, long, ever = card("1"), card("2"), b"contract-merchant:3"
    # A real server's clock goes on between the steps.
    subject.store.write(dict.fromkeys((short, long, ever), b"p"), ttl_s={short: 11, long: 21, ever: 0})
    subject.advance(9)
    assert subject.store.read([short, long, ever]) == [b"p", b"p", b"p"]
    subject.advance(2)
    assert subject.store.read([short, long, ever]) == [None, b"p", b"p"]
    subject.advance(10)
    assert subject.store.read([short, long, ever]) == [None, None, b"p"]


def test_another_write_starts_the_ttl_again(subject: Subject) -> None:
    write_expiring(subject.store, {card("1"): b"old", card("2"): b"old"}, ttl_s=3)
    subject.store.write({card("1"): b"new"}, ttl_s=1_000)
    subject.store.write({card("2"): b"new"}, ttl_s=0)
    subject.advance(4)
    assert subject.store.read([card("1"), card("2")]) == [b"new", b"new"]


def test_an_expired_record_can_be_written_again(subject: Subject) -> None:
    write_expiring(subject.store, {card("1"): b"old"}, ttl_s=1)
    subject.advance(2)
    subject.store.write({card("1"): b"new"}, ttl_s=0)
    assert subject.store.read([card("1")]) == [b"new"]


def test_a_scan_gives_each_record_of_its_entity_once_and_no_others(store: ProfileStore) -> None:
    count = 3 * SCAN_PAGE_RECORD_COUNT + 7
    cards = {card(f"{number}"): b"card %d" % number for number in range(count)}
    others = {b"contract-merchant:%d" % number: b"merchant" for number in range(25)}
    # This entity's name starts with the other's.
    others |= {b"contract-card2:%d" % number: b"card2" for number in range(25)}
    store.write({**cards, **others}, ttl_s=0)
    scanned = list(store.scan("contract-card"))
    assert len(scanned) == count
    assert dict(scanned) == cards


def test_a_scan_may_end_early_and_records_may_be_deleted_meanwhile(store: ProfileStore) -> None:
    keys = [card(f"{number:04d}") for number in range(3 * SCAN_PAGE_RECORD_COUNT)]
    store.write(dict.fromkeys(keys, b"value"), ttl_s=0)
    scan = store.scan("contract-card")
    seen = [next(scan)[0]]
    store.delete(keys)
    seen += [key for key, _ in scan]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(keys)
    next(store.scan("contract-card"), None)


def test_values_are_any_bytes(store: ProfileStore) -> None:
    for value in (b"", b"\0", b"\0\0middle\0\0", bytes(range(256)) * 3, b"\xff\xfe not text", os.urandom(100_000)):
        store.write({card("1"): value}, ttl_s=0)
        assert store.read([card("1")]) == [value]
        assert list(store.scan("contract-card")) == [(card("1"), value)]


def test_ids_are_any_text(store: ProfileStore) -> None:
    ids = ["a:b:c", ":", "::", "ключ", "名前", "🂡", "x" * 200, "with space", "tab\t", "line\n", "a", "a\0", "a\0b", "1"]
    values = {card(identity): identity.encode() for identity in ids}
    store.write(values, ttl_s=0)
    assert store.read(list(values)) == list(values.values())
    assert dict(store.scan("contract-card")) == values
    store.delete([card("a\0b")])
    assert store.read([card("a"), card("a\0"), card("a\0b")]) == [b"a", b"a\0", None]


def test_a_key_of_the_greatest_length_is_stored_and_a_longer_one_not(store: ProfileStore) -> None:
    longest = card("x" * (KEY_BYTES_MAX - len(card(""))))
    store.write({longest: b"value"}, ttl_s=0)
    assert store.read([longest]) == [b"value"]
    assert list(store.scan("contract-card")) == [(longest, b"value")]
    with pytest.raises(InvalidEvent, match=f"at most {KEY_BYTES_MAX} bytes"):
        store.write({longest + b"x": b"value"}, ttl_s=0)


def test_every_call_refuses_an_invalid_key(store: ProfileStore) -> None:
    store.write({card("1"): b"old"}, ttl_s=0)
    for key in (b"", b"card", b"card:", b":1", b"no colons;:1", b"x" * 64 + b":1", "é:1".encode()):
        with pytest.raises(InvalidEvent):
            store.read([card("1"), key])
        with pytest.raises(InvalidEvent):
            store.delete([card("1"), key])
        with pytest.raises(InvalidEvent):
            store.write({card("1"): b"new", key: b"value"}, ttl_s=0)
        assert store.read([card("1")]) == [b"old"], key


def test_a_record_over_the_limit_is_refused_and_nothing_is_written(store: ProfileStore) -> None:
    store.write({card("1"): b"old"}, ttl_s=0)
    values = {card(f"{number}"): b"new" for number in range(2 * BATCH_RECORD_COUNT_MAX)}
    values[card("secret-id")] = bytes(RECORD_BYTES_MAX + 1)
    with pytest.raises(InvalidEvent, match="record_bytes_max") as refused:
        store.write(values, ttl_s=0)
    assert "secret-id" not in str(refused.value)
    assert list(store.scan("contract-card")) == [(card("1"), b"old")]


def test_a_record_of_exactly_the_limit_is_stored(store: ProfileStore) -> None:
    value = b"v" * RECORD_BYTES_MAX
    store.write({card("1"): value}, ttl_s=0)
    assert store.read([card("1")]) == [value]


@pytest.mark.parametrize("ttl_s", [-1, TTL_S_MAX + 1])
def test_a_ttl_that_no_server_takes_is_refused(store: ProfileStore, ttl_s: int) -> None:
    with pytest.raises(Misconfigured, match="ttl_s"):
        store.write({card("1"): b"value"}, ttl_s=ttl_s)
    assert store.read([card("1")]) == [None]


def test_concurrent_readers_see_whole_records_that_never_go_back(store: ProfileStore) -> None:
    keys = [card(f"{number}") for number in range(2 * BATCH_RECORD_COUNT_MAX)]
    store.write(dict.fromkeys(keys, bytes(2_000)), ttl_s=0)
    written = Event()

    def read_until_written() -> int:
        newest = [0] * len(keys)
        read_count = 0
        while not written.is_set() or read_count == 0:
            for index, value in enumerate(store.read(keys)):
                assert value is not None
                assert value == value[:1] * 2_000
                assert value[0] >= newest[index]
                newest[index] = value[0]
            read_count += 1
        return read_count

    with ThreadPoolExecutor(3) as readers:
        reads = [readers.submit(read_until_written) for _ in range(3)]
        try:
            for number in range(1, 51):
                store.write(dict.fromkeys(keys, bytes([number]) * 2_000), ttl_s=0)
        finally:
            written.set()
        assert all(read.result() > 0 for read in reads)
    assert store.read(keys) == [bytes([50]) * 2_000] * len(keys)


# Versions


def versions_of(store: ProfileStore, *keys: bytes) -> dict[bytes, int]:
    return {key: found.version for key, found in zip(keys, store.read_versioned(keys), strict=True)}


def test_versions_come_with_the_values_in_the_order_of_the_keys(store: ProfileStore) -> None:
    store.write({card("a"): b"A", card("b"): b""}, ttl_s=0)
    found = store.read_versioned([card("b"), card("absent"), card("a"), card("b")])
    assert [one.value for one in found] == [b"", None, b"A", b""]
    assert found[1] == Versioned(None, ABSENT)
    assert all(one.version != ABSENT for one in (found[0], found[2], found[3]))
    assert found[0] == found[3]
    assert store.read_versioned([]) == []


def test_a_write_at_the_version_read_succeeds_after_every_read(store: ProfileStore) -> None:
    for number in range(5):
        versions = versions_of(store, card("1"))
        store.write({card("1"): b"%d" % number}, ttl_s=0, versions=versions)
        assert store.read([card("1")]) == [b"%d" % number]


def test_a_record_that_changed_since_the_read_is_not_overwritten(store: ProfileStore) -> None:
    store.write({card("1"): b"old"}, ttl_s=0)
    versions = versions_of(store, card("1"))
    store.write({card("1"): b"by another"}, ttl_s=0)
    with pytest.raises(StoreConflict):
        store.write({card("1"): b"mine"}, ttl_s=0, versions=versions)
    assert store.read([card("1")]) == [b"by another"]


def test_a_record_that_changed_to_the_bytes_being_written_is_no_conflict(store: ProfileStore) -> None:
    store.write({card("1"): b"old"}, ttl_s=0)
    versions = versions_of(store, card("1"))
    store.write({card("1"): b"other"}, ttl_s=0)
    store.write({card("1"): b"mine"}, ttl_s=0)
    store.write({card("1"): b"mine"}, ttl_s=0, versions=versions)
    assert store.read([card("1")]) == [b"mine"]


def test_a_record_created_since_the_read_is_not_overwritten(store: ProfileStore) -> None:
    versions = versions_of(store, card("1"))
    assert versions == {card("1"): ABSENT}
    store.write({card("1"): b"by another"}, ttl_s=0)
    with pytest.raises(StoreConflict):
        store.write({card("1"): b"mine"}, ttl_s=0, versions=versions)
    assert store.read([card("1")]) == [b"by another"]


def test_a_record_deleted_since_the_read_does_not_come_back(store: ProfileStore) -> None:
    store.write({card("1"): b"old"}, ttl_s=0)
    versions = versions_of(store, card("1"))
    store.delete([card("1")])
    with pytest.raises(StoreConflict):
        store.write({card("1"): b"mine"}, ttl_s=0, versions=versions)
    assert store.read([card("1")]) == [None]


def test_a_record_expired_since_the_read_conflicts_and_is_then_new(subject: Subject) -> None:
    write_expiring(subject.store, {card("1"): b"old"}, ttl_s=3)
    versions = versions_of(subject.store, card("1"))
    subject.advance(4)
    with pytest.raises(StoreConflict):
        subject.store.write({card("1"): b"mine"}, ttl_s=0, versions=versions)
    assert versions_of(subject.store, card("1")) == {card("1"): ABSENT}
    subject.store.write({card("1"): b"mine"}, ttl_s=0, versions={card("1"): ABSENT})
    assert subject.store.read([card("1")]) == [b"mine"]


def test_a_write_at_a_version_starts_the_ttl_again(subject: Subject) -> None:
    write_expiring(subject.store, {card("1"): b"old", card("2"): b"old"}, ttl_s=3)
    versions = versions_of(subject.store, card("1"), card("2"), card("3"))
    new = {card("1"): b"new", card("2"): b"new", card("3"): b"new"}
    subject.store.write(new, ttl_s=1_000, versions=versions)
    subject.advance(4)
    assert subject.store.read(list(new)) == [b"new"] * 3


def test_repeating_a_write_succeeds_without_a_conflict(store: ProfileStore) -> None:
    store.write({card("1"): b"old"}, ttl_s=0)
    versions = versions_of(store, card("1"), card("2"))
    values = {card("1"): b"new", card("2"): b"created"}
    for _ in range(3):
        store.write(values, ttl_s=0, versions=versions)
    assert store.read(list(values)) == list(values.values())


def test_repeating_a_partly_done_write_completes_it(store: ProfileStore) -> None:
    keys = [card(f"{number}") for number in range(2 * BATCH_RECORD_COUNT_MAX + 3)]
    store.write(dict.fromkeys(keys[::2], b"old"), ttl_s=0)
    versions = versions_of(store, *keys)
    values = {key: b"new " + key for key in keys}
    store.write({key: values[key] for key in keys[5:25]}, ttl_s=0, versions=versions)
    store.write(values, ttl_s=0, versions=versions)
    assert store.read(keys) == list(values.values())


def test_a_key_without_a_version_is_written_unconditionally(store: ProfileStore) -> None:
    store.write({card("1"): b"old", card("2"): b"old"}, ttl_s=0)
    versions = versions_of(store, card("1"))
    store.write({card("2"): b"by another"}, ttl_s=0)
    store.write({card("1"): b"new", card("2"): b"new", card("3"): b"new"}, ttl_s=0, versions=versions)
    assert store.read([card("1"), card("2"), card("3")]) == [b"new"] * 3


def test_versions_of_keys_that_are_not_written_are_ignored(store: ProfileStore) -> None:
    store.write({card("1"): b"old", card("2"): b"old"}, ttl_s=0)
    versions = versions_of(store, card("1"), card("2"), card("3"))
    store.write({card("2"): b"by another"}, ttl_s=0)
    store.write({card("1"): b"new"}, ttl_s=0, versions=versions)
    assert store.read([card("1"), card("2"), card("3")]) == [b"new", b"by another", None]


def test_a_conflict_gives_a_count_and_no_key_and_ends_after_a_new_read(store: ProfileStore) -> None:
    keys = [card("secret-1"), card("secret-2"), card("secret-3")]
    store.write(dict.fromkeys(keys, b"old"), ttl_s=0)
    versions = versions_of(store, *keys)
    store.write({keys[1]: b"by another"}, ttl_s=0)
    values = dict.fromkeys(keys, b"mine")
    with pytest.raises(StoreConflict, match="1 of 3 records") as refused:
        store.write(values, ttl_s=0, versions=versions)
    assert "secret" not in str(refused.value)
    store.write(values, ttl_s=0, versions=versions_of(store, *keys))
    assert store.read(keys) == [b"mine"] * 3


def test_a_conflict_is_temporary_but_repeating_the_write_never_helps() -> None:
    assert issubclass(StoreConflict, TemporaryFailure)
    assert not issubclass(StoreConflict, StoreUnavailable)


def test_concurrent_writers_do_not_undo_each_other(store: ProfileStore) -> None:
    # A value lists the updates that it contains, as profiles do, so two writers never write the same bytes.
    tokens = {writer: [b"%d-%d" % (writer, number) for number in range(20)] for writer in range(3)}

    def add_each(writer: int) -> None:
        for token in tokens[writer]:
            is_added = False
            while not is_added:
                ((value, version),) = store.read_versioned([card("1")])
                added = token if value is None else value + b" " + token
                try:
                    store.write({card("1"): added}, ttl_s=0, versions={card("1"): version})
                    is_added = True
                except StoreConflict:
                    continue

    with ThreadPoolExecutor(len(tokens)) as writers:
        list(writers.map(add_each, tokens))
    (value,) = store.read([card("1")])
    assert value is not None
    assert sorted(value.split()) == sorted(token for of_writer in tokens.values() for token in of_writer)


# Health and progress


def test_an_update_is_applied_to_the_newest_value_of_other_writers(store: ProfileStore) -> None:
    keys = [b"contract-card:1", b"contract-card:2"]
    store.write({keys[0]: b"a"}, ttl_s=60)
    others = [b"b", b"c"]

    def change(key: bytes, found: bytes | None) -> bytes | None:
        if key == keys[0] and others:
            store.write({key: others.pop()}, ttl_s=60)
        return None if found is None or found.endswith(b"!") else found + b"!"

    update_records(store, keys, change, ttl_s=60)
    assert store.read(keys) == [b"b!", None]


def test_an_update_that_always_meets_conflicts_is_given_up(store: ProfileStore) -> None:
    key = b"contract-card:1"
    written: list[bytes] = []

    def change(_: bytes, found: bytes | None) -> bytes:
        written.append(b"%d" % len(written))
        store.write({key: written[-1]}, ttl_s=60)
        return (found or b"") + b"!"

    with pytest.raises(StoreConflict):
        update_records(store, [key], change, ttl_s=60)
    assert store.read([key]) == [written[-1]]


def test_an_open_store_is_healthy_and_gives_no_reason(store: ProfileStore) -> None:
    health = store.health()
    assert health
    assert health.reason == ""


def test_a_scan_reports_its_progress_from_zero_to_all_records(store: ProfileStore) -> None:
    count = 2 * SCAN_PAGE_RECORD_COUNT + 7
    store.write({card(f"{number}"): b"value" for number in range(count)}, ttl_s=0)
    told: list[tuple[int, int | None]] = []
    for before, _ in enumerate(store.scan("contract-card", progress=lambda *progress: told.append(progress))):
        assert told[-1][0] <= before
    counts = [so_far for so_far, _ in told]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, count)
    assert {expected is None or expected >= 0 for _, expected in told} == {True}


def test_closing_twice_is_allowed(store: ProfileStore) -> None:
    store.close()
    store.close()


_KEYS = st.sampled_from([b"contract-card:a", b"contract-card:b", b"contract-card:c", b"contract-card2:a"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.dictionaries(_KEYS, st.binary(max_size=20), max_size=4)),
        st.tuples(st.just("delete"), st.lists(_KEYS, max_size=4)),
    ),
    max_size=8,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=_STEPS)
def test_a_store_behaves_like_a_map(store: ProfileStore, steps: list[tuple[str, object]]) -> None:
    every = [b"contract-card:a", b"contract-card:b", b"contract-card:c", b"contract-card2:a"]
    store.delete(every)
    model: dict[bytes, bytes] = {}
    for _, what in steps:
        if isinstance(what, dict):
            store.write(what, ttl_s=0)
            model.update(what)
        elif isinstance(what, list):
            store.delete(what)
            for key in what:
                model.pop(key, None)
    assert store.read(every) == [model.get(key) for key in every]
    for entity in ("contract-card", "contract-card2"):
        prefix = entity.encode() + b":"
        expected = {key: value for key, value in model.items() if key.startswith(prefix)}
        assert dict(store.scan(entity)) == expected
