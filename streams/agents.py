"""What runs as Faust agents, timers and tasks: everything that is not the one firehose (streams/pipeline.py).

`add_agents` is the place for all of them. An agent is an `async def` that takes a stream and yields nothing (a
yielded value would be sent to whatever topic a record's headers name); a topic's values come through an
`AvroCodec`. Agents share one consumer group over all workers, so each record reaches one of them, at least once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from faust.types import StreamT
from prometheus_client import CollectorRegistry

from features.money import RateTable
from features.store import ProfileStore
from models.costs import CostSettings
from schemas.avro import SchemaIds
from streams.app import StreamApp
from streams.avro_codec import AvroCodec, Undecodable, Value
from streams.deadletter_counts import DeadLetterCounts
from streams.drift_agent import DriftCounting, DriftEvaluation
from streams.drift_counts import Binnings
from streams.drift_evaluation import Detection, Evaluator
from streams.drift_metrics import DriftMetrics
from streams.drift_settings import DriftSettings
from streams.kafka import KafkaSettings, Sender, partitions_of
from streams.outcome_agent import OutcomeEvaluation, OutcomeJoining
from streams.outcome_evaluation import OutcomeEvaluator, sources_of
from streams.outcome_metrics import OutcomeMetrics
from streams.outcome_records import OutcomeSender
from streams.outcome_settings import OutcomeSettings
from streams.outcome_state import DECISIONS, OUTCOMES
from streams.partition_agent import Pace, PartitionAgent, Taker


@dataclass(frozen=True)
class DriftParts:
    """What decisions are counted with. `store`: that belongs to no profile set, for writing."""

    store: ProfileStore
    binnings: Binnings
    detection: Detection
    settings: DriftSettings


@dataclass(frozen=True)
class OutcomeParts:
    """What outcomes are joined and measured with, in the store of DriftParts."""

    rates: RateTable
    costs: CostSettings
    settings: OutcomeSettings


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
    outcomes: OutcomeParts | None = None,
) -> None:
    """Register every agent with the app, before it starts. Without `outcomes` none are joined."""
    _add_dead_letter_watch(app, kafka, ids, registry)
    takes_over_after_s = session_timeout_ms / 1000
    if outcomes is None:
        _add_decisions(app, kafka, ids, registry, takes_over_after_s, drift)
        return
    settings, metrics = outcomes.settings, OutcomeMetrics(registry)
    joining = OutcomeJoining(drift.store, outcomes.rates, settings, metrics)
    decisions = _add_decisions(app, kafka, ids, registry, takes_over_after_s, drift, joining.taker(DECISIONS))
    labels = PartitionAgent(
        app,
        kafka.topic("outcomes"),
        name="outcomes",
        codec=AvroCodec("outcomes", ids),
        takers=[joining.taker(OUTCOMES)],
        pace=Pace(settings.save_every_ms, settings.save_records, settings.unsaved_max),
        metrics=metrics,
        takes_over_after_s=takes_over_after_s,
    )
    labels.register()
    evaluator = OutcomeEvaluator(
        drift.store,
        sources_of(partitions_of(kafka, "decisions"), partitions_of(kafka, "outcomes")),
        settings=settings,
        costs=outcomes.costs,
        send=OutcomeSender(lambda: Sender(kafka, linger_ms=5), kafka, ids),
    )
    evaluation = OutcomeEvaluation(app, decisions=decisions, outcomes=labels, joining=joining, evaluator=evaluator)
    evaluation.register()


def _add_decisions(
    app: StreamApp,
    kafka: KafkaSettings,
    ids: SchemaIds,
    registry: CollectorRegistry,
    takes_over_after_s: float,
    drift: DriftParts,
    *more: Taker,
) -> PartitionAgent:
    """Counting for drift detection, and whatever else is made of the same records."""
    settings, metrics = drift.settings, DriftMetrics(registry)
    counting = DriftCounting(drift.store, drift.binnings, settings, metrics)
    agent = PartitionAgent(
        app,
        kafka.topic("decisions"),
        name="decisions",
        codec=AvroCodec("decisions", ids),
        takers=[counting.take_over, *more],
        pace=Pace(settings.save_every_ms, settings.save_decisions, settings.unsaved_max),
        metrics=metrics,
        takes_over_after_s=takes_over_after_s,
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
    return agent


def _add_dead_letter_watch(app: StreamApp, kafka: KafkaSettings, ids: SchemaIds, registry: CollectorRegistry) -> None:
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

    app.add_agent(topic, "dead-letters", watch_dead_letters)
