"""Count the dead letters of the whole cluster, in a Faust agent."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import faust
from faust.types import StreamT
from prometheus_client import CollectorRegistry

from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.schemas.errors import InvalidEvent, TemporaryFailure
from paywarden.streams.dead_letters.letter_counts import DeadLetterCounts
from paywarden.streams.faust.app import AddAgent
from paywarden.streams.kafka.client import KafkaSettings

_log = logging.getLogger(__name__)

# Letters hold whole records. With this many in memory, no more are fetched until some are counted.
_LETTERS_AHEAD = 100
_RETRY_S = 5.0


def dead_letter_watch(kafka: KafkaSettings, ids: SchemaIds, registry: CollectorRegistry) -> AddAgent:
    """Return a function that adds the agent to an app."""
    counts = DeadLetterCounts(registry, kafka.topic_prefix, ids.current_schema)
    decoder = Decoder("dead-letters", ids)

    async def count(letters: StreamT[bytes | None]) -> None:
        async for value in letters:
            try:
                letter = await _decoded(decoder, value or b"")
            except InvalidEvent:
                counts.count_undecodable()
            else:
                counts.count(letter, time.time_ns() // 1_000_000)

    def add(app: faust.App) -> None:
        topic = app.topic(
            kafka.topic("dead-letters"),
            key_type=bytes,
            key_serializer="raw",
            value_type=bytes,
            value_serializer="raw",
            maxsize=_LETTERS_AHEAD,
        )
        app.agent(topic, name="dead-letters")(count)

    return add


async def _decoded(decoder: Decoder, value: bytes) -> dict[str, Any]:
    """Return a letter; waits while its schema cannot be read. Raises InvalidEvent."""
    while True:
        try:
            # The decoder may ask the schema registry.
            return await asyncio.to_thread(decoder.decode, value)
        except TemporaryFailure as error:
            _log.warning("a dead letter cannot be read yet, trying again in %g s: %s", _RETRY_S, error)
            await asyncio.sleep(_RETRY_S)
