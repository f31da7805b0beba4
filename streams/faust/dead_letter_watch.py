"""Count the dead letters of the whole cluster, in a Faust agent."""

from __future__ import annotations

import time

from faust.types import StreamT
from prometheus_client import CollectorRegistry

from paywarden.schemas.avro import SchemaIds
from paywarden.streams.dead_letters.counts import DeadLetterCounts
from paywarden.streams.faust.app import StreamApp
from paywarden.streams.faust.codec import AvroCodec, DecodedValue, Undecodable
from paywarden.streams.kafka.client import KafkaSettings

# Letters hold whole records. With this many in memory, no more are fetched until some are counted.
_LETTERS_AHEAD = 100


def add_dead_letter_watch(app: StreamApp, kafka: KafkaSettings, ids: SchemaIds, registry: CollectorRegistry) -> None:
    counts = DeadLetterCounts(registry, kafka.topic_prefix, ids.current_schema)
    codec = AvroCodec("dead-letters", ids)
    topic = app.topic(kafka.topic("dead-letters"), key_type=bytes, key_serializer="raw", value_serializer=codec)
    topic.maxsize = _LETTERS_AHEAD

    async def watch_dead_letters(letters: StreamT[DecodedValue]) -> None:
        async for value in letters:
            letter = await codec.record(value)
            if isinstance(letter, Undecodable):
                counts.count_undecodable()
            else:
                counts.count(letter, time.time_ns() // 1_000_000)

    app.add_agent(topic, "dead-letters", watch_dead_letters)
