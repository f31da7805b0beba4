"""The schema of payments with the fields that a project declares."""

from __future__ import annotations

import json
from typing import Any

import pytest

from paywarden.features.catalogue import fields as words
from paywarden.schemas.avro import TOPICS, Decoder, Encoder, LocalSchemaIds, parsed, schema_text, schema_versions
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.payment_fields import FIELDS, PaymentFields
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.schemas.registry import FingerprintSchemaIds
from paywarden.streams.kafka.schemas.remembered_schemas import MemoryRememberedSchemas
from paywarden.streams.kafka.schemas.schema_listing import listed_schemas

WEIGHT = words.decimal("weight", 7, unit="kg", least=0, most=500)
CUSTOMER = words.text("customer", 2, required=True, personal=True)
MAIL = words.email("mail", 4)
DECLARED = words.Payment(
    WEIGHT, CUSTOMER, MAIL, words.email_domain("domain", 5, of=MAIL), words.flag("gift", 3), words.money("tip", 9)
).fields
LATER = words.Payment(CUSTOMER, words.integer("days", 1, unit="days")).fields
USUAL = {
    "payment_id": "p", "event_time_ms": 5, "card_id": "c", "merchant_id": "m", "amount_minor": 1, "currency": "EUR",
}  # fmt: skip
OWN = {"customer": "k-1", "gift": True, "mail": "a@b.c", "weight": 1.5, "tip": 7}


def encoder_of(ids: LocalSchemaIds | FingerprintSchemaIds) -> Encoder:
    return Encoder("payments", ids.id_of("payments"), schema=ids.current_schema("payments"))


def test_declared_fields_follow_the_others_by_number_and_may_be_null() -> None:
    fields: list[dict[str, Any]] = json.loads(schema_text("payments", DECLARED))["fields"]
    assert [field["name"] for field in fields] == [
        *(field.name for field in FIELDS),
        *("customer", "gift", "mail", "weight", "tip"),
    ]
    assert [field["type"] for field in fields[len(FIELDS) :]] == [
        ["null", kind] for kind in ("string", "boolean", "string", "double", "long")
    ]
    assert all(field["default"] is None for field in fields[len(FIELDS) :])
    docs = {field["name"]: field["doc"] for field in fields}
    assert docs["weight"] == "A number from 0 to 500, in kg."
    assert docs["customer"] == "Printable text of 1 to 256 bytes. Required. Personal."


def test_without_declared_fields_every_schema_is_that_of_its_file() -> None:
    remembered = MemoryRememberedSchemas()
    ids = FingerprintSchemaIds(remembered)
    assert remembered.read() == {}
    for topic in TOPICS:
        assert schema_text(topic, PaymentFields()) == schema_text(topic)
        assert ids.id_of(topic) == LocalSchemaIds().id_of(topic)
        if topic != "payments":
            assert LocalSchemaIds(fields=DECLARED).id_of(topic) == ids.id_of(topic)


def test_records_from_before_the_declaration_are_read() -> None:
    decoder = Decoder("payments", LocalSchemaIds(fields=DECLARED))
    value = encoder_of(LocalSchemaIds()).encode(USUAL)
    assert {name: decoder.decode(value)[name] for name in OWN} == dict.fromkeys(OWN)


def test_records_of_an_earlier_declaration_are_read_by_name() -> None:
    remembered = MemoryRememberedSchemas()
    value = encoder_of(FingerprintSchemaIds(remembered, DECLARED)).encode({**USUAL, **OWN})
    record = Decoder("payments", FingerprintSchemaIds(remembered, LATER)).decode(value)
    assert (record["customer"], record["days"]) == ("k-1", None)
    assert "weight" not in record
    without = Decoder("payments", FingerprintSchemaIds(remembered)).decode(value)
    assert without.keys() == {field.name for field in FIELDS}
    with pytest.raises(InvalidEvent, match="unknown schema id"):
        Decoder("payments", LocalSchemaIds(fields=LATER)).decode(value)


def test_a_schema_is_remembered_once_and_never_under_the_id_of_another() -> None:
    remembered = MemoryRememberedSchemas()
    own = FingerprintSchemaIds(remembered, DECLARED).id_of("payments")
    assert list(remembered.read()) == [own]
    assert parsed(remembered.read()[own]) == LocalSchemaIds(fields=DECLARED).current_schema("payments")
    FingerprintSchemaIds(remembered, DECLARED)
    with pytest.raises(Misconfigured, match=f"has the fingerprint {own}, which on these topics already means another"):
        FingerprintSchemaIds(MemoryRememberedSchemas({own: schema_text("payments")}), DECLARED)


def test_the_schema_of_a_declaration_is_listed_last_and_an_earlier_one_as_another() -> None:
    remembered = MemoryRememberedSchemas()
    earlier = FingerprintSchemaIds(remembered, LATER).id_of("payments")
    own = FingerprintSchemaIds(remembered, DECLARED).id_of("payments")
    listed = [one for one in listed_schemas(KafkaSettings(), remembered.read(), DECLARED) if one.topic == "payments"]
    releases = len(schema_versions("payments"))
    assert [one.version for one in listed] == [*range(1, releases + 2), None]
    assert [one.fingerprint for one in listed if one.is_current] == [own]
    assert (listed[-1].fingerprint, listed[-1].registry_ids) == (earlier, ())
    assert listed[-1].file == f"others/payments-{earlier}.avsc"
