"""The second half of the stream: apply events to profiles, and send the new profiles to the changelog.

frame of repartition-card ─► read profile card:c ─► apply its events ─► write it ─► changelog

A profile that cannot be read is set aside with its events (streams/profiles/set_aside_profile.py). The others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.features.stores.base import ProfileStore, split_key
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.changelog import Changelog
from paywarden.streams.profiles.events import EntityEvents, ProfileUpdates
from paywarden.streams.profiles.guards.dead_letter_budget import RefusalLimit
from paywarden.streams.profiles.progress.watermarks import Claim
from paywarden.streams.profiles.repartition import decode_frame, frames_of
from paywarden.streams.profiles.router import read_for_update
from paywarden.streams.profiles.set_aside_profile import SetAsideEvents, is_set_aside, rows_of, set_aside
from paywarden.streams.profiles.set_aside_profile import decode as decode_set_aside

_log = logging.getLogger(__name__)


@dataclass
class Arrived:
    """Events by kind of entity, and the unusable records with the reason."""

    events: dict[int, EntityEvents] = field(default_factory=dict)
    refused: list[tuple[Record, str]] = field(default_factory=list)


class Updater:
    """Updates the profiles of the keys whose events it reads. The caller flushes the sender before it commits."""

    def __init__(
        self,
        *,
        store: ProfileStore,
        engine: FeatureEngine,
        routes: Mapping[str, tuple[str, int]],
        changelog: Changelog | None,
        limit: RefusalLimit | None = None,
        names_payments: bool = False,
    ) -> None:
        """`routes`: by kind of entity, its repartition topic on the cluster and the number of its partitions.

        `changelog` gets new states; None for a profile set that is not live. `limit` bounds the share of profiles that
        are set aside. `names_payments`: whether the changelog says which payments a change adds, for overlays.
        """
        self._limit, self._names_payments = limit, names_payments
        self._noted: Mapping[int, EntityEvents] | None = None
        self._store, self._engine, self._changelog = store, engine, changelog
        self.entities = engine.plan.entity_names
        self._numbers = {routes[name][0]: number for number, name in enumerate(self.entities)}
        self._partition_counts = [routes[name][1] for name in self.entities]

    def decode(self, records: Sequence[Record]) -> Arrived:
        """Returns the events in these frames."""
        arrived = Arrived()
        parts: dict[int, list[EntityEvents]] = {}
        for record in records:
            entity = self._numbers[record.topic]
            try:
                events = decode_frame(record.value, self._partition_counts[entity])
            except InvalidEvent as error:
                arrived.refused.append((record, str(error)))
                continue
            if events.keys:
                parts.setdefault(entity, []).append(events)
        arrived.events = {entity: batch.merged(events) for entity, events in sorted(parts.items())}
        return arrived

    def update(self, arrived: Mapping[int, EntityEvents]) -> dict[int, ProfileUpdates]:
        """Read the profiles, apply the events and write the new profiles, of all kinds of entities together.

        One write is one commit of an embedded store, whatever the kinds: a commit has a price of its own.

        A profile that another worker has changed since the read is not overwritten. Raises StoreUnavailable or
        StoreConflict; the caller may always try again. Raises Misconfigured, before it writes, if too large a share of
        profiles cannot be read.
        """
        good, no_keys = dict(arrived), dict[int, EntityEvents]()
        try:
            profiles, versions = read_for_update(self._store, _keys_of(good))
        except InvalidEvent:
            # Only a damaged record of a payment gives a key that no store has.
            for entity, events in arrived.items():
                good[entity], no_keys[entity] = _with_keys(events)
            profiles, versions = read_for_update(self._store, _keys_of(good))
        updates = {entity: self._apply(entity, events, profiles) for entity, events in good.items()}
        if self._limit is not None and self._noted is not arrived:
            # Once for each batch, however often its write is tried.
            for applied in updates.values():
                self._limit.note(len(applied.profiles) + len(applied.set_aside), applied.newly_set_aside)
            self._noted = arrived
        updates = self._written(good, updates, versions)
        for entity, events in no_keys.items():
            if events.keys:
                no_room = updates[entity].no_room
                parts = [events] if no_room is None else [no_room, events]
                updates[entity] = replace(updates[entity], no_room=batch.merged(parts))
        return updates

    def _apply(self, entity: int, events: EntityEvents, profiles: Mapping[bytes, bytes]) -> ProfileUpdates:
        try:
            return batch.apply(entity, events, profiles, self._engine, names_payments=self._names_payments)
        except UnreadableProfile as error:
            own = {key: profiles[key] for key in events.keys if key in profiles}
            applied = self._apply_to_readable(entity, events, own)
            if applied.newly_set_aside:
                name = self.entities[entity]
                _log.error("%d %s profiles are set aside with their events: %s", applied.newly_set_aside, name, error)
            return applied

    def _written(
        self, arrived: Mapping[int, EntityEvents], updates: dict[int, ProfileUpdates], versions: Mapping[bytes, int]
    ) -> dict[int, ProfileUpdates]:
        try:
            self._write(updates, versions)
        except InvalidEvent:
            if not any(applied.set_aside for applied in updates.values()):
                raise
            # A profile with its waiting events is too large for this store. It stays as it is.
            for entity, applied in updates.items():
                try:
                    self._write({entity: applied}, versions)
                except InvalidEvent:
                    if not applied.set_aside:
                        raise
                    no_room = _only(arrived[entity], applied.set_aside)
                    updates[entity] = replace(applied, waiting=0, set_aside={}, no_room=no_room)
                    self._write({entity: updates[entity]}, versions)
        return updates

    def _write(self, updates: Mapping[int, ProfileUpdates], versions: Mapping[bytes, int]) -> None:
        written: dict[bytes, bytes] = {}
        ttl_s: dict[bytes, int] = {}
        for entity, applied in updates.items():
            for states in (applied.profiles, applied.set_aside):
                written.update(states)
                ttl_s.update(dict.fromkeys(states, self._engine.plan.ttl_s(entity)))
        self._store.write(written, ttl_s=ttl_s, versions=versions)

    def _apply_to_readable(self, entity: int, events: EntityEvents, profiles: Mapping[bytes, bytes]) -> ProfileUpdates:
        """Apply the events of profiles that can be read. The others are set aside with theirs."""
        waiting = {key for key, state in profiles.items() if is_set_aside(state)}
        rows = rows_of(events.keys, events.rows)
        try:
            done = batch.apply(entity, _only(events, rows.keys() - waiting), profiles, self._engine)
        except UnreadableProfile:
            waiting |= {key for key in rows if self._applied(entity, key, rows[key], profiles.get(key)) is None}
            done = batch.apply(entity, _only(events, rows.keys() - waiting), profiles, self._engine)
        newly = sum(not is_set_aside(profiles[key]) for key in waiting)
        done = replace(done, newly_set_aside=newly)
        no_room = []
        for key in waiting:
            kept, overflow = _opened(profiles[key]).with_events(rows[key])
            readable = self._applied(entity, key, batch.joined_rows([kept.rows, overflow]), kept.profile)
            if readable is not None:
                done.profiles.update(readable.profiles)
                done = replace(done, restored=done.restored + 1, late=done.late + readable.late)
                continue
            done.set_aside[key] = kept.encode()
            done = replace(done, waiting=done.waiting + len(rows[key]) - len(overflow))
            if len(overflow):
                no_room.append(EntityEvents([key] * len(overflow), overflow))
        return replace(done, no_room=batch.merged(no_room) if no_room else None)

    def _applied(
        self, entity: int, key: bytes, rows: NDArray[np.int64], profile: bytes | None
    ) -> ProfileUpdates | None:
        """Returns one profile after its events; None if it cannot be read."""
        profiles = {} if profile is None else {key: profile}
        try:
            return batch.apply(entity, EntityEvents([key] * len(rows), rows), profiles, self._engine)
        except UnreadableProfile:
            return None

    def refused(self, entity: int, events: EntityEvents) -> Iterator[Record]:
        """Yields events that cannot wait in the store as records of their repartition topic, for the dead letters."""
        topic = next(topic for topic, number in self._numbers.items() if number == entity)
        for partition, frame in frames_of(events, self._partition_counts[entity]):
            yield Record(topic, partition, -1, None, frame, 0, ())

    def send(self, entity: int, applied: ProfileUpdates, now_ms: int) -> None:
        """Queue the new states for the changelog. Raises BrokerUnavailable."""
        if self._changelog is not None:
            arrived_ms = applied.arrived_ms or None
            self._changelog.send(self.entities[entity], applied.profiles, now_ms, arrived_ms, named=applied.named)

    def send_claim(self, claim: Claim, now_ms: int) -> None:
        """Queue a claim for the changelog. Raises BrokerUnavailable."""
        if self._changelog is not None:
            self._changelog.send_claim(claim, now_ms)


def _keys_of(arrived: Mapping[int, EntityEvents]) -> list[bytes]:
    return [key for events in arrived.values() for key in events.keys]


def _only(events: EntityEvents, keys: Container[bytes]) -> EntityEvents:
    chosen = [number for number, key in enumerate(events.keys) if key in keys]
    return EntityEvents([events.keys[number] for number in chosen], events.rows[chosen])


def _with_keys(events: EntityEvents) -> tuple[EntityEvents, EntityEvents]:
    """Returns the events whose keys a store can have, and the others."""
    good = set()
    for key in events.keys:
        with suppress(InvalidEvent):
            split_key(key)
            good.add(key)
    return _only(events, good), _only(events, set(events.keys) - good)


def _opened(state: bytes) -> SetAsideEvents:
    """Returns a profile that was set aside before. Other bytes are now."""
    if is_set_aside(state):
        try:
            return decode_set_aside(state)
        except InvalidEvent:
            # This record is damaged itself. It is kept whole inside another one.
            pass
    return set_aside(state)
