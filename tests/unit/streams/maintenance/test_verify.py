"""The store is held against the changelog: what was lost, what only seems so, and what is written back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

import numpy as np
import pytest

from paywarden.features.kernel import ATTRIBUTE_COUNT
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.stores.aerospike.store import AerospikeStore
from paywarden.features.stores.base import ProfileStore, TtlS
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.streams.kafka.reading import Record
from paywarden.streams.maintenance.verify import Verdicts, Verification, spoken
from tests.standin.aerospike_cluster import StandInCluster
from tests.standin.aerospike_server import StandIn
from tests.standin.patience import quick_settings

ENGINE = FeatureEngine()
IDS = LocalSchemaIds()
ENCODER = Encoder("profiles", IDS.id_of("profiles"))
NOW_MS = 1_800_000_000_000
TTL_S = 90 * 86_400
KEY = b"card:c1"


def state(before: bytes | None, *events: tuple[int, int]) -> bytes:
    """Returns a card's profile with one payment more for each (source, offset)."""
    count = len(events)
    attributes = np.ones((count, ATTRIBUTE_COUNT), dtype=np.int64)
    attributes[:, 0] = NOW_MS - 1_000_000 + np.arange(count)
    sources, offsets = (np.array(column, dtype=np.int64) for column in zip(*events, strict=True))
    ones = np.ones(count, dtype=np.int64)
    made = Events(np.array([0, count]), np.zeros(count, np.uint8), np.arange(count), ones, sources, offsets, -ones)
    return ENGINE.apply(0, made, attributes, [before], ENGINE.new_slots(0)).states[0]


OLD = state(None, (1, 10))
NEWER = state(OLD, (1, 11))
NEWEST = state(NEWER, (1, 12))
OF_ANOTHER_SOURCE = state(OLD, (2, 5))


def record(key: bytes, value: bytes | None, *, at_ms: int = NOW_MS - 10_000, offset: int = 0) -> Record:
    encoded = None
    if value is not None:
        fields = {"entity": "card", "state": value, "written_time_ms": at_ms, "complete_to_time_ms": None}
        encoded = ENCODER.encode(fields | {"arrived_time_ms": None})
    return Record("profiles", 0, offset, key, encoded, at_ms, [])


@pytest.fixture
def store() -> ProfileStore:
    return MemoryStore()


def verdicts_of(
    store: ProfileStore,
    *records: Record,
    repair: bool = False,
    since_ms: int | None = None,
    until_ms: int | None = None,
    came_later: tuple[bytes, ...] = (),
) -> Verdicts:
    verification = Verification(
        store,
        Decoder("profiles", IDS),
        ttl_s=lambda _: TTL_S,
        now_ms=NOW_MS,
        since_ms=since_ms,
        until_ms=until_ms,
        repair=repair,
    )
    ends = verification.compare([records])
    assert ends == ({0: records[-1].offset + 1} if records else {})
    verification.look_again(came_later)
    return verification.verdicts


def test_equal_bytes_are_whole_and_the_last_record_of_a_key_counts(store: ProfileStore) -> None:
    store.write({KEY: NEWER}, ttl_s=TTL_S)
    assert verdicts_of(store, record(KEY, OLD), record(KEY, NEWER, offset=1)) == Verdicts(whole={"card": 1})


def test_a_store_that_is_ahead_of_the_changelog_is_whole(store: ProfileStore) -> None:
    store.write({KEY: NEWEST}, ttl_s=TTL_S)
    found = verdicts_of(store, record(KEY, NEWER), repair=True)
    assert found == Verdicts(whole={"card": 1})
    assert store.read([KEY]) == [NEWEST]


@pytest.mark.parametrize("left", [None, OLD], ids=["absent", "older"])
def test_an_acknowledged_write_that_was_lost_is_found_and_written_back(store: ProfileStore, left: bytes | None) -> None:
    if left is not None:
        store.write({KEY: left}, ttl_s=TTL_S)
    lost = verdicts_of(store, record(KEY, NEWER))
    assert lost == Verdicts(lost={"card": 1})
    assert lost.needs_repair
    assert store.read([KEY]) == [left]
    repaired = verdicts_of(store, record(KEY, NEWER), repair=True)
    assert repaired == Verdicts(lost={"card": 1}, repaired={"card": 1})
    assert not repaired.needs_repair
    assert store.read([KEY]) == [NEWER]


def test_an_expired_profile_was_not_lost(store: ProfileStore) -> None:
    expired_ms = NOW_MS - TTL_S * 1000 - 1
    assert verdicts_of(store, record(KEY, NEWER, at_ms=expired_ms), repair=True) == Verdicts(whole={"card": 1})
    assert store.read([KEY]) == [None]


def test_a_profile_that_is_older_and_newer_is_never_overwritten(store: ProfileStore) -> None:
    store.write({KEY: OF_ANOTHER_SOURCE}, ttl_s=TTL_S)
    found = verdicts_of(store, record(KEY, NEWER), repair=True)
    assert found == Verdicts(mixed={"card": 1})
    assert found.needs_rebuild
    assert store.read([KEY]) == [OF_ANOTHER_SOURCE]


def test_a_profile_that_the_stream_changes_meanwhile_is_not_written_back() -> None:
    class Racing(MemoryStore):
        def write(
            self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None
        ) -> None:
            if versions is not None:
                super().write({KEY: OF_ANOTHER_SOURCE}, ttl_s=ttl_s)
            super().write(values, ttl_s=ttl_s, versions=versions)

    racing = Racing()
    racing.write({KEY: OLD}, ttl_s=TTL_S)
    found = verdicts_of(racing, record(KEY, NEWER), repair=True)
    assert found == Verdicts(lost={"card": 1})
    assert found.needs_repair
    assert racing.read([KEY]) == [OF_ANOTHER_SOURCE]


def test_an_erased_profile_that_is_there_again_is_told(store: ProfileStore) -> None:
    store.write({KEY: OLD}, ttl_s=TTL_S)
    assert verdicts_of(store, record(KEY, OLD), record(KEY, None, offset=1)) == Verdicts(returned={"card": 1})


def test_a_profile_that_begins_anew_after_its_erasure_did_not_return(store: ProfileStore) -> None:
    store.write({KEY: OLD}, ttl_s=TTL_S)
    assert verdicts_of(store, record(KEY, None), came_later=(KEY,)) == Verdicts()


def test_profiles_written_shortly_before_the_loss_and_after_it_are_counted(store: ProfileStore) -> None:
    since_ms = NOW_MS - 100_000
    keys = [b"card:both", b"card:before", b"card:after", b"card:long_ago"]
    store.write(dict.fromkeys(keys, NEWER), ttl_s=TTL_S)
    found = verdicts_of(
        store,
        record(b"card:both", OLD, at_ms=since_ms - 500),
        record(b"card:before", NEWER, at_ms=since_ms - 500),
        record(b"card:long_ago", OLD, at_ms=since_ms - 61_000),
        record(b"card:both", NEWER, at_ms=since_ms + 500),
        record(b"card:after", NEWER, at_ms=since_ms + 500),
        record(b"card:long_ago", NEWER, at_ms=since_ms + 500),
        since_ms=since_ms,
    )
    assert found == Verdicts(whole={"card": 4}, rewritten={"card": 1})
    assert found.needs_rebuild


def test_profiles_written_while_a_cluster_was_parted_are_counted(store: ProfileStore) -> None:
    since_ms, until_ms = NOW_MS - 100_000, NOW_MS - 50_000
    keys = [b"card:meanwhile", b"card:later", b"card:long_ago"]
    store.write(dict.fromkeys(keys, NEWER), ttl_s=TTL_S)
    found = verdicts_of(
        store,
        record(b"card:long_ago", NEWER, at_ms=since_ms - 61_000),
        record(b"card:meanwhile", NEWER, at_ms=since_ms + 500),
        record(b"card:later", NEWER, at_ms=until_ms + 1),
        since_ms=since_ms,
        until_ms=until_ms,
    )
    assert found == Verdicts(whole={"card": 3}, rewritten={"card": 1})


def test_records_that_cannot_be_read_are_counted_and_the_rest_is_compared(store: ProfileStore) -> None:
    store.write({KEY: NEWER, b"card:c2": b"damaged"}, ttl_s=TTL_S)
    broken = Record("profiles", 0, 0, b"card:c0", b"no record", NOW_MS, [])
    found = verdicts_of(store, broken, record(KEY, NEWER), record(b"card:c2", NEWER), record(b"progress:card:0", b""))
    assert found == Verdicts(whole={"card": 1}, unreadable=2)
    assert found.needs_rebuild


def test_findings_name_no_card(store: ProfileStore) -> None:
    told = "\n".join(spoken(verdicts_of(store, record(KEY, NEWER), record(b"card:c2", NEWER))))
    assert "lost       2 card" in told
    assert "--repair" in told
    assert "c1" not in told


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


def test_a_killed_single_copy_gets_its_last_second_back(server: StandIn) -> None:
    cards = {b"card:%d" % number: OLD for number in range(30)}
    last_second = {b"card:%d" % number: NEWER for number in range(20, 40)}
    with closing(AerospikeStore(quick_settings(server.address))) as store:
        store.write(cards, ttl_s=TTL_S)
        server.records.flush()
        store.write(last_second, ttl_s=TTL_S)
        everything = {**cards, **last_second}
        changelog = [record(key, value) for key, value in everything.items()]
        server.records.kill()
        assert store.read(list(last_second)) == [OLD] * 10 + [None] * 10
        found = verdicts_of(store, *changelog, repair=True)
        assert found == Verdicts(whole={"card": 20}, lost={"card": 20}, repaired={"card": 20})
        assert store.read(list(everything)) == list(everything.values())


def test_writes_of_a_node_that_was_alone_come_back_from_the_changelog() -> None:
    cards = {b"card:%d" % number: OLD for number in range(10)}
    with StandInCluster(node_count=2) as cluster:
        with closing(AerospikeStore(quick_settings(*cluster.hosts))) as store:
            store.write(cards, ttl_s=TTL_S)
        cluster.cut_off(1)
        cluster.orphan(1)
        with closing(AerospikeStore(quick_settings(cluster.nodes[1].address))) as store:
            store.write(dict.fromkeys(cards, NEWER), ttl_s=TTL_S)
        cluster.rejoin(1)
        with closing(AerospikeStore(quick_settings(*cluster.hosts))) as store:
            found = verdicts_of(store, *(record(key, NEWER) for key in cards), repair=True)
            assert found == Verdicts(lost={"card": 10}, repaired={"card": 10})
            assert store.read(list(cards)) == [NEWER] * 10
