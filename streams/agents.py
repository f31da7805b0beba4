"""What runs as Faust agents, timers and tasks: everything that is not the one firehose (streams/pipeline.py).

`add_agents` is the place for all of them. An agent is an `async def` that takes a stream and yields nothing (a
yielded value would be sent to whatever topic a record's headers name); a topic's values come through an
`AvroCodec`. Agents share one consumer group over all workers, so each record reaches one of them, at least once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import faust
from faust.types import StreamT
from prometheus_client import CollectorRegistry

from features.store import ProfileStore
from schemas.avro import SchemaIds
from streams.app import StreamApp
from streams.avro_codec import AvroCodec, Undecodable, Value
from streams.deadletter_counts import DeadLetterCounts
from streams.drift_agent import DriftCounting, DriftEvaluation
from streams.drift_counts import Binnings
from streams.drift_evaluation import Detection, Evaluator
from streams.drift_metrics import DriftMetrics
from streams.drift_settings import DriftSettings
from streams.kafka import KafkaSettings, partitions_of
from streams.partition_agent import Pace, PartitionAgent


@dataclass(frozen=True)
class DriftParts:
    """What decisions are counted with. `store`: that belongs to no profile set, for writing."""

    store: ProfileStore
    binnings: Binnings
    detection: Detection
    settings: DriftSettings


# Letters hold whole records: with more than this in memory no more are fetched until some are worked off.
_LETTERS_AHEAD = 100


def add_agents(
    app: StreamApp,
    *,
    kafka: KafkaSettings,
    ids: SchemaIds,
    registry: CollectorRegistry,
    session_timeout_ms: int,
    drift: DriftParts,
) -> None:
    """Register every agent with the app, before it starts."""
    _add_dead_letter_watch(app, kafka, ids, registry)
    _add_decisions(app, kafka, ids, registry, session_timeout_ms, drift)


def _add_decisions(
    app: StreamApp,
    kafka: KafkaSettings,
    ids: SchemaIds,
    registry: CollectorRegistry,
    session_timeout_ms: int,
    drift: DriftParts,
) -> None:
    settings, metrics = drift.settings, DriftMetrics(registry)
    counting = DriftCounting(drift.store, drift.binnings, settings, metrics)
    agent = PartitionAgent(
        app,
        kafka.topic("decisions"),
        name="drift",
        codec=AvroCodec("decisions", ids),
        takers=[counting.take_over],
        pace=Pace(settings.save_every_ms, settings.save_decisions, settings.unsaved_max),
        metrics=metrics,
        takes_over_after_s=session_timeout_ms / 1000,
    )
    agent.register()
    evaluator = Evaluator(
        drift.store,
        drift.detection,
        partitions=partitions_of(kafka, "decisions"),
        binnings=drift.binnings,
        settings=settings,
    )
    DriftEvaluation(app, agent, counting, evaluator).register()


def _add_dead_letter_watch(app: faust.App, kafka: KafkaSettings, ids: SchemaIds, registry: CollectorRegistry) -> None:
    counts = DeadLetterCounts(registry, kafka.topic_prefix)
    codec = AvroCodec("dead-letters", ids)
    topic = app.topic(kafka.topic("dead-letters"), key_type=bytes, key_serializer="raw", value_serializer=codec)
    topic.maxsize = _LETTERS_AHEAD

    async def watch_dead_letters(letters: StreamT[Value]) -> None:
        async for value in letters:
            letter = await codec.record(value)
            if isinstance(letter, Undecodable):
                counts.count_undecodable()
            else:
                counts.count(letter, time.time_ns() // 1_000_000)

    app.agent(topic, name="dead-letters")(watch_dead_letters)
