"""See to the profiles that were set aside because they cannot be read (streams/profiles/set_aside_profile.py).

1. find      profiles that are set aside, by a scan of the store
2. replace   bytes that this release cannot read by the changelog's last state of the profile, if it can be read
3. remind    send the last waiting event once more to the profile's owner

    store       {damaged bytes, events 7, 9}          topic profiles     card:c, the state before event 7
    replace     {the state before 7, events 7, 9}
    remind      event 9 on repartition-card           the owner applies 7 and 9; this copy of 9 is a replay

The owner alone makes a profile of it, so nothing has two writers. The changelog's state contains every event that was
committed before the profile became unreadable: the stream commits behind the changelog.

A fault: the owner adds an event meanwhile. The write is a compare-and-set, and is tried again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.features.stores.base import ProfileStore, in_batches, update_records
from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import make_consumer, records_to_end
from paywarden.streams.profiles.events import EntityEvents, apply
from paywarden.streams.profiles.repartition import encode_frame, partition_of
from paywarden.streams.profiles.set_aside_profile import SetAsideEvents, decode, is_set_aside

_FLUSH_TIMEOUT_S = 60.0
_BATCH = 500

LastStates = Callable[[frozenset[bytes]], Mapping[bytes, bytes]]
"""Returns the changelog's last state of each of these keys that has one."""

Remind = Callable[[int, bytes, SetAsideEvents], object]
"""Sends the last waiting event of a profile to its owner, by the number of its kind of entity."""


@dataclass
class FoundAside:
    """Counts of the profiles that were set aside and their waiting events, by kind of entity.

    `readable`: profiles that this release can read. `replaced`: profiles whose bytes the changelog's state replaced.
    `reminded`: profiles whose owners will read them. `left`: profiles for which nothing readable was found.
    """

    profiles: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    readable: int = 0
    replaced: int = 0
    reminded: int = 0
    left: int = 0


def find(store: ProfileStore, engine: FeatureEngine) -> FoundAside:
    """Returns the profiles that are set aside. Changes nothing. Raises StoreUnavailable."""
    found = FoundAside()
    for entity, key, record in _set_aside(store, engine, found):
        found.readable += _is_readable(engine, entity, key, record)
    found.left = sum(found.profiles.values()) - found.readable
    return found


def retry(store: ProfileStore, engine: FeatureEngine, last_states: LastStates, remind: Remind) -> FoundAside:
    """Do steps 1 to 3. The same call may be repeated. Raises StoreUnavailable, StoreConflict, BrokerUnavailable."""
    found = FoundAside()
    for batch in in_batches(_set_aside(store, engine, found), _BATCH):
        unreadable = {
            key: (entity, record) for entity, key, record in batch if not _is_readable(engine, entity, key, record)
        }
        found.readable += len(batch) - len(unreadable)
        states = last_states(frozenset(unreadable)) if unreadable else {}
        good = {
            key: state
            for key, state in states.items()
            if _is_readable(engine, unreadable[key][0], key, SetAsideEvents(state, unreadable[key][1].rows))
        }
        for entity in sorted({entity for entity, _ in unreadable.values()}):
            keys = [key for key in good if unreadable[key][0] == entity]
            update_records(store, keys, _replacing(good), ttl_s=engine.plan.ttl_s(entity))
        found.replaced += len(good)
        found.left += len(unreadable) - len(good)
        for entity, key, record in batch:
            if (key not in unreadable or key in good) and len(record.rows):
                remind(entity, key, record)
                found.reminded += 1
    return found


def _set_aside(
    store: ProfileStore, engine: FeatureEngine, found: FoundAside
) -> Iterator[tuple[int, bytes, SetAsideEvents]]:
    for entity, name in enumerate(engine.plan.entity_names):
        for key, state in store.scan(name):
            if not is_set_aside(state):
                continue
            found.profiles[name] += 1
            try:
                record = decode(state)
            except InvalidEvent:
                # The owner wraps it with the next event.
                found.left += 1
                continue
            found.events[name] += len(record.rows)
            yield entity, key, record


def _replacing(good: Mapping[bytes, bytes]) -> Callable[[bytes, bytes | None], bytes | None]:
    def replaced(key: bytes, stored: bytes | None) -> bytes | None:
        # The owner may have made a profile of it meanwhile.
        return SetAsideEvents(good[key], decode(stored).rows).encode() if stored and is_set_aside(stored) else None

    return replaced


def _is_readable(engine: FeatureEngine, entity: int, key: bytes, record: SetAsideEvents) -> bool:
    """Returns whether this release can apply the waiting events to the profile's bytes."""
    events = EntityEvents([key] * len(record.rows), record.rows)
    try:
        apply(entity, events, {key: record.profile}, engine)
    except UnreadableProfile:
        return False
    return not is_set_aside(record.profile)


class KafkaParts:
    """`last_states` and `remind` on the cluster. `flush` before the end."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds, routes: Sequence[tuple[str, int]]) -> None:
        """`routes`: the repartition topic and its partitions for each kind of entity.

        Raises BrokerUnavailable, or Misconfigured if topic profiles does not exist.
        """
        self._kafka, self._routes = kafka, routes
        self._decoder = Decoder("profiles", ids)
        self._sender = Sender(kafka, linger_ms=5)
        self._partitions = partitions_of(kafka, "profiles")

    def last_states(self, keys: frozenset[bytes]) -> Mapping[bytes, bytes]:
        """See LastStates. Reads the whole topic. Raises BrokerUnavailable."""
        states: dict[bytes, bytes] = {}
        with closing(make_consumer(self._kafka, group_id="paywarden-set-aside")) as consumer:
            for records in records_to_end(consumer, self._kafka.topic("profiles"), self._partitions):
                for record in records:
                    if record.key not in keys:
                        continue
                    assert record.key is not None
                    try:
                        states[record.key] = self._decoder.decode(record.value or b"")["state"]
                    except InvalidEvent:
                        # A tombstone, or a record that no one can read: no state before it may come back.
                        states.pop(record.key, None)
        return states

    def remind(self, entity: int, key: bytes, record: SetAsideEvents) -> None:
        """See Remind. Raises BrokerUnavailable."""
        topic, partition_count = self._routes[entity]
        frame = encode_frame(EntityEvents([key], record.rows[-1:]), partition_count)
        self._sender.send(topic, frame, key=None, partition=partition_of(key, partition_count))

    def flush(self) -> None:
        """Return when the broker has everything. Raises BrokerUnavailable."""
        self._sender.flush(_FLUSH_TIMEOUT_S)
