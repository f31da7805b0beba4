"""Erased records stay erased on Aerospike, also after a server has read its devices again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from paywarden.features.stores.aerospike.sets import AerospikeSets
from paywarden.features.stores.aerospike.store import AerospikeStore
from paywarden.features.stores.base import ABSENT, StoreConflict, Versioned
from paywarden.features.stores.profile_sets import ProfileSets, drop
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from tests.standin.aerospike_server import Fault, StandIn
from tests.standin.patience import quick_settings

CARDS = {b"card:%d" % number: b"value %d" % number for number in range(5)}
DAY_S = 86_400


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=[True, False], ids=["enterprise", "community"])
def server(request: pytest.FixtureRequest, clock: Clock) -> Iterator[StandIn]:
    with StandIn(clock=clock) as running:
        running.records.is_enterprise = request.param
        yield running


@pytest.fixture
def community(clock: Clock) -> Iterator[StandIn]:
    with StandIn(clock=clock) as running:
        running.records.is_enterprise = False
        yield running


def open_store(server: StandIn) -> AerospikeStore:
    return AerospikeStore(quick_settings(server.address))


def test_an_erased_record_is_absent_after_a_cold_start(server: StandIn) -> None:
    with closing(open_store(server)) as store:
        store.write(CARDS, ttl_s=0)
        store.delete([b"card:1", b"card:2", b"card:never"])
        server.records.start_cold()
        erased = [b"card:1", b"card:2", b"card:never"]
        assert store.read(erased) == [None] * 3
        assert store.read_versioned(erased) == [Versioned(None, ABSENT)] * 3
        assert sorted(key for key, _ in store.scan("card")) == [b"card:0", b"card:3", b"card:4"]


@pytest.mark.parametrize("versions", [None, {b"card:1": ABSENT}], ids=["unconditional", "where it is absent"])
def test_an_erased_record_can_be_written_again(server: StandIn, versions: dict[bytes, int] | None) -> None:
    with closing(open_store(server)) as store:
        store.write(CARDS, ttl_s=0)
        store.delete([b"card:1"])
        store.write({b"card:1": b"new"}, ttl_s=0, versions=versions)
        server.records.start_cold()
        assert store.read([b"card:1"]) == [b"new"]


def test_of_two_that_write_an_erased_record_one_looks_again(server: StandIn) -> None:
    with closing(open_store(server)) as store:
        store.delete([b"card:1"])
        store.write({b"card:1": b"first"}, ttl_s=0, versions={b"card:1": ABSENT})
        with pytest.raises(StoreConflict):
            store.write({b"card:1": b"second"}, ttl_s=0, versions={b"card:1": ABSENT})
        assert store.read([b"card:1"]) == [b"first"]


def test_a_write_that_does_not_know_of_the_erasure_is_a_conflict(server: StandIn) -> None:
    with closing(open_store(server)) as store:
        store.write(CARDS, ttl_s=0)
        (found,) = store.read_versioned([b"card:1"])
        store.delete([b"card:1"])
        with pytest.raises(StoreConflict):
            store.write({b"card:1": b"late"}, ttl_s=0, versions={b"card:1": found.version})
        assert store.read([b"card:1"]) == [None]


def test_a_dropped_profile_set_does_not_come_back(server: StandIn) -> None:
    sets = AerospikeSets(quick_settings(server.address), ("card", "payment"))
    with closing(ProfileSets(sets.open_register())) as register:
        register.create("b1", now_ms=1)
        with closing(sets.open("b1")) as store:
            store.write(CARDS, ttl_s=0)
        drop(register, sets, "b1")
        server.records.start_cold()
        with closing(sets.open("b1")) as store:
            assert list(store.scan("card")) == []


def test_a_marker_outlives_every_record_and_then_goes(community: StandIn, clock: Clock) -> None:
    settings = replace(quick_settings(community.address), marker_days=800)
    with closing(AerospikeStore(settings)) as store:
        store.write({b"card:1": b"value"}, ttl_s=400 * DAY_S)
        store.delete([b"card:1"])
        clock.now += 799 * DAY_S
        assert len(community.records.by_digest) == 1
        assert store.read([b"card:1"]) == [None]
        (marker,) = community.records.by_digest.values()
        assert marker.expires_s is not None
        assert marker.expires_s > clock.now


@pytest.mark.parametrize(("marker_days", "lives_days"), [(800, 121), (30, 30)])
def test_a_payments_marker_lives_as_long_as_its_record_could(
    community: StandIn, clock: Clock, marker_days: int, lives_days: int
) -> None:
    settings = replace(quick_settings(community.address), marker_days=marker_days)
    sets = AerospikeSets(settings, ("card", "payment"), lifetimes_s={"payment": 120 * DAY_S})
    for name in ("", "b1"):
        with closing(sets.open(name)) as store:
            store.delete([b"payment:1", b"card:1"])
    lives = {one.set_name: (one.expires_s or 0) - clock.now for one in community.records.by_digest.values()}
    assert lives["payment"] == lives["b1$payment"] == lives_days * DAY_S
    assert lives["card"] == lives["b1$card"] == marker_days * DAY_S


def test_markers_may_be_kept_for_ever(community: StandIn) -> None:
    with closing(AerospikeStore(replace(quick_settings(community.address), marker_days=0))) as store:
        store.delete([b"card:1"])
        (marker,) = community.records.by_digest.values()
        assert marker.expires_s is None


def test_where_nothing_may_expire_a_marker_does_not_either(community: StandIn) -> None:
    community.records.expiry_allowed = False
    with closing(open_store(community)) as store:
        store.delete([b"card:1"])
        (marker,) = community.records.by_digest.values()
        assert marker.expires_s is None


def test_a_cluster_that_does_not_say_what_it_can_is_asked_again(server: StandIn) -> None:
    with closing(open_store(server)) as store:
        store.write(CARDS, ttl_s=0)
        server.info_faults.add(Fault.drop())
        with pytest.raises(StoreUnavailable, match="deletes durably"):
            store.delete([b"card:1"])
        store.delete([b"card:1"])
        assert store.read([b"card:1"]) == [None]


def test_a_text_in_the_bin_is_still_something_else_s(server: StandIn) -> None:
    with closing(open_store(server)) as store:
        store._client.put(("test", "card", bytearray(b"1")), {"profile": "text"})
        with pytest.raises(Misconfigured, match="bin_name"):
            store.read([b"card:1"])
