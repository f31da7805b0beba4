"""Add everything that runs as Faust agents, timers and tasks. Payments run elsewhere: streams/profiles/pipeline.py.

`add_agents` is the one place for them. An agent is an `async def` that takes a stream and yields nothing: Faust would
send a yielded value to any topic that a record's headers name. A topic's values come through an `AvroCodec`. Agents of
all workers share one consumer group, so each record reaches one of them, at least once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from paywarden.features.profiles.money import RateTable
from paywarden.features.stores.base import ProfileStore
from paywarden.models.metrics.costs import CostSettings
from paywarden.schemas.avro import SchemaIds
from paywarden.streams.drift.counts import Binnings
from paywarden.streams.drift.evaluation import Detection, DriftEvaluation, Evaluator
from paywarden.streams.drift.metrics import DriftMetrics
from paywarden.streams.drift.settings import DriftSettings
from paywarden.streams.drift.state import DriftCounting
from paywarden.streams.faust.app import StreamApp
from paywarden.streams.faust.codec import AvroCodec
from paywarden.streams.faust.dead_letter_watch import add_dead_letter_watch
from paywarden.streams.faust.partition_agent import AcquirePartition, AgentSource, Pace, PartitionAgent
from paywarden.streams.faust.source_watch import SourceWatch
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.outcomes.agent import OutcomeEvaluation, OutcomeJoining
from paywarden.streams.outcomes.evaluation import OutcomeEvaluator, sources_of
from paywarden.streams.outcomes.metrics import OutcomeMetrics
from paywarden.streams.outcomes.records import OutcomeSender
from paywarden.streams.outcomes.settings import OutcomeSettings
from paywarden.streams.outcomes.state import DECISIONS, OUTCOMES


@dataclass(frozen=True)
class DriftParts:
    """The parts that count and watch decisions. `store` belongs to no profile set and is writable."""

    store: ProfileStore
    binnings: Binnings
    detection: Detection
    settings: DriftSettings
    # Finds references of models that decisions name and nobody knows yet.
    look_for_models: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class OutcomeParts:
    """The parts that join and measure outcomes, in the store of DriftParts."""

    rates: RateTable
    costs: CostSettings
    settings: OutcomeSettings


def add_agents(
    app: StreamApp,
    *,
    clients: KafkaClients,
    ids: SchemaIds,
    registry: CollectorRegistry,
    session_timeout_ms: int,
    now_ms: Callable[[], int],
    drift: DriftParts,
    outcomes: OutcomeParts | None = None,
) -> None:
    """Register every agent with the app, before it starts. Without `outcomes`, outcomes are not joined.

    `now_ms` is a clock that no leap of this host's moves: decisions of the future are not counted.
    """
    kafka = clients.settings
    add_dead_letter_watch(app, kafka, ids, registry)
    topics = ("decisions",) if outcomes is None else ("decisions", "outcomes")
    sources = SourceWatch(clients, drift.store, topics)
    sources.start(app)
    takes_over_after_s = session_timeout_ms / 1000
    if outcomes is None:
        _add_decisions(app, kafka, ids, registry, takes_over_after_s, now_ms, drift, sources)
        return
    settings, metrics = outcomes.settings, OutcomeMetrics(registry)
    joining = OutcomeJoining(drift.store, outcomes.rates, settings, metrics)
    decisions = _add_decisions(
        app, kafka, ids, registry, takes_over_after_s, now_ms, drift, sources, joining.taker(DECISIONS)
    )
    labels = PartitionAgent(
        app,
        AgentSource(kafka.topic("outcomes"), "outcomes", sources.bases["outcomes"]),
        codec=AvroCodec("outcomes", ids),
        takers=[joining.taker(OUTCOMES)],
        pace=Pace(settings.save_every_ms, settings.save_records, settings.unsaved_max, takes_over_after_s),
        metrics=metrics,
        now_ms=now_ms,
    )
    labels.register()
    sources.follow("outcomes", labels.positions)
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
    now_ms: Callable[[], int],
    drift: DriftParts,
    sources: SourceWatch,
    *more: AcquirePartition,
) -> PartitionAgent:
    """Add the agent that counts decisions for drift detection, and any `more` works on the same records."""
    settings, metrics = drift.settings, DriftMetrics(registry)
    counting = DriftCounting(drift.store, drift.binnings, settings, metrics)
    agent = PartitionAgent(
        app,
        AgentSource(kafka.topic("decisions"), "decisions", sources.bases["decisions"]),
        codec=AvroCodec("decisions", ids),
        takers=[counting.take_over, *more],
        pace=Pace(settings.save_every_ms, settings.save_decisions, settings.unsaved_max, takes_over_after_s),
        metrics=metrics,
        now_ms=now_ms,
    )
    agent.register()
    sources.follow("decisions", agent.positions)
    evaluator = Evaluator(
        drift.store,
        drift.detection,
        partitions=partitions_of(kafka, "decisions"),
        binnings=drift.binnings,
        settings=settings,
    )
    DriftEvaluation(app, agent, counting, evaluator, look_for_models=drift.look_for_models).register()
    return agent
