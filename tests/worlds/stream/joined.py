"""Show what a batch of the stream does to the profiles of all kinds of entities at once, for tests without Kafka."""

from __future__ import annotations

from collections.abc import Mapping

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.events import Joined, ProfileUpdates


def apply(joined: Joined, profiles: Mapping[bytes, bytes], engine: FeatureEngine) -> ProfileUpdates:
    """Joins all kinds of entities into one."""
    parts = [batch.apply(entity, events, profiles, engine) for entity, events in enumerate(joined.of_entities())]
    return ProfileUpdates(
        {key: state for part in parts for key, state in part.profiles.items()},
        max(part.arrived_ms for part in parts),
        replayed=sum(part.replayed for part in parts),
        late=sum(part.late for part in parts),
    )


def touched(joined: Joined) -> list[bytes]:
    """Return every profile that the batch touches, each once, by kind of entity."""
    return list(dict.fromkeys(key for events in joined.of_entities() for key in events.keys))
