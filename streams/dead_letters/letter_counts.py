"""Metrics of the cluster's dead letters: their topics, and the fields that were wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from paywarden.schemas.avro import TOPICS, Schema, topic_schema

# The labels for a letter from another topic than ours, and for a reason that names no field.
OTHER_TOPIC = "other"
WHOLE_RECORD = "record"


class DeadLetterCounts:
    """Counts letters by their original topic and the field at fault. The labels come from our schemas.

    A process counts the letters it has read since its start. The workers share the partitions of the topic, so sum the
    counts over all workers.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        topic_prefix: str,
        schema_of: Callable[[str], Schema] = topic_schema,
    ) -> None:
        """`schema_of` returns the current schema of a topic: that of payments may have declared fields."""
        letters = Counter(
            "paywarden_dead_letters",
            "Records that could not be used, by their topic and by the field that was wrong.",
            ["topic", "field"],
            registry=registry,
        )
        self._undecodable = Counter(
            "paywarden_dead_letters_undecodable",
            "Records on the topic dead-letters that are no dead letters.",
            registry=registry,
        )
        self._newest = Gauge(
            "paywarden_dead_letter_newest_timestamp_seconds",
            "When the newest dead letter seen was written, Unix time; 0 before the first.",
            registry=registry,
        )
        self._topics = {topic_prefix + name: name for name in TOPICS}
        # All possible labels exist from the start, so an alert on a rate sees the first letter too.
        self._letters = {
            (topic, field): letters.labels(topic, field)
            for topic in (*TOPICS, OTHER_TOPIC)
            for field in (WHOLE_RECORD, *_fields(topic, schema_of))
        }
        self._newest_ms = 0

    def count(self, letter: Mapping[str, Any], now_ms: int) -> None:
        """Count a decoded dead letter."""
        topic = self._topics.get(letter["topic"], OTHER_TOPIC)
        field = letter["reason"].partition(": ")[0]
        self._letters.get((topic, field), self._letters[topic, WHOLE_RECORD]).inc()
        # A writer's clock that is ahead must not hide the letters after it.
        self._newest_ms = max(self._newest_ms, min(letter["failed_time_ms"], now_ms))
        self._newest.set(self._newest_ms / 1000)

    def count_undecodable(self) -> None:
        """Count a record that is no dead letter."""
        self._undecodable.inc()


def _fields(topic: str, schema_of: Callable[[str], Schema]) -> list[str]:
    return [field["name"] for field in schema_of(topic)["fields"]] if topic in TOPICS else []
