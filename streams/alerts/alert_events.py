"""Events of people's acts on alerts, cases and drafts, on the topic console-events.

The terminal and the console write the same events, and both read all of them. Acknowledgements and snoozes have a topic
of their own, drift-acknowledgements, because the stream acts on them.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from paywarden.schemas.avro import Decoder, Encoder, SchemaIds
from paywarden.streams.alerts.alert_records import (
    ACKNOWLEDGEMENTS_TOPIC,
    ONLY_PARTITION,
    Acknowledgement,
)
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender

EVENTS_TOPIC: Final = "console-events"
ASSIGNED: Final = "assigned"
COMMENTED: Final = "commented"
# A person waits for the result, so an outage must show soon.
_FLUSH_TIMEOUT_S = 8.0


@dataclass(frozen=True)
class ConsoleEvent:
    """One event. `subject` is `alert:ID`, `case:ID`, `payment:ID` or `note:HASH`; `what` has the rest by name."""

    subject: str
    kind: str
    by: str
    time_ms: int
    what: Mapping[str, str] = field(default_factory=dict)
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def to_record(self) -> dict[str, Any]:
        """Returns the record of the topic."""
        return {
            "event_id": self.event_id,
            "time_ms": self.time_ms,
            "by": self.by,
            "subject": self.subject,
            "kind": self.kind,
            "what": dict(self.what),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> ConsoleEvent:
        """Returns the event of a decoded record."""
        return cls(
            record["subject"], record["kind"], record["by"], record["time_ms"], record["what"], record["event_id"]
        )


def alert_subject(alert_id: str) -> str:
    """Returns the subject of events about an alert."""
    return f"alert:{alert_id}"


def event_decoder(ids: SchemaIds) -> Decoder:
    """Returns the decoder of the topic."""
    return Decoder(EVENTS_TOPIC, ids)


class EventWriter:
    """Writes events and acknowledgements. Thread-safe."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds) -> None:
        """Talks to nobody yet."""
        self._kafka = kafka
        self._events = Encoder(EVENTS_TOPIC, ids.id_of(EVENTS_TOPIC))
        self._acknowledgements = Encoder(ACKNOWLEDGEMENTS_TOPIC, ids.id_of(ACKNOWLEDGEMENTS_TOPIC))
        self._sender: Sender | None = None
        self._lock = threading.Lock()

    def write(self, event: ConsoleEvent | Acknowledgement) -> None:
        """Returns once the event is on its topic. Raises BrokerUnavailable: it may be there or not."""
        if isinstance(event, ConsoleEvent):
            topic, key, value = EVENTS_TOPIC, event.subject, self._events.encode(event.to_record())
        else:
            topic, key, value = (
                ACKNOWLEDGEMENTS_TOPIC,
                event.alert_id,
                self._acknowledgements.encode(event.to_record()),
            )
        with self._lock:
            # A sender that has failed once keeps failing.
            sender, self._sender = self._sender or Sender(self._kafka, linger_ms=0), None
            sender.send(self._kafka.topic(topic), value, key=key.encode(), partition=ONLY_PARTITION)
            sender.flush(_FLUSH_TIMEOUT_S)
            self._sender = sender
