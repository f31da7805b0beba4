"""The newest rollout as metrics of the companion, which outlives rollouts and their leaders.

    log of rollouts ──► RolloutCollector ──► /metrics of the companion ──► alerts

Everything is read from the log when somebody asks. An alert about a rollback, or about a leader that does not look,
therefore needs only the companion of a host. Where there is no registry, all numbers are 0.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from paywarden.models.rollout.judgement import Finding
from paywarden.models.rollout.rollout import Phase, Rollout
from paywarden.models.rollout.rollout_log import RolloutKeeper, RolloutLog
from paywarden.models.rollout.shares import BASIS_POINTS
from paywarden.schemas.errors import Misconfigured

_MS_A_SECOND = 1_000
_NOTHING = 0.0


class RolloutCollector(Collector):
    """Shows the newest rollout of a log. A scrape reads the entries that came to the log since the last one."""

    def __init__(self, log: RolloutLog | None) -> None:
        """`log`: None where there is no registry."""
        self._log = log
        self._keeper: RolloutKeeper | None = None
        # Each scrape has a thread of its own.
        self._lock = threading.Lock()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the gauges. A log that cannot be read is a number, not an error of the scrape."""
        try:
            rollout, is_unreadable = self._read(), False
        except Misconfigured:
            rollout, is_unreadable = None, True
        yield _gauge(
            "paywarden_rollout_log_unreadable", "1 if the log of rollouts is damaged or cannot be read.", is_unreadable
        )
        yield _states(
            "paywarden_rollout_phase",
            "1 for the phase of the newest rollout, 0 for other phases.",
            "phase",
            [phase.value for phase in Phase],
            None if rollout is None else rollout.phase.value,
        )
        yield _states(
            "paywarden_rollout_finding",
            "1 for the finding of the newest look at the step, 0 for other findings.",
            "finding",
            [finding.value for finding in Finding],
            None if rollout is None or rollout.judgement is None else rollout.judgement.finding.value,
        )
        yield _gauge(
            "paywarden_rollout_share",
            "The candidate's share of the cards in the newest rollout.",
            _NOTHING if rollout is None else rollout.share / BASIS_POINTS,
        )
        yield _gauge(
            "paywarden_rollout_since_timestamp_seconds",
            "When the newest rollout came to its step, or to its end.",
            _NOTHING if rollout is None else rollout.since_ms / _MS_A_SECOND,
        )
        yield _gauge(
            "paywarden_rollout_event_timestamp_seconds",
            "When the newest event came to the log of rollouts. Looks that change nothing come every five minutes, and "
            "in a step of more than eight hours every hundredth of its age.",
            _NOTHING if rollout is None else rollout.time_ms / _MS_A_SECOND,
        )

    def _read(self) -> Rollout | None:
        if self._log is None:
            return None
        with self._lock:
            if self._keeper is None:
                self._keeper = RolloutKeeper(self._log)
            return self._keeper.refresh()


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=float(value))


def _states(name: str, meaning: str, label: str, values: list[str], now: str | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for value in values:
        family.add_metric([value], float(value == now))
    return family
