"""Profiles that cannot be read are set aside with their events, and others go on."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.stores.base import check_record
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.streams.profiles import set_aside_profile
from paywarden.streams.profiles.events import OFFSET, ROW_WIDTH, SOURCE, EntityEvents, ProfileUpdates
from paywarden.streams.profiles.guards.dead_letter_budget import COUNT_MIN, RefusalLimit
from paywarden.streams.profiles.repartition import decode_frame
from paywarden.streams.profiles.set_aside_profile import EVENTS_MAX, SetAsideEvents, is_set_aside
from paywarden.streams.profiles.updater import Updater
from tests.unit.streams.profiles.test_updater import ROUTES, card_events
from tests.worlds.small import small_world

# No release wrote a layout of this version.
FUTURE = b"\x63 of a later release"


def updater(store: MemoryStore, limit: RefusalLimit | None = None) -> Updater:
    return Updater(store=store, engine=small_world.engine(), routes=ROUTES, changelog=None, limit=limit)


def parts(events: EntityEvents, *counts: int) -> list[EntityEvents]:
    """Return the events in several batches."""
    ends = np.cumsum(counts).tolist()
    return [
        EntityEvents(events.keys[end - count : end], events.rows[end - count : end])
        for count, end in zip(counts, ends, strict=True)
    ]


def one_card(count: int) -> EntityEvents:
    """Return events of one card, at rising offsets."""
    events = card_events()
    rows = np.repeat(events.rows[:1], count, axis=0)
    rows[:, OFFSET] = np.arange(count)
    return EntityEvents([events.keys[0]] * count, rows)


def update(store: MemoryStore, events: EntityEvents) -> ProfileUpdates:
    return updater(store).update({0: events})[0]


def stored(store: MemoryStore, key: bytes) -> bytes:
    (state,) = store.read([key])
    assert state is not None
    return state


def kept(store: MemoryStore, key: bytes) -> SetAsideEvents:
    return set_aside_profile.decode(stored(store, key))


@pytest.mark.parametrize("damaged", [FUTURE, b"\x04", b"\xff", b"\xff\x01\x00\x00\x00\x00junk"])
def test_one_unreadable_profile_leaves_the_others_of_its_batch_alone(damaged: bytes) -> None:
    events, whole = card_events(), MemoryStore()
    update(whole, events)
    bad = events.keys[2]
    store = MemoryStore()
    store.write({bad: damaged}, ttl_s=0)
    applied = update(store, events)
    others = {key: state for key, state in whole.scan("card") if key != bad}
    assert applied.profiles == others
    assert {key: state for key, state in store.scan("card") if key != bad} == others
    # Its bytes and its events are kept, and nothing of it goes to the changelog.
    assert kept(store, bad).profile == damaged
    assert len(kept(store, bad).rows) == applied.waiting == events.keys.count(bad)
    assert (applied.newly_set_aside, applied.restored, applied.no_room) == (0 if damaged[:1] == b"\xff" else 1, 0, None)


def test_events_wait_in_order_and_are_applied_once_the_profile_is_readable() -> None:
    first, second, third, fourth = parts(one_card(9), 3, 2, 2, 2)
    whole, store, key = MemoryStore(), MemoryStore(), first.keys[0]
    for batch in (first, second, third, fourth):
        update(whole, batch)
    update(store, first)
    good = stored(store, key)
    store.write({key: good[:20] + bytes(byte ^ 255 for byte in good[20:])}, ttl_s=0)
    assert update(store, second).newly_set_aside == 1
    # The batch comes again after a crash, then the next one.
    assert update(store, second).newly_set_aside == 0
    assert update(store, third).waiting == 2
    assert kept(store, key).rows[:, OFFSET].tolist() == [3, 4, 5, 6]
    store.write({key: SetAsideEvents(good, kept(store, key).rows).encode()}, ttl_s=0)
    applied = update(store, fourth)
    assert (applied.restored, applied.set_aside) == (1, {})
    assert applied.profiles == dict(store.scan("card")) == dict(whole.scan("card"))


def test_a_release_that_can_read_the_bytes_heals_without_help() -> None:
    first, second = parts(one_card(4), 2, 2)
    whole, store, key = MemoryStore(), MemoryStore(), first.keys[0]
    update(whole, first)
    # A release that could not read it has set it aside.
    store.write({key: set_aside_profile.set_aside(stored(whole, key)).encode()}, ttl_s=0)
    update(whole, second)
    assert update(store, second).restored == 1
    assert dict(store.scan("card")) == dict(whole.scan("card"))


def test_events_beyond_the_room_become_dead_letters_in_their_order() -> None:
    first, second = parts(one_card(EVENTS_MAX + 7), EVENTS_MAX - 1, 8)
    store, key = MemoryStore(), first.keys[0]
    store.write({key: FUTURE}, ttl_s=0)
    assert update(store, first).no_room is None
    applied = update(store, second)
    assert len(kept(store, key).rows) == EVENTS_MAX
    check_record(key, stored(store, key))
    assert applied.no_room is not None
    (record,) = updater(store).refused(0, applied.no_room)
    left = decode_frame(record.value, 1)
    assert (record.topic, left.keys) == ("repartition-card", [key] * 7)
    assert left.rows[:, OFFSET].tolist() == list(range(EVENTS_MAX, EVENTS_MAX + 7))


def test_a_profile_too_large_to_keep_with_events_stays_as_it_is() -> None:
    events = card_events()
    store, bad = MemoryStore(), events.keys[0]
    large = b"\x63" * 1_000_000
    store.write({bad: large}, ttl_s=0)
    applied = update(store, events)
    assert stored(store, bad) == large
    assert applied.no_room is not None
    assert set(applied.no_room.keys) == {bad}
    assert dict(store.scan("card")).keys() == set(events.keys)


def test_a_worker_stops_before_it_sets_aside_too_large_a_share() -> None:
    # A release that is older than the store's cannot read any profile: it must not touch them all.
    events = card_events()
    keys = [b"card:%d" % number for number in range(COUNT_MIN)]
    rows = np.repeat(events.rows[:1], COUNT_MIN, axis=0)
    rows[:, OFFSET] = np.arange(COUNT_MIN)
    store = MemoryStore()
    store.write(dict.fromkeys(keys, FUTURE), ttl_s=0)
    with pytest.raises(Misconfigured, match="50 of the last 50 profiles cannot be used"):
        updater(store, RefusalLimit(1000, 0.2, "profiles")).update({0: EntityEvents(keys, rows)})
    assert set(dict(store.scan("card")).values()) == {FUTURE}


def test_a_key_that_no_store_has_is_refused_and_the_others_go_on() -> None:
    events = card_events()
    store = MemoryStore()
    applied = update(store, EntityEvents([b"no colon", *events.keys[1:]], events.rows))
    assert applied.no_room is not None
    assert applied.no_room.keys == [b"no colon"]
    assert dict(store.scan("card")).keys() == set(events.keys[1:])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_that_was_set_aside_or_refused(data: bytes) -> None:
    with suppress(InvalidEvent):
        set_aside_profile.decode(b"\xff\x01" + data)


def test_bytes_that_unpack_to_more_than_allowed_are_refused() -> None:
    rows = np.zeros((EVENTS_MAX + 1, ROW_WIDTH), dtype=np.int64)
    with pytest.raises(InvalidEvent):
        set_aside_profile.decode(SetAsideEvents(b"p", rows).encode())


@given(st.binary(max_size=100), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**40)), max_size=20))
def test_a_record_that_is_set_aside_comes_back_whole(profile: bytes, places: list[tuple[int, int]]) -> None:
    rows = np.zeros((len(places), ROW_WIDTH), dtype=np.int64)
    rows[:, [SOURCE, OFFSET]] = np.array(places, dtype=np.int64).reshape(-1, 2)
    record = SetAsideEvents(profile, rows).encode()
    assert is_set_aside(record)
    again = set_aside_profile.decode(record)
    assert (again.profile, again.rows.tolist()) == (profile, rows.tolist())
