"""Records that cannot be used: kept whole on a topic of their own, with why."""

from __future__ import annotations

from schemas.avro import Encoder, SchemaIds
from streams.kafka import KafkaSettings, Record, Sender


class DeadLetters:
    """Writes to the dead-letters topic; the caller flushes the sender before it commits."""

    def __init__(self, sender: Sender, kafka: KafkaSettings, ids: SchemaIds) -> None:
        self._sender = sender
        self._topic = kafka.topic("dead-letters")
        self._encoder = Encoder("dead-letters", ids.id_of("dead-letters"))

    def send(self, record: Record, reason: str, now_ms: int) -> None:
        """Queue one record as it came. `reason` must not quote it."""
        letter = {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "key": record.key,
            "value": record.value,
            "headers": [{"name": name, "value": value} for name, value in record.headers],
            "timestamp_ms": record.timestamp_ms or None,
            "reason": reason,
            "failed_time_ms": now_ms,
        }
        self._sender.send(self._topic, self._encoder.encode(letter), key=record.key)
