"""Schemas that a topic remembers: hostile ones are refused once, odd keys are left out."""

from __future__ import annotations

import json

import pytest

from paywarden.schemas.avro import writer_schema
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.schemas import registry
from paywarden.streams.kafka.schemas.registry import FingerprintSchemaIds
from paywarden.streams.kafka.schemas.remembered_schemas import KafkaRememberedSchemas, MemoryRememberedSchemas
from tests.patience import PATIENCE_S
from tests.unit.schemas.test_schema_limits import HOSTILE, payment_with

GOOD = json.dumps(payment_with("string"))


def test_a_flood_of_records_of_a_refused_schema_reads_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(text: str) -> object:
        read.append(text)
        return writer_schema(text)

    monkeypatch.setattr(registry, "writer_schema", counted)
    hostile = json.dumps(payment_with(HOSTILE["arrays nested 600 deep"]))
    remembered = MemoryRememberedSchemas({7: hostile})
    ids = FingerprintSchemaIds(remembered)
    for _ in range(5):
        with pytest.raises(InvalidEvent, match="types inside each other"):
            ids.schema_of(7)
    assert len(read) == 1
    # A person repairs the topic.
    remembered.add({7: GOOD})
    assert ids.schema_of(7)["name"].endswith("Payment")


def test_tombstones_and_keys_that_are_no_ids_are_left_out() -> None:
    broker = EmbeddedBroker()
    kafka = KafkaSettings(bootstrap=broker.bootstrap)
    sender = Sender(kafka, linger_ms=0)
    records: list[tuple[bytes | None, bytes | None]] = [
        (b"7", GOOD.encode()),
        (b"8", GOOD.encode()),
        (b"8", None),
        (b"9" * 5_000, GOOD.encode()),
        ("\u0661".encode(), GOOD.encode()),
        (b"-1", GOOD.encode()),
        (None, GOOD.encode()),
        (b"9", b"\xff\xfe no text"),
    ]
    for key, value in records:
        sender.send("schemas", value, key=key, partition=0)
    sender.flush(PATIENCE_S)
    remembered = KafkaRememberedSchemas(kafka)
    assert remembered.read().keys() == {7, 9}
    with pytest.raises(InvalidEvent, match="no JSON"):
        FingerprintSchemaIds(remembered).schema_of(9)
    broker.close()
