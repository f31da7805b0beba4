"""The second half of the stream: apply events to profiles, and send the new profiles to the changelog.

frame of repartition-card ─► read profile card:c ─► apply its events ─► write it ─► changelog
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.stores.base import ProfileStore
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.changelog import Changelog
from paywarden.streams.profiles.events import EntityEvents, ProfileUpdates
from paywarden.streams.profiles.repartition import decode_frame
from paywarden.streams.profiles.router import read_for_update


@dataclass
class Arrived:
    """Events by kind of entity, their progress, and the unusable records with the reason.

    `progress`: kind of entity, partition and moments, in reading order.
    """

    events: dict[int, EntityEvents] = field(default_factory=dict)
    progress: list[tuple[str, int, dict[int, int]]] = field(default_factory=list)
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
    ) -> None:
        """`routes`: by kind of entity, its repartition topic on the cluster and the number of its partitions.

        `changelog` gets new states; None for a profile set that is not live.
        """
        self._store, self._engine, self._changelog = store, engine, changelog
        self.entities = engine.plan.entity_names
        self._numbers = {routes[name][0]: number for number, name in enumerate(self.entities)}
        self._partition_counts = [routes[name][1] for name in self.entities]

    def entity_of(self, topic: str) -> str | None:
        """Returns the kind of entity of a repartition topic; None for another topic."""
        number = self._numbers.get(topic)
        return None if number is None else self.entities[number]

    def decode(self, records: Sequence[Record]) -> Arrived:
        """Returns the events and the progress in these frames."""
        arrived = Arrived()
        parts: dict[int, list[EntityEvents]] = {}
        for record in records:
            entity = self._numbers[record.topic]
            try:
                events, progress = decode_frame(record.value, self._partition_counts[entity])
            except InvalidEvent as error:
                arrived.refused.append((record, str(error)))
                continue
            if events.keys:
                parts.setdefault(entity, []).append(events)
            if progress:
                arrived.progress.append((self.entities[entity], record.partition, progress))
        arrived.events = {entity: batch.merged(events) for entity, events in sorted(parts.items())}
        return arrived

    def update(self, entity: int, events: EntityEvents) -> ProfileUpdates:
        """Read the profiles, apply the events and write the new profiles.

        A profile that another worker has changed since the read is not overwritten. Raises StoreUnavailable or
        StoreConflict; the caller may always try again.
        """
        profiles, versions = read_for_update(self._store, events.keys)
        applied = batch.apply(entity, events, profiles, self._engine)
        self._store.write(applied.profiles, ttl_s=self._engine.plan.ttl_s(entity), versions=versions)
        return applied

    def send(self, entity: int, applied: ProfileUpdates, now_ms: int) -> None:
        """Queue the new states for the changelog. Raises BrokerUnavailable."""
        if self._changelog is not None:
            self._changelog.send(self.entities[entity], applied.profiles, now_ms, applied.arrived_ms or None)

    def send_progress(self, moments: Mapping[bytes, int], now_ms: int) -> None:
        """Queue the changelog's progress. Raises BrokerUnavailable."""
        if self._changelog is not None:
            self._changelog.send_progress(moments, now_ms)
