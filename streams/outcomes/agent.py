"""Run the join of outcomes in the PartitionWorkers of both topics, and evaluate the days that are mature."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from paywarden.features.profiles.money import RateTable
from paywarden.features.stores.base import ProfileStore, StoreConflict
from paywarden.schemas.errors import BrokerUnavailable, StoreUnavailable
from paywarden.streams.counts.partition_worker import PartitionWorker
from paywarden.streams.outcomes.outcome_evaluation import OutcomeEvaluator, read_evaluated
from paywarden.streams.outcomes.outcome_metrics import OutcomeMetrics
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.outcome_state import JoinResult, OutcomeWork, StateReading, take_over
from paywarden.streams.outcomes.payments import SourcePartition

_log = logging.getLogger(__name__)

# Days mature once a day.
EVALUATE_EVERY_S = 5.0


class OutcomeJoining:
    """Joins outcomes to decisions: the part that all partitions of a worker share."""

    def __init__(
        self, store: ProfileStore, rates: RateTable, settings: OutcomeSettings, metrics: OutcomeMetrics
    ) -> None:
        self.store, self.settings, self.metrics = store, settings, metrics
        self._rates = rates

    def taker(self, topic: str) -> Callable[[int], OutcomeWork]:
        """Return an AcquirePartition for partitions of DECISIONS or OUTCOMES."""
        reading = StateReading(topic, self.settings, self._rates)

        def take(partition: int) -> OutcomeWork:
            source = SourcePartition(topic, partition)
            checkpoint = take_over(self.store, source, self.settings)
            on_saved: Callable[[Counter[str], Sequence[JoinResult]], object] = partial(self.metrics.saved, source)
            return OutcomeWork(
                self.store, source, checkpoint, reading=reading, settings=self.settings, on_saved=on_saved
            )

        return take


class OutcomeEvaluation:
    """Evaluates days in the worker that has partition 0 of decisions, and shows the results as metrics."""

    def __init__(
        self,
        *,
        decisions: PartitionWorker,
        outcomes: PartitionWorker,
        joining: OutcomeJoining,
        evaluator: OutcomeEvaluator,
    ) -> None:
        self._decisions, self._outcomes = decisions, outcomes
        self._joining, self._evaluator = joining, evaluator

    def step(self) -> None:
        """Evaluate the days that are mature, in a thread that may wait. A store or Kafka that is away is logged."""
        self._joining.metrics.unsaved.set(self._outcomes.unsaved)
        try:
            self._evaluate()
        except (StoreUnavailable, StoreConflict) as error:
            self._outcomes.note_trouble(error)
        except BrokerUnavailable as error:
            _log.warning("the records of outcomes cannot be sent, trying again: %s", error)

    def _evaluate(self) -> None:
        metrics = self._joining.metrics
        if not self._decisions.has(0):
            metrics.show([], [])
            return
        assignment = self._decisions.assignment
        metrics.days.inc(self._evaluator.step(lambda: assignment == self._decisions.assignment))
        evaluated, _ = read_evaluated(self._joining.store, self._joining.settings)
        metrics.show(evaluated.latest, evaluated.open_alerts)
