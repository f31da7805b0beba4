"""Acknowledgements are read from time to time, and remembered while Kafka is away."""

from __future__ import annotations

import pytest

from paywarden.schemas.avro import LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.alerts import publisher as drift_telling
from paywarden.streams.alerts.alert_records import Acknowledgement
from paywarden.streams.alerts.publisher import KafkaAcknowledgements
from paywarden.streams.kafka.client import KafkaSettings


class Reader:
    """A JournalReader that returns the acknowledgements in `said`."""

    said: list[Acknowledgement] = []  # noqa: RUF012 - the test's own, one at a time
    is_away = False
    reads = 0

    def __init__(self, *_: object) -> None:
        pass

    def acknowledgements(self) -> list[Acknowledgement]:
        Reader.reads += 1
        if Reader.is_away:
            raise BrokerUnavailable("away")
        return list(Reader.said)

    def close(self) -> None:
        pass


def test_acknowledgements_are_read_every_30_s_and_kept_while_kafka_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drift_telling, "JournalReader", Reader)
    clock = [0.0]
    known = KafkaAcknowledgements(KafkaSettings(), LocalSchemaIds(), lambda: clock[0])
    first, second = Acknowledgement("a", 1, "ana"), Acknowledgement("b", 2, "ben")
    Reader.said = [first]
    assert known() == [first]
    Reader.said = [first, second]
    clock[0] = 29.0
    assert (known(), Reader.reads) == ([first], 1)
    clock[0] = 30.0
    assert (known(), Reader.reads) == ([first, second], 2)
    Reader.is_away, clock[0] = True, 60.0
    assert known() == [first, second]
    assert "cannot be read now" in caplog.text
