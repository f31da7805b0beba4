"""Profile sets on Aerospike: their names, what belongs to others in the namespace, and counts that may be unknown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from paywarden.features.stores.aerospike.sets import AerospikeSets
from paywarden.features.stores.aerospike.store import AerospikeStore
from paywarden.features.stores.base import StoreConflict
from paywarden.features.stores.profile_sets import LiveSet, ProfileSets
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from tests.standin.aerospike_cluster import StandInCluster
from tests.standin.aerospike_server import Fault, StandIn
from tests.standin.patience import quick_settings

ENTITIES = ("card", "payment")


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def sets(server: StandIn) -> AerospikeSets:
    return AerospikeSets(quick_settings(server.address), ENTITIES)


def write(sets: AerospikeSets, name: str, *keys: bytes) -> None:
    with closing(sets.open(name)) as store:
        store.write(dict.fromkeys(keys, b"value"), ttl_s=0)


def test_names_are_those_that_aerospike_advises(server: StandIn, sets: AerospikeSets) -> None:
    write(sets, "", b"card:1")
    write(sets, "b1", b"card:1", b"payment:1")
    with closing(sets.open_register()) as register:
        ProfileSets(register).create("b1", now_ms=1)
    assert server.records.set_counts() == {"card": 1, "b1$card": 1, "b1$payment": 1, "$meta": 1}


def test_the_first_set_is_the_store_that_was_there_before(server: StandIn, sets: AerospikeSets) -> None:
    with closing(AerospikeStore(quick_settings(server.address))) as before:
        before.write({b"card:1": b"value"}, ttl_s=0)
    with closing(sets.open("")) as first:
        assert first.read([b"card:1"]) == [b"value"]


def test_other_sets_of_the_namespace_are_neither_counted_nor_erased(server: StandIn, sets: AerospikeSets) -> None:
    with closing(AerospikeStore(quick_settings(server.address))) as another_application:
        another_application.write({b"basket:1": b"precious", b"card2:1": b"precious"}, ttl_s=0)
    write(sets, "", b"card:1", b"payment:1")
    write(sets, "b1", b"card:1")
    assert sets.counts("") == {"card": 1, "payment": 1}
    sets.erase("")
    sets.erase("b1")
    assert server.records.set_counts() == {"basket": 1, "card2": 1}


def test_erasing_a_further_set_includes_entities_of_old_catalogues(server: StandIn, sets: AerospikeSets) -> None:
    write(sets, "b1", b"card:1", b"of_old:1")
    assert sets.counts("b1") == {"card": 1, "of_old": 1}
    sets.erase("b1")
    assert server.records.set_counts() == {}


def test_names_that_are_too_long_together_are_refused_at_the_start(server: StandIn) -> None:
    sets = AerospikeSets(quick_settings(server.address), ("card", "e" * 50))
    sets.open("b12345678901").close()
    with pytest.raises(Misconfigured, match=f"entity {'e' * 50} is too long: Aerospike takes 63 .* 14 are taken"):
        sets.open("b123456789012")
    with closing(AerospikeStore(quick_settings(server.address), set_prefix="b123456789012$")) as store:
        for call in (
            lambda: store.read([b"e" * 50 + b":1"]),
            lambda: store.write({b"e" * 50 + b":1": b"value"}, ttl_s=0),
            lambda: list(store.scan("e" * 50)),
        ):
            with pytest.raises(Misconfigured, match="too long"):
                call()


def test_a_record_that_is_kept_twice_counts_once() -> None:
    with StandInCluster(node_count=2) as cluster:
        sets = AerospikeSets(quick_settings(*cluster.hosts), ENTITIES)
        write(sets, "b1", *(b"card:%d" % number for number in range(7)))
        assert sets.counts("b1") == {"card": 7}


def test_while_copies_move_no_set_seems_empty(server: StandIn, sets: AerospikeSets) -> None:
    server.info["namespace/test"] = "ns_cluster_size=1;effective_replication_factor=2"
    write(sets, "b1", b"card:1")
    assert sets.counts("b1") == {"card": 1}


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("namespace/test", "ns_cluster_size=2;effective_replication_factor=1"),
        ("namespace/test", "type=unknown"),
        ("sets/test", "ERROR::busy"),
    ],
)
def test_without_answers_of_all_nodes_nothing_is_counted_or_erased(
    server: StandIn, sets: AerospikeSets, asked: str, answer: str
) -> None:
    write(sets, "b1", b"card:1")
    server.info[asked] = answer
    for call in (sets.counts, sets.erase):
        with pytest.raises(StoreUnavailable, match="which sets"):
            call("b1")
    assert server.records.set_counts() == {"b1$card": 1}


def test_a_change_whose_answer_was_lost_is_made_once(server: StandIn, sets: AerospikeSets) -> None:
    with closing(sets.open_register()) as register:
        changing = ProfileSets(register)
        changing.create("b1", now_ms=1)
        # The first message is the read before it. The client tries again by itself, and finds another generation.
        server.faults.add(Fault())
        server.faults.add(Fault.drop_answer())
        assert changing.begin_swap(LiveSet("", 0, None), "b1") == LiveSet("", 0, "b1")
        with pytest.raises(StoreConflict):
            changing.begin_swap(LiveSet("", 0, None), "b1")
