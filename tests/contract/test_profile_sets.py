"""The promises of every store about its profile sets and their register, tested on each kind of store.

With PAYWARDEN_TEST_AEROSPIKE=host:port the tests also run on that real server, as in test_store.py. Each has a
register of its own there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from paywarden.features.stores.aerospike.sets import AerospikeSets
from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore
from paywarden.features.stores.base import ABSENT, ProfileStore, ScanProgress, StoreConflict, Versioned
from paywarden.features.stores.lmdb import LmdbSettings
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.features.stores.memory import MemorySets
from paywarden.features.stores.profile_sets import (
    FIRST,
    LiveSet,
    ProfileSet,
    ProfileSets,
    Register,
    RegisterStore,
    SetStores,
    drop,
)
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from tests.contract.test_store import REAL_NAMESPACE, REAL_SERVER, community, own_prefix
from tests.standin.aerospike_server import StandIn

CARD, CARD2, PAYMENT = "contract-card", "contract-card2", "payment"
ENTITIES = (CARD, CARD2, PAYMENT)
NEVER = LiveSet(FIRST, 0, None)
# Smaller than the records that the tests write. The pages of a scan are small, too.
BATCH_RECORD_COUNT_MAX = 16


def _memory(_: Path) -> Iterator[SetStores]:
    yield MemorySets()


def _lmdb(path: Path) -> Iterator[SetStores]:
    yield LmdbSets(LmdbSettings(path=str(path / "profiles"), map_size_bytes=64 << 20, fsync=False))


class OwnSets(AerospikeSets):
    """Profile sets whose Aerospike sets are no other test's."""

    prefix = ""

    def _open(self, prefix: str) -> AerospikeStore:
        return super()._open(self.prefix + prefix)


def _aerospike_sets(address: str, namespace: str, prefix: str = "") -> OwnSets:
    settings = AerospikeSettings(
        hosts=(address,),
        namespace=namespace,
        batch_record_count_max=BATCH_RECORD_COUNT_MAX,
        scan_page_record_count=BATCH_RECORD_COUNT_MAX,
    )
    sets = OwnSets(settings, ENTITIES)
    sets.prefix = prefix
    return sets


def _aerospike_standin(_: Path) -> Iterator[SetStores]:
    with StandIn() as server:
        yield _aerospike_sets(server.address, server.namespace)


def _aerospike_community_standin(_: Path) -> Iterator[SetStores]:
    server, _clock = community()
    yield _aerospike_sets(server.address, server.namespace, own_prefix())


def _aerospike_server(_: Path) -> Iterator[SetStores]:
    yield _aerospike_sets(os.environ[REAL_SERVER], os.environ.get(REAL_NAMESPACE, "test"), own_prefix())


SET_STORES = [_memory, _lmdb, _aerospike_standin, _aerospike_community_standin]
if os.environ.get(REAL_SERVER):
    SET_STORES.append(_aerospike_server)


@pytest.fixture(params=SET_STORES, ids=lambda make: make.__name__.strip("_"))
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SetStores]:
    yield from request.param(tmp_path)


@pytest.fixture
def register(stores: SetStores) -> Iterator[RegisterStore]:
    opened = stores.open_register()
    yield opened
    opened.close()


@pytest.fixture
def sets(register: RegisterStore) -> ProfileSets:
    return ProfileSets(register)


@pytest.fixture
def other(stores: SetStores) -> Iterator[ProfileSets]:
    """A register of the same store as another process opens it."""
    opened = ProfileSets(stores.open_register())
    yield opened
    opened.close()


@dataclass
class Interrupted:
    """A register in which another change happens once between a read and the replacement that follows it."""

    register: RegisterStore
    happens: Callable[[], object]
    has_happened: bool = False

    def read(self) -> Versioned:
        return self.register.read()

    def replace(self, value: bytes, version: int) -> None:
        if not self.has_happened:
            self.has_happened = True
            self.happens()
        self.register.replace(value, version)

    def close(self) -> None:
        pass


def card(identity: int | str, entity: str = CARD) -> bytes:
    return f"{entity}:{identity}".encode()


def fill(stores: SetStores, name: str, values: dict[bytes, bytes]) -> None:
    with closing(stores.open(name)) as store:
        store.write(values, ttl_s=0)


def contents(stores: SetStores, name: str) -> dict[bytes, bytes]:
    with closing(stores.open(name)) as store:
        return {key: value for entity in ENTITIES for key, value in store.scan(entity)}


def two_sets(stores: SetStores) -> tuple[ProfileStore, ProfileStore]:
    return stores.open(FIRST), stores.open("b1")


# Sets beside each other


def test_a_set_reads_and_scans_its_own_records_only(stores: SetStores) -> None:
    first, second = two_sets(stores)
    with closing(first), closing(second):
        first.write({card(1): b"first", card(2): b"first"}, ttl_s=0)
        second.write({card(1): b"second", card(3): b"second"}, ttl_s=0)
        keys = [card(1), card(2), card(3)]
        assert first.read(keys) == [b"first", b"first", None]
        assert second.read(keys) == [b"second", None, b"second"]
        assert dict(first.scan(CARD)) == {card(1): b"first", card(2): b"first"}
        assert dict(second.scan(CARD)) == {card(1): b"second", card(3): b"second"}


def test_a_record_of_one_set_has_no_version_in_another(stores: SetStores) -> None:
    first, second = two_sets(stores)
    with closing(first), closing(second):
        first.write({card(1): b"first"}, ttl_s=0)
        ((_, version),) = first.read_versioned([card(1)])
        assert second.read_versioned([card(1)]) == [Versioned(None, ABSENT)]
        second.write({card(1): b"second"}, ttl_s=0, versions={card(1): ABSENT})
        second.write({card(1): b"second again"}, ttl_s=0)
        first.write({card(1): b"first again"}, ttl_s=0, versions={card(1): version})
        assert first.read([card(1)]) == [b"first again"]


def test_a_record_deleted_in_one_set_stays_in_another(stores: SetStores) -> None:
    first, second = two_sets(stores)
    with closing(first), closing(second):
        for store in (first, second):
            store.write({card(1): b"value"}, ttl_s=0)
        second.delete([card(1)])
        assert first.read([card(1)]) == [b"value"]
        first.delete([card(1)])
        assert [store.read([card(1)]) for store in (first, second)] == [[None], [None]]


def test_a_set_and_an_entity_never_share_a_name_with_another_pair(stores: SetStores) -> None:
    fill(stores, "b", {card(1): b"b"})
    fill(stores, "b1", {card(1): b"b1", card(1, "b-contract-card"): b"of another entity"})
    fill(stores, FIRST, {card(1, "b1-contract-card"): b"first", card(1, "b1contract-card"): b"first"})
    assert contents(stores, FIRST) == {}
    assert contents(stores, "b") == {card(1): b"b"}
    assert contents(stores, "b1") == {card(1): b"b1"}
    assert stores.counts("b") == {CARD: 1}
    stores.erase("b1")
    with closing(stores.open(FIRST)) as first:
        first.delete([card(1, "b1-contract-card"), card(1, "b1contract-card")])


def test_the_register_is_in_no_set(stores: SetStores, sets: ProfileSets) -> None:
    sets.create("b1", now_ms=1)
    for name in (FIRST, "b1"):
        assert stores.counts(name) == {}
        with closing(stores.open(name)) as store:
            assert list(store.scan("meta")) == []
            store.delete([b"meta:live"])
    assert [one.name for one in sets.register().sets] == [FIRST, "b1"]


def test_records_beside_the_sets_are_in_no_set_and_outlive_them(stores: SetStores) -> None:
    key = b"drift:contract"
    with closing(stores.open_beside()) as beside:
        beside.delete([key])
        assert beside.read_versioned([key]) == [Versioned(None, ABSENT)]
        beside.write({key: b"kept"}, ttl_s=60, versions={key: ABSENT})
    assert key not in contents(stores, FIRST)
    stores.erase(FIRST)
    with closing(stores.open_beside()) as beside:
        assert beside.read([key]) == [b"kept"]
        with pytest.raises(StoreConflict):
            beside.write({key: b"other"}, ttl_s=60, versions={key: ABSENT})
        beside.delete([key])


def test_records_are_counted_by_kind_and_set(stores: SetStores) -> None:
    assert stores.counts(FIRST) == stores.counts("b1") == {}
    fill(stores, FIRST, {card(number): b"value" for number in range(40)})
    fill(stores, "b1", {card(1): b"value", card(1, CARD2): b"value", card(1, PAYMENT): b"value"})
    assert stores.counts(FIRST) == {CARD: 40}
    assert stores.counts("b1") == {CARD: 1, CARD2: 1, PAYMENT: 1}


# Erasing


def test_an_erased_set_is_empty_and_other_sets_are_unchanged(stores: SetStores) -> None:
    values = {card(number, entity): b"value" for number in range(40) for entity in ENTITIES}
    for name in (FIRST, "b1", "b2"):
        fill(stores, name, values)
    stores.erase("b1")
    assert contents(stores, "b1") == {}
    assert contents(stores, FIRST) == contents(stores, "b2") == values
    stores.erase("b1")
    stores.erase(FIRST)
    assert contents(stores, FIRST) == {}
    assert contents(stores, "b2") == values


def test_a_set_that_never_existed_can_be_erased(stores: SetStores) -> None:
    stores.erase("b1")
    assert stores.counts("b1") == {}


def test_an_erased_set_can_be_filled_again(stores: SetStores) -> None:
    for name in (FIRST, "b1"):
        fill(stores, name, {card(1): b"old", card(2): b"old"})
        stores.erase(name)
        fill(stores, name, {card(1): b"new"})
        assert contents(stores, name) == {card(1): b"new"}


def test_erasing_reports_its_progress(stores: SetStores) -> None:
    fill(stores, "b1", {card(number): b"value" for number in range(40)})
    told: list[int] = []
    stores.erase("b1", progress=lambda count, _: told.append(count))
    assert told[0] == 0
    assert told == sorted(told)


# The register


def test_without_a_register_the_first_set_is_live(sets: ProfileSets) -> None:
    assert sets.read() == NEVER
    assert sets.register() == Register(NEVER, (ProfileSet(FIRST, None),))


def test_a_store_belongs_to_the_first_identity_key_that_claims_it(sets: ProfileSets, other: ProfileSets) -> None:
    sets.check_identity("key-a")
    sets.claim_identity("key-a")
    sets.claim_identity("key-a")
    other.check_identity("key-a")
    for refused in (other.check_identity, other.claim_identity):
        with pytest.raises(Misconfigured, match="of digest key-a, and this process has the one of key-b: set"):
            refused("key-b")
    # A change of the sets keeps the claim.
    other.create("b1", now_ms=5)
    assert sets.register().identity == "key-a"


def test_a_created_set_is_listed_with_its_time_and_is_not_live(sets: ProfileSets, other: ProfileSets) -> None:
    sets.create("b1", now_ms=1_700_000_000_000)
    assert other.register() == Register(NEVER, (ProfileSet(FIRST, None), ProfileSet("b1", 1_700_000_000_000)))


def test_a_finished_swap_makes_the_set_live_and_counts_up(sets: ProfileSets, other: ProfileSets) -> None:
    sets.create("b1", now_ms=1)
    begun = sets.begin_swap(NEVER, "b1")
    assert begun == other.read() == LiveSet(FIRST, 0, "b1")
    assert sets.finish_swap(begun) == other.read() == LiveSet("b1", 1, None)
    back = sets.begin_swap(other.read(), FIRST)
    assert sets.finish_swap(back) == LiveSet(FIRST, 2, None)


def test_an_abandoned_swap_keeps_the_live_set_and_counts_up(sets: ProfileSets, other: ProfileSets) -> None:
    sets.create("b1", now_ms=1)
    assert sets.abort_swap(sets.begin_swap(NEVER, "b1")) == other.read() == LiveSet(FIRST, 1, None)
    assert sets.begin_swap(other.read(), "b1") == LiveSet(FIRST, 1, "b1")


def test_a_change_based_on_an_outdated_register_is_refused(sets: ProfileSets, other: ProfileSets) -> None:
    sets.create("b1", now_ms=1)
    begun = sets.begin_swap(NEVER, "b1")
    other.abort_swap(begun)
    other.begin_swap(other.read(), "b1")
    # The same two sets, but a different swap.
    for change in (sets.finish_swap, sets.abort_swap):
        with pytest.raises(StoreConflict):
            change(begun)
    with pytest.raises(StoreConflict):
        sets.begin_swap(NEVER, "b1")
    assert sets.read() == LiveSet(FIRST, 1, "b1")


def test_if_two_processes_begin_the_same_swap_one_succeeds(register: RegisterStore, other: ProfileSets) -> None:
    other.create("b1", now_ms=1)
    with pytest.raises(StoreConflict):
        ProfileSets(Interrupted(register, lambda: other.begin_swap(NEVER, "b1"))).begin_swap(NEVER, "b1")
    assert other.read() == LiveSet(FIRST, 0, "b1")


def test_if_two_processes_create_the_same_set_one_succeeds(register: RegisterStore, other: ProfileSets) -> None:
    with pytest.raises(Misconfigured, match="b1 already"):
        ProfileSets(Interrupted(register, lambda: other.create("b1", now_ms=1))).create("b1", now_ms=1)


def test_a_concurrent_change_is_kept_beside_ours(register: RegisterStore, other: ProfileSets) -> None:
    other.create("b1", now_ms=1)
    sets = ProfileSets(Interrupted(register, lambda: other.create("b2", now_ms=2)))
    assert sets.begin_swap(NEVER, "b1") == LiveSet(FIRST, 0, "b1")
    assert [one.name for one in other.register().sets] == [FIRST, "b1", "b2"]


def test_a_set_that_is_being_dropped_is_not_swapped_in(register: RegisterStore, other: ProfileSets) -> None:
    other.create("b1", now_ms=1)
    with pytest.raises(Misconfigured, match="b1 is being dropped"):
        ProfileSets(Interrupted(register, lambda: other.begin_drop("b1"))).begin_swap(NEVER, "b1")
    assert other.read() == NEVER


def test_a_set_that_is_being_swapped_in_is_not_dropped(register: RegisterStore, other: ProfileSets) -> None:
    other.create("b1", now_ms=1)
    with pytest.raises(Misconfigured, match="b1 is being swapped in"):
        ProfileSets(Interrupted(register, lambda: other.begin_swap(NEVER, "b1"))).begin_drop("b1")
    assert not other.register().find("b1").is_being_dropped


def test_no_swap_begins_during_another_or_to_an_unknown_set(sets: ProfileSets) -> None:
    for name in ("b1", "b2"):
        sets.create(name, now_ms=1)
    with pytest.raises(Misconfigured, match="no profile set b3; there are first, b1, b2"):
        sets.begin_swap(NEVER, "b3")
    with pytest.raises(Misconfigured, match="first is live already"):
        sets.begin_swap(NEVER, FIRST)
    begun = sets.begin_swap(NEVER, "b1")
    with pytest.raises(Misconfigured, match="a swap to profile set b1 is under way"):
        sets.begin_swap(begun, "b2")
    assert sets.read() == begun


def test_a_swap_that_has_not_begun_cannot_end(sets: ProfileSets) -> None:
    for change in (sets.finish_swap, sets.abort_swap):
        with pytest.raises(Misconfigured, match="no swap"):
            change(NEVER)


def test_a_register_of_another_release_is_refused_and_left_unchanged(register: RegisterStore) -> None:
    sets = ProfileSets(register)
    written = json.dumps({"format": 2, "live": "b7"}).encode()
    register.replace(written, ABSENT)
    for call in (sets.read, lambda: sets.create("b1", now_ms=1)):
        with pytest.raises(Misconfigured, match="format 2"):
            call()
    register.replace(b"{", register.read().version)
    with pytest.raises(Misconfigured, match="damaged"):
        sets.read()


def test_repeating_a_replacement_succeeds_without_a_conflict(register: RegisterStore) -> None:
    register.replace(b"old", ABSENT)
    version = register.read().version
    for _ in range(2):
        register.replace(b"new", version)
    with pytest.raises(StoreConflict):
        register.replace(b"other", version)
    with pytest.raises(StoreConflict):
        register.replace(b"other", ABSENT)
    assert register.read().value == b"new"


def test_concurrent_changes_do_not_undo_each_other(stores: SetStores) -> None:
    names = [f"b{number}" for number in range(6)]

    def create(name: str) -> None:
        with closing(stores.open_register()) as register:
            ProfileSets(register).create(name, now_ms=1)

    with ThreadPoolExecutor(3) as processes:
        list(processes.map(create, names))
    with closing(stores.open_register()) as register:
        assert {one.name for one in ProfileSets(register).register().sets} == {FIRST, *names}


def test_a_concurrent_reader_sees_the_old_register_or_the_new_one(sets: ProfileSets, other: ProfileSets) -> None:
    sets.create("b1", now_ms=1)
    is_over = Event()

    def watch() -> list[LiveSet]:
        seen = [other.read()]
        while not is_over.is_set():
            seen.append(other.read())
        return seen

    with ThreadPoolExecutor(1) as reader:
        watching = reader.submit(watch)
        try:
            for _ in range(20):
                sets.abort_swap(sets.begin_swap(sets.read(), "b1"))
        finally:
            is_over.set()
        seen = watching.result()
    # In the order in which the writer made the states.
    order = [(live.epoch, live.next is not None) for live in seen]
    assert order == sorted(order)


# Dropping


def test_a_dropped_set_is_erased_and_its_name_is_free(stores: SetStores, sets: ProfileSets) -> None:
    sets.create("b1", now_ms=1)
    for name in (FIRST, "b1"):
        fill(stores, name, {card(number): b"value" for number in range(40)})
    drop(sets, stores, "b1")
    assert contents(stores, "b1") == {}
    assert stores.counts(FIRST) == {CARD: 40}
    assert [one.name for one in sets.register().sets] == [FIRST]
    sets.create("b1", now_ms=2)
    assert sets.register().find("b1") == ProfileSet("b1", 2)


def test_the_first_set_can_be_dropped_once_another_is_live(stores: SetStores, sets: ProfileSets) -> None:
    sets.create("b1", now_ms=1)
    for name in (FIRST, "b1"):
        fill(stores, name, {card(1): b"value"})
    sets.finish_swap(sets.begin_swap(NEVER, "b1"))
    drop(sets, stores, FIRST)
    assert contents(stores, FIRST) == {}
    assert contents(stores, "b1") == {card(1): b"value"}
    assert sets.register() == Register(LiveSet("b1", 1, None), (ProfileSet("b1", 1),))
    with pytest.raises(Misconfigured, match="no profile set first"):
        sets.begin_swap(sets.read(), FIRST)


def test_a_set_that_is_live_or_being_swapped_in_is_not_dropped(stores: SetStores, sets: ProfileSets) -> None:
    sets.create("b1", now_ms=1)
    for name in (FIRST, "b1"):
        fill(stores, name, {card(1): b"value"})
    begun = sets.begin_swap(NEVER, "b1")
    for name, why in ((FIRST, "first is live"), ("b1", "b1 is being swapped in"), ("b2", "no profile set b2")):
        with pytest.raises(Misconfigured, match=why):
            drop(sets, stores, name)
    assert contents(stores, FIRST) == contents(stores, "b1") == {card(1): b"value"}
    sets.abort_swap(begun)
    drop(sets, stores, "b1")


@dataclass
class Dying:
    """Stores whose process dies when it begins to erase."""

    stores: SetStores

    def open(self, name: str, *, readonly: bool = False) -> ProfileStore:
        return self.stores.open(name, readonly=readonly)

    def open_register(self) -> RegisterStore:
        return self.stores.open_register()

    def open_beside(self, *, readonly: bool = False) -> ProfileStore:
        return self.stores.open_beside(readonly=readonly)

    def counts(self, name: str) -> dict[str, int]:
        return self.stores.counts(name)

    def erase(self, name: str, *, records_per_second: int = 0, progress: ScanProgress | None = None) -> None:
        raise StoreUnavailable(f"died at {name} {records_per_second} {progress}")


def test_an_interrupted_drop_can_continue_and_blocks_the_set_meanwhile(stores: SetStores, sets: ProfileSets) -> None:
    sets.create("b1", now_ms=1)
    fill(stores, "b1", {card(1): b"value"})
    with pytest.raises(StoreUnavailable):
        drop(sets, Dying(stores), "b1")
    assert sets.register().find("b1").is_being_dropped
    for use in (lambda: sets.begin_swap(NEVER, "b1"), lambda: sets.create("b1", now_ms=2)):
        with pytest.raises(Misconfigured):
            use()
    drop(sets, stores, "b1")
    assert contents(stores, "b1") == {}
    assert [one.name for one in sets.register().sets] == [FIRST]


def test_an_impossible_name_is_refused(stores: SetStores, sets: ProfileSets) -> None:
    for name in ("", "B1", "b_1", "b-1", "b$1", "../b1", "b" * 17, "first", "é", "b1\n"):
        with pytest.raises(Misconfigured, match="1 to 16 lower-case letters and digits"):
            sets.create(name, now_ms=1)
        if name != FIRST:
            with pytest.raises(Misconfigured, match="1 to 16 lower-case letters and digits"):
                stores.open(name)
        assert sets.register() == Register(), name


def test_the_longest_allowed_name_works(stores: SetStores, sets: ProfileSets) -> None:
    name = "b20260101t093000"
    assert len(name) == 16
    sets.create(name, now_ms=1)
    fill(stores, name, {card(1): b"value"})
    sets.finish_swap(sets.begin_swap(NEVER, name))
    assert contents(stores, sets.read().name) == {card(1): b"value"}
    sets.finish_swap(sets.begin_swap(sets.read(), FIRST))
    drop(sets, stores, name)


def test_closing_a_register_twice_is_fine(register: RegisterStore) -> None:
    register.close()
    register.close()
