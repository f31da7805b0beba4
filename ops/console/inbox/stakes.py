"""Estimates the money at stake in an alert, and finds payments from before and after, from a sample of decisions.

The money is an estimate: the affected payments of the newest window, times the mean amount of a sample of decisions in
the segment, in the reference currency. A sample is some hundred decisions of each partition.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.inbox.segments import FeaturePlace, SegmentCounts, by_segment
from paywarden.schemas.errors import Misconfigured, TemporaryFailure

_log = logging.getLogger(__name__)

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS alert_samples (
        alert_id TEXT PRIMARY KEY, time_ms INTEGER NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL,
        segments TEXT NOT NULL
    )
    """,
)
_HOUR_MS = 3_600_000
_SHOWN = 10
_BATCH, _EVERY_S, _RETRY_S = 5, 1.0, 5.0


class Sampler(Protocol):
    """The source of decisions: streams/alerts/samples.py, or a list in tests."""

    def sample(self, record: Mapping[str, Any], first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        """See DecisionSampler."""

    def close(self) -> None:
        """See DecisionSampler."""


@dataclass(frozen=True)
class AlertSample:
    """Ids of payments from before and after the change began, and where the payments moved most."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    segments: tuple[SegmentCounts, ...]


@dataclass(frozen=True)
class Stakes:
    """Keeps money and samples of open alerts in the database, and where the change is by these samples.

    `minor` converts an amount of a currency at a time, None without a rate. `place` says where in a vector a feature
    is.
    """

    database: ConsoleDatabase
    sampler: Callable[[], Sampler]
    minor: Callable[[int, str, int], int | None]
    place: FeaturePlace

    def run(self, stop: threading.Event) -> None:
        """Sample new and changed alerts until `stop` is set. An outage does not end it."""
        while not stop.is_set():
            try:
                with closing(self.sampler()) as sampler:
                    while not stop.is_set():
                        if not self.step(sampler, stop):
                            stop.wait(_EVERY_S)
            except (TemporaryFailure, Misconfigured) as error:
                _log.warning("money and samples of alerts wait: %s", error)
                stop.wait(_RETRY_S)

    def step(self, sampler: Sampler, stop: threading.Event | None = None) -> int:
        """Sample some alerts until `stop` is set, the worst first; return how many there were.

        Raises BrokerUnavailable, DatabaseUnavailable.
        """
        rows = self.database.read(
            """
            SELECT alert_id, alerts.time_ms AS time_ms, affected, first_seen_ms, record FROM alerts
            JOIN alert_records USING (alert_id) LEFT JOIN alert_samples USING (alert_id)
            WHERE is_open = 1 AND alert_samples.time_ms IS NOT alerts.time_ms ORDER BY rank DESC, raised_ms LIMIT ?
            """,
            (_BATCH,),
        )
        for row in rows:
            if stop is not None and stop.is_set():
                break
            record = json.loads(row["record"])
            first, window = row["first_seen_ms"], (record["window_start_time_ms"], record["window_end_time_ms"])
            after = sampler.sample(record, *window)
            before = sampler.sample(record, first - _HOUR_MS, first)
            segments = json.dumps([asdict(one) for one in by_segment(record, before, after, self.place)])
            with self.database.write() as connection:
                connection.execute(
                    "UPDATE alerts SET money_minor = ? WHERE alert_id = ? AND time_ms = ?",
                    (self._money(row["affected"], after), row["alert_id"], row["time_ms"]),
                )
                connection.execute(
                    "INSERT OR REPLACE INTO alert_samples VALUES (?, ?, ?, ?, ?)",
                    (row["alert_id"], row["time_ms"], _ids(before), _ids(after), segments),
                )
                connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'version'")
        return len(rows)

    def sample_of(self, alert_id: str) -> AlertSample | None:
        """Return the sample of an alert; None until payments have been looked for."""
        rows = self.database.read("SELECT before, after, segments FROM alert_samples WHERE alert_id = ?", (alert_id,))
        if not rows:
            return None
        before, after, segments = map(json.loads, rows[0])
        return AlertSample(tuple(before), tuple(after), tuple(SegmentCounts(**one) for one in segments))

    def _money(self, affected: int, decisions: Sequence[Mapping[str, Any]]) -> int | None:
        converted = [self.minor(one["amount_minor"], one["currency"], one["event_time_ms"]) for one in decisions]
        # A currency without a rate does not count.
        amounts = [amount for amount in converted if amount is not None]
        return round(affected * sum(amounts) / len(amounts)) if amounts else None


def _ids(decisions: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps([one["payment_id"] for one in decisions[:_SHOWN]])
