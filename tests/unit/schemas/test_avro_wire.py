from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.schemas.avro import TOPICS, Decoder, Encoder, LocalSchemaIds, Schema, parsed, topic_schema
from paywarden.schemas.errors import InvalidEvent
from tests.unit.schemas.strategies import EXAMPLES, records

IDS = LocalSchemaIds()
ENCODERS = {topic: Encoder(topic, IDS.id_of(topic)) for topic in TOPICS}
DECODERS = {topic: Decoder(topic, IDS) for topic in TOPICS}
RECORDS = {topic: records(topic_schema(topic)) for topic in TOPICS}
SECRET = "tok-4111111111111111"
PAYMENT = {
    "payment_id": "p-1",
    "event_time_ms": 1_700_000_000_000,
    "card_id": SECRET,
    "merchant_id": "m-1",
    "device_id": None,
    "ip": None,
    "amount_minor": 1050,
    "currency": "EUR",
    "mcc": None,
    "country": "DE",
    "channel": "ecom",
    "utc_offset_minutes": None,
    "declined": None,
}
PROFILE = {"entity": "card", "state": b"\x01\x02", "written_time_ms": 5, "complete_to_time_ms": None}
DEAD_LETTER = {"topic": "payments", "partition": 3, "offset": 9, "reason": "no", "failed_time_ms": 1}


def long_bytes(number: int) -> bytes:
    """Avro's own encoding of a long."""
    number = (number << 1) ^ (number >> 63)
    out = b""
    while number & ~0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def refused(topic: str, value: bytes) -> str:
    with pytest.raises(InvalidEvent) as caught:
        DECODERS[topic].decode(value)
    return str(caught.value)


def not_written(topic: str, record: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        ENCODERS[topic].encode(record)
    assert SECRET not in str(caught.value)
    return caught.value


def test_a_value_is_the_magic_byte_the_id_and_the_avro_body() -> None:
    value = Encoder("outcomes", 0x01020304).encode(
        {"payment_id": "ab", "outcome_time_ms": 3, "label": "genuine", "source": None}
    )
    assert value == b"\x00\x01\x02\x03\x04" + b"\x04ab" + b"\x06" + b"\x02" + b"\x00"


@pytest.mark.parametrize("topic", TOPICS)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_a_record_is_read_as_it_was_written(topic: str, data: st.DataObject) -> None:
    record = data.draw(RECORDS[topic])
    assert DECODERS[topic].decode(ENCODERS[topic].encode(record)) == record


def test_fields_left_out_take_their_defaults() -> None:
    value = ENCODERS["payments"].encode({k: v for k, v in PAYMENT.items() if v is not None})
    assert DECODERS["payments"].decode(value) == PAYMENT


def test_numpy_numbers_are_numbers() -> None:
    record = PAYMENT | {"amount_minor": np.int64(7)}
    assert DECODERS["payments"].decode(ENCODERS["payments"].encode(record)) == PAYMENT | {"amount_minor": 7}


@given(value=st.binary(max_size=60), topic=st.sampled_from(TOPICS))
def test_any_value_is_a_record_or_refused(value: bytes, topic: str) -> None:
    try:
        DECODERS[topic].decode(value)
    except InvalidEvent:
        return


_DAMAGE = st.one_of(
    st.binary(max_size=12),
    # The longest lengths and counts a varint can say, and ones that say more than 64 bits.
    st.sampled_from([b"\xff" * 9 + b"\x01", b"\xfe" + b"\xff" * 8 + b"\x01", b"\x80" * 8 + b"\x7e", b"\xff" * 20]),
)


@given(topic=st.sampled_from(TOPICS), data=st.data(), damage=_DAMAGE)
def test_a_damaged_record_is_a_record_or_refused(topic: str, data: st.DataObject, damage: bytes) -> None:
    value = ENCODERS[topic].encode(data.draw(RECORDS[topic]))
    start = data.draw(st.integers(5, len(value)))
    end = data.draw(st.integers(start, len(value)))
    try:
        record = DECODERS[topic].decode(value[:start] + damage + value[end:])
    except InvalidEvent:
        return
    assert record.keys() == {field["name"] for field in topic_schema(topic)["fields"]}


@given(topic=st.sampled_from(TOPICS), data=st.data())
def test_a_record_cut_short_anywhere_is_refused(topic: str, data: st.DataObject) -> None:
    value = ENCODERS[topic].encode(data.draw(RECORDS[topic]))
    length = data.draw(st.integers(0, len(value) - 1))
    assert ("too short" if length < 5 else "truncated body") in refused(topic, value[:length])


def test_trailing_bytes_are_refused_and_counted() -> None:
    assert refused("profiles", ENCODERS["profiles"].encode(PROFILE) + b"xyz").startswith("trailing bytes: 3")


def test_a_wrong_magic_byte_is_named() -> None:
    assert refused("profiles", b"{" + ENCODERS["profiles"].encode(PROFILE)[1:]) == (
        "wrong magic byte: wanted 0, got 123"
    )


def test_an_unknown_schema_id_is_named() -> None:
    assert refused("payments", Encoder("payments", 77).encode(PAYMENT)) == "unknown schema id 77"


def test_a_record_of_another_topic_is_refused() -> None:
    message = refused("payments", ENCODERS["profiles"].encode(PROFILE))
    assert message.endswith("is paywarden.v1.Profile, wanted paywarden.v1.Payment")


def test_a_string_that_is_not_utf8_is_refused() -> None:
    value = ENCODERS["payments"].encode(PAYMENT).replace(b"tok-", b"\xff\xff\xff\xff")
    assert refused("payments", value) == "a string in the body is not UTF-8"


def test_an_index_beyond_an_enum_is_refused() -> None:
    header = b"\x00" + IDS.id_of("outcomes").to_bytes(4, "big")
    body = b"\x02p" + long_bytes(5) + long_bytes(9) + long_bytes(0)
    assert "index" in refused("outcomes", header + body)


@pytest.mark.parametrize("length", [2**31, 2**40, 2**62, 2**63 - 1, -1, -(2**63)])
def test_an_absurd_length_is_refused_at_once(length: int) -> None:
    header = b"\x00" + IDS.id_of("payments").to_bytes(4, "big")
    assert "truncated body" in refused("payments", header + long_bytes(length) + b"abc")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"card_id": 5}, "card_id"),
        ({"card_id": None}, "card_id"),
        ({"card_id": SECRET.encode()}, "card_id"),
        ({"ip": 5}, "ip"),
        ({"ip": ("string", "1.2.3.4")}, "ip"),
        ({"amount_minor": SECRET}, "amount_minor"),
        ({"amount_minor": None}, "amount_minor"),
        # fastavro would write these three as 10, 10 and 1.
        ({"amount_minor": 10.5}, "amount_minor"),
        ({"amount_minor": Decimal("10.5")}, "amount_minor"),
        ({"amount_minor": True}, "amount_minor"),
        ({"amount_minor": 2**63}, "amount_minor"),
        ({"surprise": SECRET}, "surprise"),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    assert not_written("payments", PAYMENT | change).field == field


@pytest.mark.parametrize("name", ["payment_id", "amount_minor", "currency"])
def test_a_missing_field_is_refused_by_name(name: str) -> None:
    error = not_written("payments", {k: v for k, v in PAYMENT.items() if k != name})
    assert str(error) == f"{name}: is missing"


def test_the_error_about_an_enum_lists_its_symbols() -> None:
    error = not_written("outcomes", {"payment_id": "p", "outcome_time_ms": 1, "label": SECRET})
    assert str(error) == "label: wanted one of fraud, genuine, got str"


def test_a_wrong_field_inside_a_field_is_refused() -> None:
    error = not_written("dead-letters", DEAD_LETTER | {"headers": [{"name": 5, "value": SECRET.encode()}]})
    assert "wanted string, got int" in str(error)


def test_a_string_that_utf8_cannot_hold_is_refused() -> None:
    assert "UTF-8" in str(not_written("payments", PAYMENT | {"merchant_id": "\ud800"}))


@pytest.mark.parametrize("record", [None, 5, [PAYMENT], SECRET])
def test_a_value_that_is_no_record_is_refused(record: Any) -> None:
    assert "wanted a mapping" in str(not_written("payments", record))


def test_a_refusal_carries_no_cause_that_quotes_the_payload() -> None:
    error = not_written("payments", PAYMENT | {"ip": [SECRET]})
    assert error.__cause__ is None
    assert error.__suppress_context__


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid Avro"),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": "nothing"}]}', "not valid Avro"),
        ('"string"', "not that of a record"),
        ('["null", "string"]', "not that of a record"),
    ],
)
def test_a_text_that_is_no_schema_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidEvent, match=reason):
        parsed(text)


def _with_field(kind: Any) -> str:
    return json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": kind}]})


def test_a_schema_that_contains_itself_is_refused() -> None:
    # One megabyte of such a record's nesting ends the process: the decoder recurses in C.
    with pytest.raises(InvalidEvent, match="contains itself: R"):
        parsed(_with_field(["null", {"type": "array", "items": "R"}]))


@pytest.mark.parametrize(
    "items",
    [
        "null",
        {"type": "null"},
        {"type": "fixed", "name": "F", "size": 0},
        {"type": "record", "name": "E", "fields": []},
        {"type": "record", "name": "E", "fields": [{"name": "n", "type": "null"}]},
    ],
)
def test_a_schema_whose_array_items_take_no_bytes_is_refused(items: Any) -> None:
    # Nine bytes could ask for 2**62 of them.
    with pytest.raises(InvalidEvent, match="take no bytes"):
        parsed(_with_field(["null", {"type": "array", "items": items}]))


def test_a_schema_may_use_a_name_twice() -> None:
    inner = {"type": "record", "name": "I", "fields": [{"name": "x", "type": "int"}]}
    fields = [{"name": "a", "type": inner}, {"name": "b", "type": {"type": "array", "items": "I"}}]
    assert parsed(json.dumps({"type": "record", "name": "R", "fields": fields}))["name"] == "R"


def test_a_decoder_asks_for_a_schema_once() -> None:
    asked: list[int] = []

    class Counting(LocalSchemaIds):
        def schema_of(self, schema_id: int) -> Schema:
            asked.append(schema_id)
            return super().schema_of(schema_id)

    decoder = Decoder("payments", Counting())
    for _ in range(3):
        decoder.decode(ENCODERS["payments"].encode(PAYMENT))
    assert asked == [IDS.id_of("payments")]
