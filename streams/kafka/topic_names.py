"""The names of Paywarden's own topics: the cursors of outboxes, and the repartition topics."""

from __future__ import annotations

CURSORS_TOPIC = "outbox-cursors"

_PREFIX = "repartition-"


def repartition_topic(entity: str, profile_set: str = "") -> str:
    """Returns the topic that carries the events of a kind of entity, without the deployment's prefix.

    Example: `repartition-card` for the first profile set, `repartition-card.b2` for the set `b2`. Each set has its
    own topics, because two sets may have read the same source up to different offsets.
    """
    return f"{_PREFIX}{entity}.{profile_set}" if profile_set else _PREFIX + entity


def missing_topic(full_name: str) -> str:
    """Returns the message for a missing topic. The command that makes it differs for the topics of a profile set."""
    _, found, of_set = full_name.rpartition(_PREFIX)
    option = " --live-set" if found and "." in of_set else ""
    return f"topic {full_name} does not exist: run `paywarden topics create{option}`"
