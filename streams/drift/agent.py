"""Decisions counted for drift detection, as a PartitionAgent has it done, and the evaluation of what is counted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paywarden.features.stores.base import ProfileStore, StoreConflict
from paywarden.schemas.errors import StoreUnavailable, TemporaryFailure
from paywarden.streams.drift.counts import (
    KEPT_MS,
    Binnings,
    CountCell,
    DecisionRow,
    PartitionCounts,
    actions_of,
    counted,
    scores_of,
)
from paywarden.streams.drift.evaluation import Evaluator, read_done
from paywarden.streams.drift.metrics import DriftMetrics
from paywarden.streams.drift.settings import DriftSettings
from paywarden.streams.drift.state import Adder, PartitionState, take_over
from paywarden.streams.faust.partition_agent import PartitionAgent

if TYPE_CHECKING:
    from paywarden.models.drift.counts import Counts
    from paywarden.streams.faust.app import StreamApp

_log = logging.getLogger(__name__)

# How much a partition may be ahead of what is evaluated: its tiles must be there until they are.
_AHEAD_MS_MAX = KEPT_MS // 2


class DriftCounting:
    """What all partitions of a worker have in common."""

    def __init__(self, store: ProfileStore, binnings: Binnings, settings: DriftSettings, metrics: DriftMetrics) -> None:
        self.store, self.binnings, self.settings, self.metrics = store, binnings, settings, metrics
        self.adder = Adder(binnings, on_trimmed=metrics.trimmed.inc, on_lost=metrics.lost.inc)
        # Up to when blocks are evaluated, by whichever worker; 0: none yet.
        self.done_ms = 0

    def take_over(self, partition: int) -> DriftWork:
        """See partition_agent.Taker."""
        checkpoint = take_over(self.store, partition, self.adder)
        counts = PartitionCounts(checkpoint.saved.progress, self.binnings, self.settings)
        state = PartitionState(self.store, partition, checkpoint, counts=counts, count=self._count, adder=self.adder)
        return DriftWork(self, state)

    def _count(self, cell: CountCell, rows: Sequence[DecisionRow]) -> Counts:
        self.metrics.counted(cell.model.version, scores_of(rows), actions_of(rows))
        binning = self.binnings.binning_of(cell.model)
        assert binning is not None, "what was just put into a cell is counted in a binning that is here"
        return counted(binning, rows)


class DriftWork:
    """A PartitionWork: decisions counted for drift detection."""

    def __init__(self, counting: DriftCounting, state: PartitionState) -> None:
        self._counting, self.state = counting, state

    def __len__(self) -> int:
        return len(self.state.counts)

    @property
    def next_offset(self) -> int:
        return self.state.saved.next_offset

    @property
    def is_ahead(self) -> bool:
        """Whether its oldest tiles would go before they are evaluated."""
        since_ms = self._counting.done_ms or self.state.saved.first_ms
        return self.state.saved.newest_ms > since_ms + _AHEAD_MS_MAX

    @property
    def has_news(self) -> bool:
        return self.state.has_news

    def add(self, offset: int, record: Mapping[str, Any]) -> None:
        self.state.counts.add(offset, record)

    def skip(self, offset: int) -> None:
        self.state.counts.skip(offset)

    def hand_over(self, quiet_ms: int) -> None:
        self.state.hand_over(quiet_ms)

    def save(self, now_ms: int) -> None:
        earlier = self.state.saved
        self.state.save(now_ms)
        self._counting.metrics.saved(self.state.saved.totals.less(earlier.totals))


class DriftEvaluation:
    """Has blocks evaluated by the worker that has partition 0, and tells how far all this is."""

    def __init__(
        self,
        app: StreamApp,
        agent: PartitionAgent,
        counting: DriftCounting,
        evaluator: Evaluator,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`evaluator` is called in a thread."""
        self._app, self._agent, self._counting, self._evaluator, self._now_ms = app, agent, counting, evaluator, now_ms

    def register(self) -> None:
        """Add it to the app."""
        self._app.add_task(self._keep_evaluating)

    async def _keep_evaluating(self) -> None:
        metrics = self._counting.metrics
        while not self._app.should_stop:
            await asyncio.sleep(self._counting.settings.save_every_ms / 1000)
            try:
                self._counting.done_ms = await asyncio.to_thread(self._evaluate)
            except (StoreUnavailable, StoreConflict) as error:
                self._agent.note_trouble(error)
            except TemporaryFailure as error:
                # Kafka does not take alerts: the block is evaluated again.
                _log.warning("blocks of decisions cannot be evaluated now, trying again: %s", error)
            now_ms = self._now_ms()
            passed_ms = {
                p: work.state.checkpoint.saved.passed_ms(0) for p, work in self._agent.works(DriftWork).items()
            }
            metrics.unsaved.set(self._agent.unsaved)
            metrics.behind({p: (now_ms - ms) / 1000 for p, ms in passed_ms.items() if ms})
            metrics.evaluated.set(self._counting.done_ms / 1000)

    def _evaluate(self) -> int:
        if self._agent.has(0):
            assignment = self._agent.assignment
            steps = self._evaluator.step(may_go_on=lambda: assignment == self._agent.assignment)
            self._counting.metrics.blocks.inc(steps)
        else:
            self._evaluator.forget()
        return read_done(self._counting.store)[0].done_ms
