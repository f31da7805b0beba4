"""Reads drift alerts from their topics: the newest state of each alert, its earlier states, and who has seen it.

Both topics are small and have one partition. They are read whole each time. The result is therefore correct after any
restart, and needs no stream worker to be up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer

from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.streams.alerts.alert_records import (
    ACKNOWLEDGEMENTS_TOPIC,
    ALERTS_TOPIC,
    Acknowledgement,
)
from paywarden.streams.alerts.alerts import State
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.reading import Record, make_consumer, records_to_end

CLEARED_MS = 7 * 86_400_000
"""Lists of open alerts also show alerts that cleared this long ago."""

# A shorter prefix of an alert's id could too easily name another alert.
_PREFIX_MIN = 4


@dataclass
class KnownAlert:
    """One alert: its newest record, the states it was in, and its acknowledgements, the oldest first.

    The record of an alert that has cleared is its last open one, with the state and time of its end: it shows what it
    was.
    """

    record: dict[str, Any]
    states: list[tuple[int, str, str, str]] = field(default_factory=list)
    acknowledgements: list[Acknowledgement] = field(default_factory=list)

    @property
    def alert_id(self) -> str:
        return str(self.record["alert_id"])

    @property
    def is_open(self) -> bool:
        return str(self.record["state"]) != State.CLEARED

    @property
    def acknowledged_by(self) -> str:
        """The last person who acknowledged it; empty if nobody has."""
        return self.acknowledgements[-1].by if self.acknowledgements else ""

    @property
    def snoozed_until_ms(self) -> int:
        """The end of the longest snooze, epoch ms; 0 if it was never snoozed."""
        return max((acknowledgement.until_ms for acknowledgement in self.acknowledgements), default=0)


@dataclass
class Journal:
    """All alerts by id, in the order they were raised. `unreadable`: how many records could not be decoded."""

    alerts: dict[str, KnownAlert] = field(default_factory=dict)
    unreadable: int = 0

    def take_alert(self, record: dict[str, Any]) -> None:
        """Take the next record of drift-alerts. A repeated record counts once."""
        state = (record["time_ms"], record["state"], record["severity"], record["subject"])
        alert = self.alerts.get(record["alert_id"])
        if alert is None:
            alert = self.alerts[record["alert_id"]] = KnownAlert(record)
        if state in alert.states:
            return
        alert.states.append(state)
        end = {name: record[name] for name in ("state", "time_ms")}
        alert.record = record if record["state"] != State.CLEARED else {**alert.record, **end}

    def take_acknowledgement(self, acknowledgement: Acknowledgement) -> None:
        """Take the next of drift-acknowledgements. It is ignored if its alert has expired."""
        alert = self.alerts.get(acknowledgement.alert_id)
        if alert is not None:
            alert.acknowledgements.append(acknowledgement)

    def open(self) -> list[KnownAlert]:
        """Return the alerts that have not cleared, the worst first, then the oldest."""
        severities = ("critical", "warning", "info")
        return sorted(
            (alert for alert in self.alerts.values() if alert.is_open),
            key=lambda alert: (severities.index(alert.record["severity"]), alert.states[0][0], alert.alert_id),
        )

    def cleared(self, since_ms: int) -> list[KnownAlert]:
        """Return the alerts that have cleared since a time, the latest first."""
        since = [one for one in self.alerts.values() if not one.is_open and one.record["time_ms"] >= since_ms]
        return sorted(since, key=lambda alert: (-alert.record["time_ms"], alert.alert_id))

    def find(self, text: str) -> KnownAlert:
        """Return the alert with this id, or the only one whose id begins with it. Raises Misconfigured."""
        if text in self.alerts:
            return self.alerts[text]
        matches = [alert for alert_id, alert in self.alerts.items() if alert_id.startswith(text)]
        if len(text) < _PREFIX_MIN or not matches:
            raise Misconfigured(f"there is no alert {text!r}: `paywarden drift status --all` lists them")
        if len(matches) > 1:
            raise Misconfigured(f"{text!r} begins the ids of {len(matches)} alerts: give more of it")
        return matches[0]


class JournalReader:
    """Reads both topics. It joins no group and commits nothing. `close` it."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds) -> None:
        """Raises BrokerUnavailable, or Misconfigured when a topic is missing."""
        self._kafka = kafka
        self._partitions = {topic: partitions_of(kafka, topic) for topic in (ALERTS_TOPIC, ACKNOWLEDGEMENTS_TOPIC)}
        self._consumer: Consumer = make_consumer(kafka, group_id="paywarden-drift")
        self._alerts = Decoder(ALERTS_TOPIC, ids)
        self._acknowledgements = Decoder(ACKNOWLEDGEMENTS_TOPIC, ids)

    def read(self) -> Journal:
        """Return all alerts as of now. Raises BrokerUnavailable, TemporaryFailure if a schema could not be read."""
        journal = Journal()
        for record in self._records(ALERTS_TOPIC):
            try:
                journal.take_alert(self._alerts.decode(record.value or b""))
            except InvalidEvent:
                journal.unreadable += 1
        for acknowledgement in self._said():
            if acknowledgement is None:
                journal.unreadable += 1
            else:
                journal.take_acknowledgement(acknowledgement)
        return journal

    def acknowledgements(self) -> list[Acknowledgement]:
        """Return all acknowledgements as of now, the oldest first. Raises as `read` does."""
        return [acknowledgement for acknowledgement in self._said() if acknowledgement is not None]

    def _said(self) -> Iterable[Acknowledgement | None]:
        """Yield each acknowledgement, and None for a record that cannot be decoded."""
        for record in self._records(ACKNOWLEDGEMENTS_TOPIC):
            try:
                yield Acknowledgement.of_record(self._acknowledgements.decode(record.value or b""))
            except InvalidEvent:
                yield None

    def close(self) -> None:
        self._consumer.close()

    def _records(self, topic: str) -> Iterable[Record]:
        for records in records_to_end(self._consumer, self._kafka.topic(topic), self._partitions[topic]):
            yield from records
