"""Records of drift alerts as the topics have them, and a feed of them in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.alerts.alert_events import EVENTS_TOPIC, ConsoleEvent
from paywarden.streams.alerts.alert_records import (
    ACKNOWLEDGEMENTS_TOPIC,
    ALERTS_TOPIC,
    Acknowledgement,
    Histograms,
    record_of,
)
from paywarden.streams.alerts.alerts import Alert, MovedSignal, Severity, State
from paywarden.streams.alerts.feed import FEED_TOPICS, FeedBatch, FeedPosition, FeedRecord

NOW_MS = 1_760_000_000_000
_SEVERITIES = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)
_SUBJECTS = ("feature:amount", "score", "traffic", "flag:unknown_merchant", "profile_age", "recall")


def alert_record(number: int, *, state: State = State.RAISED, time_ms: int = NOW_MS, **changed: Any) -> dict[str, Any]:
    """Returns the record of an alert with the id `alert-NUMBER`; severity and subject go round with the number."""
    alert = Alert(
        alert_id=f"alert-{number:05d}", model_version="model-1", state=state,
        severity=changed.pop("severity", _SEVERITIES[number % 3]), time_ms=time_ms,
        first_seen_ms=NOW_MS - 600_000 - number, slack_ms=0, raised_ms=NOW_MS,
        subject=changed.pop("subject", _SUBJECTS[number % 6]), statistic="location",
        segment="country=BR" if number % 2 else "overall", length_ms=300_000, effect=0.5, effect_min=0.02, value=0.4,
        expected=0.5, count=1000, evidence=6.0 + number % 50, evidence_min=5.5, shift=-2.0,
        window_start_ms=NOW_MS - 300_000, window_end_ms=NOW_MS,
        attached=(
            MovedSignal("feature:amount_to_mean", "location", "country=BR", 0.2, -3.0),
            MovedSignal("score", "location", "overall", 0.1, 3.0),
        ),
    )  # fmt: skip
    histograms = Histograms(
        np.array([-np.inf, 10.0, 20.0, np.inf]), np.array([500, 400, 100]), np.array([250, 250, 450]), 0, 50
    )
    return {**record_of(alert, histograms=histograms, flags={"unknown_merchant": 0.25}), **changed}


class TopicsInMemory:
    """The three topics: a feed for the reader, and a writer whose acts come back."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Mapping[str, Any] | None]] = {topic: [] for topic in FEED_TOPICS}
        self.identity = "made-once"
        self.is_away = False
        self._next: dict[str, int] = {}
        self._idle = threading.Event()

    def put(self, *records: Mapping[str, Any] | None) -> None:
        """Append records of drift-alerts; None for one that cannot be decoded."""
        self.topics[ALERTS_TOPIC] += records

    def start(self, known: Mapping[str, FeedPosition]) -> set[str]:
        self._require()
        anew = {topic for topic in FEED_TOPICS if topic not in known or known[topic].identity != self.identity}
        self._next = {topic: 0 if topic in anew else known[topic].next_offset for topic in FEED_TOPICS}
        return anew

    def read(self) -> FeedBatch:
        """Returns what is new; as Kafka's client it waits a moment if nothing is. Others may write meanwhile."""
        self._require()
        now = {topic: list(values) for topic, values in self.topics.items()}
        records = [
            FeedRecord(topic, offset, value)
            for topic, values in now.items()
            for offset, value in enumerate(values)
            if offset >= self._next[topic]
        ]
        if not records:
            self._idle.wait(0.01)
        self._next = {topic: len(values) for topic, values in now.items()}
        positions = {topic: FeedPosition(self.identity, offset) for topic, offset in self._next.items()}
        return FeedBatch(tuple(records), positions, is_at_end=True)

    def close(self) -> None:
        pass

    def write(self, event: ConsoleEvent | Acknowledgement) -> None:
        self._require()
        topic = EVENTS_TOPIC if isinstance(event, ConsoleEvent) else ACKNOWLEDGEMENTS_TOPIC
        self.topics[topic].append(event.to_record())

    def _require(self) -> None:
        if self.is_away:
            raise BrokerUnavailable("no Kafka broker answers at 127.0.0.1:9092")


def kinds(records: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Returns the kind of each act."""
    return [str(record["kind"]) for record in records if record is not None]
