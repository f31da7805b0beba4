"""Drift detection's two topics in Kafka: it writes alerts and reads acknowledgements."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from paywarden.schemas.avro import SchemaIds
from paywarden.schemas.errors import TemporaryFailure
from paywarden.streams.alerts.alert_records import Acknowledgement, AlertSender
from paywarden.streams.alerts.alerts import Alert
from paywarden.streams.alerts.journal import JournalReader
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender

_log = logging.getLogger(__name__)

_FLUSH_TIMEOUT_S = 30.0
# The topic is read whole each time, and after an outage many blocks are evaluated in a row.
_READ_EVERY_S = 30.0


class KafkaAlerts:
    """An AlertTeller: collects alerts and sends them together."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds) -> None:
        self._kafka, self._ids = kafka, ids
        self._waiting: list[dict[str, Any]] = []

    def send(self, _: Alert, record: dict[str, Any]) -> None:
        """Queue an alert."""
        self._waiting.append(record)

    def flush(self) -> None:
        """Return once all queued alerts are on the topic. Raises BrokerUnavailable: queue and send them again."""
        waiting, self._waiting = self._waiting, []
        # Alerts are rare, and a sender that has failed once keeps failing, so each flush makes a new one.
        sender = Sender(self._kafka, linger_ms=0)
        alerts = AlertSender(sender, self._kafka, self._ids)
        for record in waiting:
            alerts.send(record)
        sender.flush(_FLUSH_TIMEOUT_S)


class KafkaAcknowledgements:
    """Returns all acknowledgements on the topic, at most 30 s old. While Kafka is away, it returns the last ones."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds, now_s: Callable[[], float] = time.monotonic) -> None:
        self._kafka, self._ids, self._now_s = kafka, ids, now_s
        self._known: Sequence[Acknowledgement] = ()
        self._read_at: float | None = None

    def __call__(self) -> Sequence[Acknowledgement]:
        now = self._now_s()
        if self._read_at is None or now - self._read_at >= _READ_EVERY_S:
            self._read_at = now
            try:
                with closing(JournalReader(self._kafka, self._ids)) as reader:
                    self._known = reader.acknowledgements()
            except TemporaryFailure as error:
                _log.warning("acknowledgements of drift alerts cannot be read now: %s", error)
        return self._known
