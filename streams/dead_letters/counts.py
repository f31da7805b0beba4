"""What the dead letters of the whole cluster are about, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from paywarden.schemas.avro import TOPICS, topic_schema

# Where a letter is from a topic that is none of ours, and where its reason names no field.
OTHER_TOPIC = "other"
WHOLE_RECORD = "record"


class DeadLetterCounts:
    """Counts letters by the topic they come from and the field at fault; labels are those of our schemas.

    Counts are of what this process has read since it started: sum them over the workers, which share the
    partitions of the topic.
    """

    def __init__(self, registry: CollectorRegistry, topic_prefix: str) -> None:
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
        # Every label there can be is there from the start: an alert on a rate sees the first letter too.
        self._letters = {
            (topic, field): letters.labels(topic, field)
            for topic in (*TOPICS, OTHER_TOPIC)
            for field in (WHOLE_RECORD, *_fields(topic))
        }
        self._newest_ms = 0

    def count(self, letter: Mapping[str, Any], now_ms: int) -> None:
        """One dead letter, decoded."""
        topic = self._topics.get(letter["topic"], OTHER_TOPIC)
        field = letter["reason"].partition(": ")[0]
        self._letters.get((topic, field), self._letters[topic, WHOLE_RECORD]).inc()
        # A writer's clock that is ahead must not hide what comes after.
        self._newest_ms = max(self._newest_ms, min(letter["failed_time_ms"], now_ms))
        self._newest.set(self._newest_ms / 1000)

    def count_undecodable(self) -> None:
        """One record that is no dead letter."""
        self._undecodable.inc()


def _fields(topic: str) -> list[str]:
    return [field["name"] for field in topic_schema(topic)["fields"]] if topic in TOPICS else []
