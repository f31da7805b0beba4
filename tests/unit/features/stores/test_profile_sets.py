"""Erasing a set through the port: at what rate, and what becomes of it when others are at work; names for people."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from paywarden.features.stores.base import StoreConflict, Versioned
from paywarden.features.stores.memory import MemorySets, MemoryStore
from paywarden.features.stores.profile_sets import (
    LiveSet,
    ProfileSets,
    Register,
    StoredRegister,
    erase_records,
    spoken,
    typed_name,
)
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from tests.standin.patience import FakeTime


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def filled(count: int) -> MemoryStore:
    store = MemoryStore()
    store.write({b"card:%d" % number: b"value" for number in range(count)}, ttl_s=0)
    store.write({b"payment:%d" % number: b"value" for number in range(count)}, ttl_s=0)
    return store


def test_erasing_keeps_the_rate_over_all_kinds_together(time: FakeTime) -> None:
    store = filled(1_000)
    erase_records(store, store.counts, records_per_second=100, clock=time.clock, sleep=time.sleep)
    assert store.counts() == {}
    assert sum(time.slept_s) == pytest.approx(20)
    # Never more than a second's worth at once.
    assert max(time.slept_s) == pytest.approx(1)


def test_without_a_rate_it_does_not_wait(time: FakeTime) -> None:
    store = filled(10)
    erase_records(store, store.counts, clock=time.clock, sleep=time.sleep)
    assert time.slept_s == []


def test_erasing_reports_progress_and_the_expected_total() -> None:
    store = filled(1_500)
    told: list[tuple[int, int | None]] = []
    erase_records(store, store.counts, progress=lambda *said: told.append(said))
    assert told == [(0, 3_000), (1_000, 3_000), (2_000, 3_000), (3_000, 3_000)]


def test_records_written_during_an_erase_are_erased_too(time: FakeTime) -> None:
    store = filled(3)

    def write_once() -> None:
        time.on_sleep = lambda: None
        store.write({b"card:late": b"value", b"device:late": b"value"}, ttl_s=0)

    time.on_sleep = write_once
    erase_records(store, store.counts, records_per_second=1_000, clock=time.clock, sleep=time.sleep)
    assert store.counts() == {}


def test_erasing_gives_up_if_a_process_keeps_writing(time: FakeTime) -> None:
    store = filled(3)
    time.on_sleep = lambda: store.write({b"card:again": b"value"}, ttl_s=0)
    with pytest.raises(TemporaryFailure, match="keeps writing"):
        erase_records(store, store.counts, records_per_second=1_000, clock=time.clock, sleep=time.sleep)


def test_no_other_set_can_have_the_first_sets_spoken_name() -> None:
    assert [spoken(name) for name in ("", "b1")] == ["first", "b1"]
    assert [typed_name(text) for text in ("first", "b1")] == ["", "b1"]
    # As from a variable that is not set.
    with pytest.raises(Misconfigured):
        typed_name("")


def test_a_register_that_keeps_changing_is_given_up() -> None:
    class Restless(MemoryStore):
        """Something else writes the record after every read of it."""

        def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
            found = super().read_versioned(keys)
            self.write(dict.fromkeys(keys, Register().encode(f"change {found[0].version}")), ttl_s=0)
            return found

    with pytest.raises(StoreConflict, match="20 times in a row"):
        ProfileSets(StoredRegister(Restless())).create("b1", now_ms=1)


def test_sets_in_memory_are_the_same_whenever_they_are_opened() -> None:
    stores = MemorySets()
    stores.open("b1").write({b"card:1": b"value"}, ttl_s=0)
    assert stores.open("b1", readonly=True).read([b"card:1"]) == [b"value"]
    sets = ProfileSets(stores.open_register())
    sets.create("b1", now_ms=1)
    sets.finish_swap(sets.begin_swap(LiveSet("", 0, None), "b1"))
    assert ProfileSets(stores.open_register()).read() == LiveSet("b1", 1, None)
