"""Names of topics that follow from something else: the outboxes' cursors, and the repartition topics."""

from __future__ import annotations

CURSORS_TOPIC = "outbox-cursors"

_PREFIX = "repartition-"


def repartition_topic(entity: str, profile_set: str = "") -> str:
    """The name, without a deployment's prefix, of the topic that the events of a kind of entity go through.

    Each profile set has its own: a frame for one says nothing of what another has seen of the same source.
    """
    return f"{_PREFIX}{entity}.{profile_set}" if profile_set else _PREFIX + entity
