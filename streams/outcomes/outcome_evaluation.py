"""Find the days of decisions whose labels are mature, and evaluate each once and in order.

One worker evaluates: the owner of partition 0 of the topic decisions.

    day 1 ends ── 7 days (label_delay_days) ──► mature: records, perhaps an alert
               ── 90 days (window_days) ──────► final:  the records again, with all corrections

1. A day is mature when all partitions of both topics are processed up to `label_delay_days` after its end. It is final
   `window_days` after its end, when no outcome can count any more. A partition that is behind holds all days up.
2. A mature day gives one record for each version and variant, over 7 and 28 days, and perhaps an alert
   (streams/outcomes/outcome_watch.py). A final day gives the records again.
3. Records and alerts are sent first. Then one record saves how far evaluation is and everything that is watched. If a
   worker dies in between, its successor sends the same again: records with the same key, day and maturity, and alerts
   with the same id.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paywarden.features.stores.base import ProfileStore, StoreConflict
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.outcome_measures import measure
from paywarden.models.metrics.outcome_tally import OutcomeTally, total
from paywarden.streams.alerts.alerts import Alert
from paywarden.streams.outcomes.outcome_records import MetricsRecord, record_of
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.outcome_state import (
    DECISIONS,
    ENTITY,
    MEASURED_DAYS_MAX,
    OUTCOMES,
    OutcomeHead,
    read_day,
    read_heads,
)
from paywarden.streams.outcomes.outcome_watch import OutcomeWatch
from paywarden.streams.outcomes.payments import DAY_MS, Arm, SourcePartition

_log = logging.getLogger(__name__)

WINDOWS_DAYS = (7, MEASURED_DAYS_MAX)
EVALUATED_KEY = f"{ENTITY}:evaluated".encode()
# The most versions and variants measured on one day: those with the most payments.
ARMS_MAX = 16
# The very first evaluation begins at most this many days back.
_BACK_DAYS_MAX = 2 * MEASURED_DAYS_MAX
_TTL_S = 400 * 86_400

Send = Callable[[Sequence[MetricsRecord], Sequence[tuple[Alert, int]]], object]


@dataclass
class EvaluationState:
    """The progress of evaluation.

    `done`: the last day evaluated, by maturity in days. `latest`: the records of the newest mature day.
    """

    done: dict[int, int] = field(default_factory=dict)
    watches: dict[Arm, OutcomeWatch] = field(default_factory=dict)
    latest: list[MetricsRecord] = field(default_factory=list)

    @property
    def open_alerts(self) -> list[Alert]:
        return [alert for _, watch in sorted(self.watches.items()) for alert in watch.open_alerts]

    def encode(self, token: str) -> bytes:
        """Return the state as it is stored.

        `token` names the writer. It makes the records of two workers differ even if both evaluated the same day, so
        only one of their writes succeeds.
        """
        fields = {
            "token": token,
            "done": list(self.done.items()),
            "watches": [watch.to_dict() for watch in self.watches.values()],
            "latest": self.latest,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    @staticmethod
    def decode(data: bytes, settings: OutcomeSettings) -> EvaluationState:
        """Return the state that `encode` turned into these bytes."""
        fields: dict[str, Any] = json.loads(data)
        watches = [OutcomeWatch.from_dict(watch_fields, settings) for watch_fields in fields["watches"]]
        done = {int(maturity): int(day) for maturity, day in fields["done"]}
        return EvaluationState(done, {watch.arm: watch for watch in watches}, fields["latest"])


def sources_of(decision_partitions: Iterable[int], outcome_partitions: Iterable[int]) -> tuple[SourcePartition, ...]:
    """Return all partitions of both topics."""
    return (
        *(SourcePartition(DECISIONS, partition) for partition in decision_partitions),
        *(SourcePartition(OUTCOMES, partition) for partition in outcome_partitions),
    )


def read_evaluated(store: ProfileStore, settings: OutcomeSettings) -> tuple[EvaluationState, int]:
    """Return how far evaluation is, and the record's version. Raises StoreUnavailable."""
    record = store.read_versioned([EVALUATED_KEY])[0]
    return (
        EvaluationState() if record.value is None else EvaluationState.decode(record.value, settings)
    ), record.version


class OutcomeEvaluator:
    """Evaluates mature and final days. `step` blocks; one thread at a time."""

    def __init__(
        self,
        store: ProfileStore,
        sources: Sequence[SourcePartition],
        *,
        settings: OutcomeSettings,
        costs: CostSettings,
        send: Send,
    ) -> None:
        """`send` sends records and alerts; see OutcomeSender."""
        self._store, self._sources, self._settings = store, sources, settings
        self._costs, self._send = costs, send
        self._token = uuid.uuid4().hex

    def step(self, may_go_on: Callable[[], bool] = lambda: True) -> int:
        """Evaluate the days that are due; return how many. Raises StoreUnavailable, BrokerUnavailable: call again."""
        heads = read_heads(self._store, self._sources)
        passed_ms = passed(heads, self._sources)
        count = 0
        while may_go_on():
            evaluated, version = read_evaluated(self._store, self._settings)
            due = self._due(evaluated, heads, passed_ms)
            if due is None:
                break
            maturity_days, day = due
            self._send(*self._evaluate(evaluated, maturity_days, day))
            evaluated.done[maturity_days] = day
            data = evaluated.encode(self._token)
            try:
                self._store.write({EVALUATED_KEY: data}, ttl_s=_TTL_S, versions={EVALUATED_KEY: version})
            except StoreConflict:
                _log.warning("another worker evaluates outcomes, too: going on from its results")
                break
            count += 1
        return count

    def _due(
        self, evaluated: EvaluationState, heads: dict[SourcePartition, OutcomeHead], passed_ms: int
    ) -> tuple[int, int] | None:
        """Return the maturity and the day to evaluate next; None if no day is due."""
        for maturity_days in dict.fromkeys((self._settings.label_delay_days, self._settings.window_days)):
            last_day = passed_ms // DAY_MS - maturity_days - 1
            done = evaluated.done.get(maturity_days)
            day = _first_day(heads, last_day) if done is None else done + 1
            if day is not None and day <= last_day:
                return maturity_days, day
        return None

    def _evaluate(
        self, evaluated: EvaluationState, maturity_days: int, day: int
    ) -> tuple[list[MetricsRecord], list[tuple[Alert, int]]]:
        """Return the records and alerts of a day, and move the watches on."""
        tallies = self._tallies(day)
        records = [
            record_of(arm, day, maturity_days, {days: self._measured(of_arm, day, days) for days in WINDOWS_DAYS})
            for arm, of_arm in tallies.items()
        ]
        if maturity_days != self._settings.label_delay_days:
            return records, []
        evaluated.latest = records
        return records, self._watch(evaluated, day, tallies)

    def _tallies(self, day: int) -> dict[Arm, dict[int, OutcomeTally]]:
        """Return tallies by arm and day, over the longest window that ends with this day, for the largest arms."""
        by_arm: dict[Arm, dict[int, OutcomeTally]] = {}
        for past_day in range(day - MEASURED_DAYS_MAX + 1, day + 1):
            for arm, tally in read_day(self._store, self._sources, past_day).items():
                by_arm.setdefault(arm, {})[past_day] = tally
        payments = {arm: sum(int(tally.counts.sum()) for tally in days.values()) for arm, days in by_arm.items()}
        most = sorted(by_arm, key=lambda arm: (-payments[arm], arm))[:ARMS_MAX]
        return {arm: by_arm[arm] for arm in sorted(most)}

    def _measured(self, tallies: dict[int, OutcomeTally], day: int, days: int) -> Any:
        return measure(total(tally for tally_day, tally in tallies.items() if tally_day > day - days), self._costs)

    def _watch(
        self, evaluated: EvaluationState, day: int, tallies: dict[Arm, dict[int, OutcomeTally]]
    ) -> list[tuple[Alert, int]]:
        alerts: list[tuple[Alert, int]] = []
        for arm, of_arm in tallies.items():
            watch = evaluated.watches.get(arm)
            if watch is None:
                watch = evaluated.watches[arm] = OutcomeWatch(arm, min(of_arm), self._settings)
            alerts += [(alert, watch.reference_count(alert)) for alert in watch.step(day, of_arm)]
        for arm, watch in list(evaluated.watches.items()):
            if arm not in tallies:
                alerts += [(alert, watch.reference_count(alert)) for alert in watch.close(day)]
                del evaluated.watches[arm]
        return alerts


def passed(heads: dict[SourcePartition, OutcomeHead], sources: Sequence[SourcePartition]) -> int:
    """Return the time up to which all records of the topics are processed, epoch ms; 0 if a partition never was."""
    return min((heads[source].quiet_ms if source in heads else 0 for source in sources), default=0)


def _first_day(heads: dict[SourcePartition, OutcomeHead], last_day: int) -> int | None:
    """Return the day the very first evaluation begins with: the first decision's; None if there is none yet."""
    first_ms = min((head.progress.first_ms for head in heads.values() if head.progress.first_ms), default=0)
    return max(first_ms // DAY_MS, last_day - _BACK_DAYS_MAX) if first_ms else None
