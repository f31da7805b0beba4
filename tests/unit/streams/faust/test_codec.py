"""Avro values as Faust sees them: nothing raises in its loop, and nothing waits there for a schema registry."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from paywarden.schemas.avro import Encoder, LocalSchemaIds, Schema
from paywarden.schemas.errors import InvalidEvent, TemporaryFailure
from paywarden.streams.faust import codec as avro_codec
from paywarden.streams.faust.codec import AvroCodec, Undecodable, Unread

OUTCOME: Mapping[str, Any] = {"payment_id": "p", "label": "fraud", "outcome_time_ms": 1}
OTHER_ID = 77


class FakeRegistry(LocalSchemaIds):
    """Knows outcomes as 77 as well, after some calls during which it is away. Notes the thread of each call."""

    def __init__(self, away_for: int = 0) -> None:
        super().__init__()
        self.away_for = away_for
        self.asked_in: list[threading.Thread] = []

    def schema_of(self, schema_id: int) -> Schema:
        self.asked_in.append(threading.current_thread())
        if schema_id != OTHER_ID:
            return super().schema_of(schema_id)
        if self.away_for:
            self.away_for -= 1
            raise TemporaryFailure("away")
        return super().schema_of(self.id_of("outcomes"))


def outcome(schema_id: int) -> bytes:
    return Encoder("outcomes", schema_id).encode(OUTCOME)


def read(codec: AvroCodec, value: bytes) -> dict[str, Any] | Undecodable:
    return asyncio.run(codec.record(codec.loads(value)))


def test_a_value_of_todays_schema_is_read_at_once() -> None:
    ids = FakeRegistry()
    codec = AvroCodec("outcomes", ids)
    asked = len(ids.asked_in)
    decoded = codec.loads(outcome(ids.id_of("outcomes")))
    assert decoded["payment_id"] == "p"
    assert len(ids.asked_in) == asked


@pytest.mark.parametrize("value", [b"", b"\x00", b"not avro", b"\x00\x00\x00\x00\x01rest"])
def test_undecodable_bytes_become_a_value_and_not_an_error(value: bytes) -> None:
    assert isinstance(read(AvroCodec("outcomes", FakeRegistry()), value), Undecodable)


def test_a_record_without_value_is_undecodable() -> None:
    codec = AvroCodec("outcomes", FakeRegistry())
    assert asyncio.run(codec.record(None)) == Undecodable("the record has no value")


def test_a_new_schema_is_asked_for_once_and_never_in_the_event_loop() -> None:
    ids = FakeRegistry()
    codec = AvroCodec("outcomes", ids)
    ids.asked_in.clear()
    assert isinstance(codec.loads(outcome(OTHER_ID)), Unread)
    assert ids.asked_in == []
    for _ in range(2):
        record = read(codec, outcome(OTHER_ID))
        assert isinstance(record, dict)
        assert record["payment_id"] == "p"
    assert len(ids.asked_in) == 1
    assert ids.asked_in[0] is not threading.main_thread()


def test_the_codec_waits_while_the_registry_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro_codec, "_RETRY_S", 0.01)
    codec = AvroCodec("outcomes", FakeRegistry(away_for=3))
    assert isinstance(read(codec, outcome(OTHER_ID)), dict)


def test_no_repr_shows_the_bytes_of_a_value() -> None:
    assert "secret" not in repr(Unread(b"secret"))


def test_the_codec_asks_for_its_own_schema_first() -> None:
    class Refusing(LocalSchemaIds):
        def schema_of(self, schema_id: int) -> Schema:
            raise InvalidEvent(f"unknown schema id {schema_id}")

    with pytest.raises(InvalidEvent):
        AvroCodec("outcomes", Refusing())
