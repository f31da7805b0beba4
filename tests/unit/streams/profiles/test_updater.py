from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from paywarden.features import kernel
from paywarden.features.kernel.layout import TAG_MIN
from paywarden.features.profiles.payment_tags import MARK_DTYPE, PaymentTags
from paywarden.features.stores.base import StoreConflict, TtlS, entity_of
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.events import KIND, OFFSET, SOURCE, WEIGHT, EntityEvents, join
from paywarden.streams.profiles.repartition import encode_frame
from paywarden.streams.profiles.router import Decoded
from paywarden.streams.profiles.updater import Updater
from tests.unit.streams.profiles.test_router import FakeSender, UnwellStore, decoded
from tests.worlds.small import small_world
from tests.worlds.stream.packed import sources_of

ROUTES = {name: (f"repartition-{name}", 1) for name in small_world.engine().plan.entity_names}


def updater(store: MemoryStore) -> Updater:
    return Updater(store=store, engine=small_world.engine(), routes=ROUTES, changelog=None)


def card_events(first_offset: int = 0) -> EntityEvents:
    built, events = decoded(MemoryStore(), FakeSender(), first_offset)
    return built.keep(events).of_entities()[0]


def frame(events: EntityEvents, offset: int = 0, topic: str = "repartition-card") -> Record:
    return Record(topic, 0, offset, None, encode_frame(events, 1), 0, ())


def test_frames_decode_to_events_in_order() -> None:
    first, second = card_events(), card_events(5)
    nothing = EntityEvents([], first.rows[:0])
    arrived = updater(MemoryStore()).decode([frame(first), frame(nothing, 1), frame(second, 2)])
    assert arrived.events[0].keys == first.keys + second.keys
    assert arrived.events[0].rows[:, OFFSET].tolist() == list(range(10))


def test_a_value_that_is_no_frame_is_refused_and_others_go_on() -> None:
    damaged = Record("repartition-card", 0, 0, None, b"x", 0, ())
    arrived = updater(MemoryStore()).decode([damaged, frame(card_events(), 1)])
    assert [record for record, _ in arrived.refused] == [damaged]
    assert len(arrived.events[0].keys) == 5


def test_a_profile_that_another_owner_wrote_is_kept_and_updated() -> None:
    events = card_events()
    theirs = MemoryStore()
    rows = events.rows.copy()
    rows[:, SOURCE] = 2
    rows[:, OFFSET] += 100
    updater(theirs).update({0: EntityEvents(events.keys, rows)})
    written = dict(theirs.scan("card"))
    store = UnwellStore(lambda write, _: write(written, ttl_s=0))
    built = updater(store)
    with pytest.raises(StoreConflict):
        built.update({0: events})
    built.update({0: events})
    for _, state in store.scan("card"):
        assert sources_of(state).keys() == {0, 2}


def test_a_repeated_write_after_a_lost_answer_counts_once() -> None:
    def lost(write: Any, values: Any) -> None:
        write(values, ttl_s=0)
        raise StoreUnavailable("no answer")

    events, once = card_events(), MemoryStore()
    updater(once).update({0: events})
    store = UnwellStore(lost)
    built = updater(store)
    with pytest.raises(StoreUnavailable):
        built.update({0: events})
    again = built.update({0: events})[0]
    assert again.replayed == 5
    assert dict(store.scan("card")) == dict(once.scan("card")) == again.profiles


def test_payments_are_named_unless_a_change_may_hold_others() -> None:
    events, store = card_events(), MemoryStore()
    rows = events.rows.copy()
    rows[:, WEIGHT] = range(100, 105)
    tagged = EntityEvents(events.keys, rows)
    naming = Updater(store=store, engine=small_world.engine(), routes=ROUTES, changelog=None, names_payments=True)
    named = naming.update({0: tagged})[0].named
    found = {
        int(mark["tag"]): (key, int(mark["offset"]), int(mark["source"]))
        for key, payments in named.items()
        for mark in np.frombuffer(payments, dtype=MARK_DTYPE)
    }
    assert found == {
        tag: (key, offset, source)
        for tag, key, offset, source in zip(
            range(100, 105), events.keys, rows[:, OFFSET].tolist(), rows[:, SOURCE].tolist(), strict=True
        )
    }
    # The same events again: the first write may have had others behind it that nobody named.
    assert naming.update({0: tagged})[0].named == {}
    # An earlier worker has sent payments without tags.
    fresh = Updater(
        store=MemoryStore(), engine=small_world.engine(), routes=ROUTES, changelog=None, names_payments=True
    )
    rows[0, WEIGHT] = 1
    assert events.keys[0] not in fresh.update({0: EntityEvents(events.keys, rows)})[0].named
    # A label adds no payment.
    rows[:, KIND], rows[:, OFFSET], rows[:, WEIGHT] = kernel.LABEL, rows[:, OFFSET] + 50, 1
    assert set(fresh.update({0: EntityEvents(events.keys, rows)})[0].named.values()) == {b""}
    assert updater(MemoryStore()).update({0: events})[0].named == {}


def test_a_routed_payment_carries_its_tag_only_where_it_is_asked_for() -> None:
    plan = small_world.engine().plan
    tags = PaymentTags(plan.key)
    built, events = decoded(MemoryStore(), FakeSender())
    assert set(built.keep(events).of_entities()[0].rows[:, WEIGHT].tolist()) == {1}
    asked = events_of(events, tags)
    wanted = [tags.of(event.payment_id.encode()) for event in events.payments]
    assert asked == wanted
    assert min(wanted) >= TAG_MIN


def events_of(events: Decoded, tags: PaymentTags) -> list[int]:
    joined = join(events.payments, [], {}, len(ROUTES), tag_of=tags.of)
    weights: list[int] = joined.of_entities()[0].rows[:, WEIGHT].tolist()
    return weights


class CountingStore(MemoryStore):
    """Counts writes, and notes the kinds of entities in each."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[set[str]] = []

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        self.kinds.append({entity_of(key) for key in values})
        super().write(values, ttl_s=ttl_s, versions=versions)


def events_of_all_kinds() -> dict[int, EntityEvents]:
    built, events = decoded(MemoryStore(), FakeSender())
    return dict(enumerate(built.keep(events).of_entities()))


def test_the_profiles_of_a_batch_are_one_write_whatever_their_kinds() -> None:
    store = CountingStore()
    updates = updater(store).update(events_of_all_kinds())
    assert store.kinds == [{"card", "merchant", "device"}]
    # The same bytes as kind by kind.
    for entity, events in events_of_all_kinds().items():
        alone = MemoryStore()
        assert updater(alone).update({entity: events})[entity].profiles == updates[entity].profiles


def test_profiles_live_as_long_as_their_kind_says() -> None:
    now = [1_700_000_000.0]
    store = MemoryStore(clock=lambda: now[0])
    plan = small_world.engine().plan
    updates = updater(store).update(events_of_all_kinds())
    ttls_s = {entity: plan.ttl_s(entity) for entity in updates}
    assert len(set(ttls_s.values())) > 1
    for ttl_s in sorted(set(ttls_s.values())):
        now[0] = 1_700_000_000.0 + ttl_s + 1
        for entity, applied in updates.items():
            live = [value is not None for value in store.read(list(applied.profiles))]
            assert set(live) == {ttls_s[entity] > ttl_s}


def test_a_batch_that_was_written_for_one_kind_alone_counts_once_everywhere() -> None:
    def partly(write: Any, values: Any) -> None:
        write({key: value for key, value in values.items() if entity_of(key) == "merchant"}, ttl_s=0)
        raise StoreUnavailable("the store took a part")

    once, store, arrived = MemoryStore(), UnwellStore(partly), events_of_all_kinds()
    updater(once).update(arrived)
    built = updater(store)
    with pytest.raises(StoreUnavailable):
        built.update(arrived)
    again = built.update(arrived)
    names = small_world.engine().plan.entity_names
    for entity, applied in again.items():
        assert applied.replayed == (len(arrived[entity].keys) if names[entity] == "merchant" else 0)
        assert dict(store.scan(names[entity])) == dict(once.scan(names[entity])) == applied.profiles
