"""Old and new readers of every topic's schema against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.avro import TOPICS, Decoder, Encoder, LocalSchemaIds, Schema, fingerprint, parsed, schema_text
from paywarden.schemas.errors import InvalidEvent
from tests.unit.schemas.strategies import records

# A topic, as far as a change can make another schema of it.
Fields = list[dict[str, Any]]
ADDED = {"name": "added_later", "type": ["null", "string"], "default": None}
LAST = 1_000


def changed(topic: str, change: Callable[[Fields], object]) -> Schema:
    schema = json.loads(schema_text(topic))
    change(schema["fields"])
    return parsed(json.dumps(schema))


@cache
def today(topic: str) -> Schema:
    return parsed(schema_text(topic))


@cache
def records_of_today(topic: str) -> st.SearchStrategy[dict[str, Any]]:
    return records(today(topic))


@cache
def with_a_field(topic: str, place: int) -> tuple[Schema, st.SearchStrategy[dict[str, Any]]]:
    """Returns today's schema with ADDED at this place, or at the end, and its records."""
    newer = changed(topic, lambda fields: fields.insert(place, ADDED))
    return newer, records(newer)


@cache
def with_fields_sorted(topic: str) -> tuple[Schema, st.SearchStrategy[dict[str, Any]]]:
    def named_types_stay_first(fields: Fields) -> None:
        fields.sort(key=lambda field: (isinstance(field["type"], str), field["name"]))
        if topic == "drift-alerts":  # current_histogram names the type reference_histogram defines
            names = [field["name"] for field in fields]
            fields.insert(0, fields.pop(names.index("reference_histogram")))

    reordered = changed(topic, named_types_stay_first)
    return reordered, records(reordered)


@cache
def without_a_field(topic: str) -> tuple[str, Schema, st.SearchStrategy[dict[str, Any]]]:
    gone = next(field["name"] for field in json.loads(schema_text(topic))["fields"] if "default" not in field)
    poorer = changed(topic, lambda fields: fields.pop([field["name"] for field in fields].index(gone)))
    return gone, poorer, records(poorer)


def passed_on(topic: str, record: dict[str, Any], *, writer: Schema, reader: Schema) -> dict[str, Any]:
    value = Encoder(topic, fingerprint(writer), schema=writer).encode(record)
    return Decoder(topic, LocalSchemaIds(past=[writer]), schema=reader).decode(value)


@given(topic=st.sampled_from(TOPICS), data=st.data())
def test_a_newer_reader_fills_in_the_default_of_an_added_field(topic: str, data: st.DataObject) -> None:
    record = data.draw(records_of_today(topic))
    newer, _ = with_a_field(topic, LAST)
    assert passed_on(topic, record, writer=today(topic), reader=newer) == record | {"added_later": None}


@given(topic=st.sampled_from(TOPICS), data=st.data(), place=st.integers(0, 3))
def test_todays_reader_skips_a_field_added_later(topic: str, data: st.DataObject, place: int) -> None:
    newer, its_records = with_a_field(topic, place)
    record = data.draw(its_records)
    expected = {name: value for name, value in record.items() if name != "added_later"}
    assert passed_on(topic, record, writer=newer, reader=today(topic)) == expected


@given(topic=st.sampled_from(TOPICS), data=st.data())
def test_the_order_of_fields_may_change(topic: str, data: st.DataObject) -> None:
    reordered, its_records = with_fields_sorted(topic)
    record = data.draw(its_records)
    assert passed_on(topic, record, writer=reordered, reader=today(topic)) == record


@given(topic=st.sampled_from(TOPICS), data=st.data())
def test_a_writer_without_a_required_field_is_refused(topic: str, data: st.DataObject) -> None:
    gone, poorer, its_records = without_a_field(topic)
    record = data.draw(its_records)
    with pytest.raises(InvalidEvent, match=f"cannot be read as today's: No default value for field {gone}"):
        passed_on(topic, record, writer=poorer, reader=today(topic))


def test_a_field_of_another_type_is_refused() -> None:
    def amounts_become_words(fields: Fields) -> None:
        next(field for field in fields if field["name"] == "amount_minor")["type"] = "string"

    writer = changed("payments", amounts_become_words)
    record = {
        "payment_id": "p", "event_time_ms": 1, "card_id": "c", "merchant_id": "m", "amount_minor": "ten",
        "currency": "EUR",
    }  # fmt: skip
    with pytest.raises(InvalidEvent, match="cannot be read as today's"):
        passed_on("payments", record, writer=writer, reader=today("payments"))


def test_a_symbol_that_the_current_enum_lacks_is_refused() -> None:
    def third_label(fields: Fields) -> None:
        next(field for field in fields if field["name"] == "label")["type"]["symbols"].append("disputed")

    writer = changed("outcomes", third_label)
    known = {"payment_id": "p", "outcome_time_ms": 1, "label": "fraud", "source": None}
    assert passed_on("outcomes", known, writer=writer, reader=today("outcomes")) == known
    with pytest.raises(InvalidEvent, match="disputed not found"):
        passed_on("outcomes", known | {"label": "disputed"}, writer=writer, reader=today("outcomes"))


def test_a_writers_logical_type_does_not_change_what_we_read() -> None:
    # fastavro would hand out a datetime where today's schema promises a long.
    def times_become_timestamps(fields: Fields) -> None:
        time = next(field for field in fields if field["name"] == "outcome_time_ms")
        time["type"] = {"type": "long", "logicalType": "timestamp-millis"}

    writer = changed("outcomes", times_become_timestamps)
    record = {"payment_id": "p", "outcome_time_ms": 2**62, "label": "fraud", "source": None}
    assert passed_on("outcomes", record, writer=writer, reader=today("outcomes")) == record


def test_two_records_do_not_share_a_default_list() -> None:
    # fastavro gives every record the schema's own list: what one reader appends, the next one reads.
    poorer = changed("dead-letters", lambda fields: fields.pop([f["name"] for f in fields].index("headers")))
    value = Encoder("dead-letters", 1, schema=poorer)
    record = {"topic": "t", "partition": 0, "offset": 1, "reason": "r", "failed_time_ms": 2}
    decoder = Decoder("dead-letters", _Only(poorer))
    decoder.decode(value.encode(record))["headers"].append("mine")
    assert decoder.decode(value.encode(record))["headers"] == []


def test_no_default_is_one_that_fastavro_would_return_as_text() -> None:
    # A bytes default is text in a schema, and fastavro 1.13 does not turn it back into bytes.
    for topic in TOPICS:
        for field in today(topic)["fields"]:
            first = field["type"][0] if isinstance(field["type"], list) else field["type"]
            assert not (first == "bytes" and "default" in field), f"{topic}.{field['name']}"


class _Only:
    """Every id is the one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def id_of(self, topic: str) -> int:
        raise AssertionError(topic)

    def current_schema(self, topic: str) -> Schema:
        return today(topic)

    def schema_of(self, schema_id: int) -> Schema:
        del schema_id
        return self._schema
