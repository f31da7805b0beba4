"""The command that sees to profiles that were set aside, with a store in memory and the owner beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import pytest

from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import make_consumer, records_to_end
from paywarden.streams.maintenance.set_aside_profiles import KafkaParts, find, retry
from paywarden.streams.profiles.changelog import Changelog
from paywarden.streams.profiles.events import EntityEvents
from paywarden.streams.profiles.repartition import decode_frame
from paywarden.streams.profiles.set_aside_profile import SetAsideEvents, is_set_aside
from tests.patience import PATIENCE_S
from tests.unit.streams.profiles.test_set_aside_profile import FUTURE, one_card, parts, update
from tests.worlds.small import small_world


class Owner:
    """Applies a reminded event as the owner of the profile does."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def remind(self, entity: int, key: bytes, record: SetAsideEvents) -> None:
        assert entity == 0
        update(self._store, EntityEvents([key], record.rows[-1:]))


def nothing(_: frozenset[bytes]) -> Mapping[bytes, bytes]:
    return {}


def damaged_world() -> tuple[MemoryStore, MemoryStore, bytes, bytes]:
    """Return a store whose one profile is set aside, the store without damage, the key, and the changelog's state."""
    first, second = parts(one_card(5), 3, 2)
    whole, store, key = MemoryStore(), MemoryStore(), first.keys[0]
    update(whole, first)
    last = dict(whole.scan("card"))[key]
    update(whole, second)
    store.write({key: FUTURE}, ttl_s=0)
    update(store, second)
    return store, whole, key, last


def test_the_changelogs_state_and_the_waiting_events_are_the_whole_profile() -> None:
    store, whole, key, last = damaged_world()
    done = retry(store, small_world.engine(), lambda keys: {key: last} if key in keys else {}, Owner(store).remind)
    assert (done.profiles["card"], done.events["card"]) == (1, 2)
    assert (done.readable, done.replaced, done.reminded, done.left) == (0, 1, 1, 0)
    assert dict(store.scan("card")) == dict(whole.scan("card"))
    assert find(store, small_world.engine()).profiles == {}


@pytest.mark.parametrize("state", [FUTURE, b"\x04 damaged as well", b"\xff\x01"])
def test_a_profile_without_a_readable_state_stays_as_it_is(state: bytes) -> None:
    store, _, key, _ = damaged_world()
    before = dict(store.scan("card"))
    for states in (nothing, lambda _: {key: state}):
        done = retry(store, small_world.engine(), states, Owner(store).remind)
        assert (done.replaced, done.reminded, done.left) == (0, 0, 1)
    assert dict(store.scan("card")) == before
    found = find(store, small_world.engine())
    assert (found.profiles["card"], found.events["card"], found.left) == (1, 2, 1)


def test_bytes_that_this_release_can_read_need_no_changelog() -> None:
    store, whole, key, last = damaged_world()
    update_of = next(iter(dict(store.scan("card")).values()))
    assert is_set_aside(update_of)
    from paywarden.streams.profiles.set_aside_profile import decode

    store.write({key: SetAsideEvents(last, decode(update_of).rows).encode()}, ttl_s=0)
    assert find(store, small_world.engine()).readable == 1
    done = retry(store, small_world.engine(), nothing, Owner(store).remind)
    assert (done.readable, done.replaced, done.reminded) == (1, 0, 1)
    assert dict(store.scan("card")) == dict(whole.scan("card"))


def test_the_last_states_and_the_reminders_go_over_kafka() -> None:
    store, _, key, last = damaged_world()
    broker = EmbeddedBroker()
    kafka, ids = KafkaSettings(bootstrap=broker.bootstrap), LocalSchemaIds()
    entities = small_world.engine().plan.entity_names
    sender = Sender(kafka, linger_ms=0)
    changelog = Changelog(sender, KafkaClients.of(kafka), ids, entities)
    changelog.send("card", {key: b"older", b"card:other": b"another's"}, 1)
    changelog.send("card", {key: last, b"card:erased": b"state"}, 2)
    changelog.erase([b"card:erased"])
    sender.flush(PATIENCE_S)
    kafka_parts = KafkaParts(kafka, ids, [(f"repartition-{name}", 1) for name in entities])
    assert kafka_parts.last_states(frozenset({key, b"card:erased", b"card:none"})) == {key: last}
    retry(store, small_world.engine(), kafka_parts.last_states, kafka_parts.remind)
    kafka_parts.flush()
    with closing(make_consumer(kafka, group_id="test")) as consumer:
        ((record,),) = records_to_end(consumer, "repartition-card", [0])
    events = decode_frame(record.value, 1)
    applied = update(store, events)
    assert (applied.restored, applied.set_aside) == (1, {})
    broker.close()
