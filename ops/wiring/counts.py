"""Build the parts of the stream that count decisions and join outcomes, each a thread of the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from paywarden.features.profiles.money import RateTable
from paywarden.features.stores.base import ProfileStore
from paywarden.models.metrics.costs import CostSettings
from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.streams.counts.partition_worker import (
    AcquirePartition,
    GroupMember,
    Pace,
    PartitionWorker,
    WorkerMetrics,
)
from paywarden.streams.drift.drift_counts import Binnings
from paywarden.streams.drift.drift_evaluation import Detection, DriftEvaluation, Evaluator
from paywarden.streams.drift.drift_metrics import DriftMetrics
from paywarden.streams.drift.drift_settings import DriftSettings
from paywarden.streams.drift.drift_state import DriftCounting
from paywarden.streams.health.parts import Part, Periodic
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.source_register import BESIDE_SOURCES_KEY
from paywarden.streams.outcomes.agent import EVALUATE_EVERY_S, OutcomeEvaluation, OutcomeJoining
from paywarden.streams.outcomes.outcome_evaluation import OutcomeEvaluator, sources_of
from paywarden.streams.outcomes.outcome_metrics import OutcomeMetrics
from paywarden.streams.outcomes.outcome_records import OutcomeSender
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.outcome_state import DECISIONS, OUTCOMES
from paywarden.streams.profiles.guards.sources import SourceCheck


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


def counting_parts(
    *,
    ids: SchemaIds,
    registry: CollectorRegistry,
    member: GroupMember,
    now_ms: Callable[[], int],
    drift: DriftParts,
    outcomes: OutcomeParts,
) -> dict[str, Part]:
    """Return the parts by name. Raises TemporaryFailure, SourceChanged, Misconfigured.

    `now_ms` is a clock that no leap of this host's moves: decisions of the future are not counted.
    """

    clients = member.clients
    topics = {clients.topic(name): name for name in ("decisions", "outcomes")}

    def worker(name: str, takers: Sequence[AcquirePartition], pace: Pace, metrics: WorkerMetrics) -> PartitionWorker:
        return PartitionWorker(
            name,
            member=member,
            decoder=Decoder(name, ids),
            sources=SourceCheck(clients, drift.store, topics, BESIDE_SOURCES_KEY),
            takers=takers,
            pace=pace,
            metrics=metrics,
            now_ms=now_ms,
        )

    drift_metrics, outcome_metrics = DriftMetrics(registry), OutcomeMetrics(registry)
    counting = DriftCounting(drift.store, drift.binnings, drift.settings, drift_metrics)
    joining = OutcomeJoining(drift.store, outcomes.rates, outcomes.settings, outcome_metrics)
    decisions = worker(
        "decisions",
        [counting.take_over, joining.taker(DECISIONS)],
        Pace(drift.settings.save_every_ms, drift.settings.save_decisions),
        drift_metrics,
    )
    labels = worker(
        "outcomes",
        [joining.taker(OUTCOMES)],
        Pace(outcomes.settings.save_every_ms, outcomes.settings.save_records),
        outcome_metrics,
    )
    partitions = clients.partitions("decisions")
    blocks = DriftEvaluation(
        decisions,
        counting,
        Evaluator(
            drift.store, drift.detection, partitions=partitions, binnings=drift.binnings, settings=drift.settings
        ),
        look_for_models=drift.look_for_models,
    )
    days = OutcomeEvaluation(
        decisions=decisions,
        outcomes=labels,
        joining=joining,
        evaluator=OutcomeEvaluator(
            drift.store,
            sources_of(partitions, clients.partitions("outcomes")),
            settings=outcomes.settings,
            costs=outcomes.costs,
            send=OutcomeSender(lambda: Sender(clients.settings, linger_ms=5), clients.settings, ids),
        ),
    )
    return {
        "counting of decisions": decisions,
        "joining of outcomes": labels,
        "drift detection": Periodic(drift.settings.save_every_ms / 1000, blocks.step),
        "evaluation of outcomes": Periodic(EVALUATE_EVERY_S, days.step),
    }
