"""Read some decisions of a time and a segment from the topic, as they were when an alert arose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.schemas.errors import BrokerUnavailable, InvalidEvent
from paywarden.streams.kafka.admin import make_admin, partitions_of, watermarks
from paywarden.streams.kafka.client import REACH_TIMEOUT_S, KafkaSettings, reason_of
from paywarden.streams.kafka.reading import make_consumer, records_between
from paywarden.streams.kafka.topic_identity import embedded_cluster

DECISIONS_TOPIC = "decisions"
# Records of each partition: enough for a mean, and some milliseconds to decode.
_RECORDS_MAX = 400


class DecisionSampler:
    """Reads from `decisions`. It joins no group and commits nothing. `close` it."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds) -> None:
        """Raises BrokerUnavailable, or Misconfigured if there is no such topic."""
        self._topic, self._decoder = kafka.topic(DECISIONS_TOPIC), Decoder(DECISIONS_TOPIC, ids)
        self._partitions = partitions_of(kafka, DECISIONS_TOPIC)
        self._consumer: Consumer = make_consumer(kafka, group_id="paywarden-console-samples")
        # The embedded broker does not know which record came when.
        self._knows_times = not embedded_cluster(make_admin(kafka))

    def sample(self, record: Mapping[str, Any], first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        """Returns decisions of an alert's model and segment `between` two times. Raises BrokerUnavailable."""
        return [one for one in self.between(first_ms, last_ms) if is_of(record, one)]

    def between(self, first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        """Returns decisions that came between two times, by Kafka's clock: at most the last 400 of each partition.

        The embedded broker has no clock: there these are the newest decisions made in that time. Raises
        BrokerUnavailable.
        """
        found: list[dict[str, Any]] = []
        for partition in self._partitions:
            offsets = self._between(partition, first_ms, last_ms)
            if not offsets:
                continue
            batches = records_between(self._consumer, self._topic, partition, offsets)
            found += self._decisions(batches)
        return found if self._knows_times else [one for one in found if first_ms <= one["decided_time_ms"] < last_ms]

    def close(self) -> None:
        """Close the client."""
        self._consumer.close()

    def _decisions(self, batches: Iterator[list[Any]]) -> Iterator[dict[str, Any]]:
        for records in batches:
            for record in records:
                try:
                    yield self._decoder.decode(record.value or b"")
                except InvalidEvent:
                    continue

    def _between(self, partition: int, first_ms: int, last_ms: int) -> range:
        low, end = watermarks(self._consumer, self._topic, partition)
        if not self._knows_times:
            return range(max(low, end - _RECORDS_MAX), end)
        start, stop = (self._offset_at(partition, time_ms) for time_ms in (first_ms, last_ms))
        start, stop = (end if offset < 0 else offset for offset in (start, stop))
        # The newest ones: the end of a long time says most about the present.
        return range(max(low, start, stop - _RECORDS_MAX), stop)

    def _offset_at(self, partition: int, time_ms: int) -> int:
        try:
            (place,) = self._consumer.offsets_for_times(
                [TopicPartition(self._topic, partition, max(0, time_ms))], timeout=REACH_TIMEOUT_S
            )
        except KafkaException as error:
            raise BrokerUnavailable(f"Kafka did not say where a time begins: {reason_of(error)}") from error
        return int(place.offset)


def is_of(record: Mapping[str, Any], decision: Mapping[str, Any]) -> bool:
    """Returns whether a decision is of an alert's model version and segment, as far as a decision has the segment.

    Segments are `overall` or `field=value`. A field that decisions have not in this form (a band of amounts) does not
    restrict.
    """
    # An alert names the model's version and, behind a slash, the variant.
    version, _, variant = str(record["model_version"]).partition("/")
    if decision["model_version"] != version or (variant and decision["variant"] != variant):
        return False
    name, sign, value = str(record["segment"]).partition("=")
    if not sign or value == "other" or not isinstance(decision.get(name), str):
        return True
    return bool(decision[name] == value)
