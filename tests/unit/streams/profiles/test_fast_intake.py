"""The fast decoder and the slow one give the same payment or the same refusal for any bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX, ID_BYTES_MAX, TIME_MS_END, TIME_MS_MIN
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.decoder import TIMES, EventDecoder
from paywarden.streams.profiles.events import payments_source
from paywarden.streams.profiles.payment_columns import PaymentEvent, Position
from tests.worlds.small import small_world

NOW_MS = 1_720_000_000_000
IDS = LocalSchemaIds()
ENCODER = Encoder("payments", IDS.id_of("payments"))
card, merchant, pair = (
    Entity("card", key="card_id"),
    Entity("merchant", key="merchant_id"),
    Entity("pair", key=("card_id", "merchant_id")),
)
PAIRS = Catalogue(
    entities=(card, merchant, pair),
    features=(card.count("a", "1h"), merchant.count("b", "1h"), pair.count("c", "1h")),
)
ENGINES = {"usual": small_world.engine(), "pairs": FeatureEngine(PAIRS)}
INTAKES = {name: EventDecoder(engine, small_world.rates(), IDS) for name, engine in ENGINES.items()}

IDENTITIES = st.one_of(
    st.text("abcdefghij-0123456789", min_size=1, max_size=20),
    st.text(max_size=5),
    st.sampled_from(["", "a\x1fb", "ü", "x" * ID_BYTES_MAX, "x" * (ID_BYTES_MAX + 1), "\x00", "\x7f", ":"]),
    st.sampled_from(["4111111111111111", "4111 1111-11111111", "4111111111111112", "1" * 12, "1" * 13]),
)
TEXTS = (
    st.none()
    | st.sampled_from(["", "DE", "de", "D", "DEU", "D1", "ecom", "5411", "541", "54a1", "ÄÖ", "x" * 64, "x" * 65])
    | st.text(max_size=4)
)
LONGS = st.integers(-(2**63), 2**63 - 1)
ARRIVED_MS = NOW_MS - 1
TIMES_AT_BOUNDS = [
    *(0, 1, NOW_MS // 1000, TIME_MS_MIN - 1, TIME_MS_MIN, TIME_MS_END - 1, TIME_MS_END),
    *(ARRIVED_MS + bound + one for bound in (TIMES.future_ms_max, -TIMES.past_ms_max) for one in (-1, 0, 1)),
]
PAYMENTS = st.fixed_dictionaries(
    {
        "payment_id": IDENTITIES,
        "event_time_ms": st.one_of(st.just(NOW_MS), st.sampled_from(TIMES_AT_BOUNDS), LONGS),
        "card_id": IDENTITIES,
        "merchant_id": IDENTITIES,
        "device_id": st.none() | IDENTITIES,
        "ip": TEXTS,
        "amount_minor": st.one_of(st.integers(0, 10**6), st.sampled_from([-1, AMOUNT_MINOR_MAX + 1]), LONGS),
        "currency": st.sampled_from(["EUR", "JPY", "USD", "XXX", "", "€", "eur", "EURO"]),
        "mcc": TEXTS,
        "country": TEXTS,
        "channel": TEXTS,
        "utc_offset_minutes": st.none() | st.sampled_from([0, 60, -720, 1439, 1440, -1440, 2**31 - 1, -(2**31)]),
        "declined": st.none() | st.booleans(),
    }
)
USUAL: dict[str, Any] = {
    "payment_id": "p",
    "event_time_ms": NOW_MS,
    "card_id": "c",
    "merchant_id": "m",
    "amount_minor": 5,
    "currency": "EUR",
}


def record_of(value: bytes | None, offset: int = 7) -> Record:
    return Record("payments", 3, offset, b"k", value, ARRIVED_MS, ())


def one_by_one(intake: EventDecoder, records: list[Record]) -> list[PaymentEvent | str]:
    results: list[PaymentEvent | str] = []
    for record in records:
        position = Position(payments_source(record.partition), record.offset)
        try:
            results.append(intake.payment(record.value, position, record.timestamp_ms, NOW_MS))
        except InvalidEvent as error:
            results.append(str(error))
    return results


def together(intake: EventDecoder, records: list[Record]) -> list[PaymentEvent | str]:
    return [str(event) if isinstance(event, InvalidEvent) else event for event in intake.payments(records, NOW_MS)]


@pytest.mark.parametrize("engine", ENGINES)
@given(st.lists(PAYMENTS, max_size=6))
def test_payments_decoded_together_equal_those_decoded_one_by_one(engine: str, payments: list[dict[str, Any]]) -> None:
    records = [record_of(ENCODER.encode(payment), offset) for offset, payment in enumerate(payments)]
    assert together(INTAKES[engine], records) == one_by_one(INTAKES[engine], records)


@given(PAYMENTS, st.data())
def test_damaged_bytes_are_refused_and_spoil_no_other_payment(payment: dict[str, Any], data: st.DataObject) -> None:
    value = bytearray(ENCODER.encode(payment))
    match data.draw(st.sampled_from(["cut", "flip", "more", "none", "junk"])):
        case "cut":
            damaged: bytes | None = bytes(value[: data.draw(st.integers(0, len(value)))])
        case "flip":
            value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
            damaged = bytes(value)
        case "more":
            damaged = bytes(value) + data.draw(st.binary(min_size=1, max_size=3))
        case "none":
            damaged = None
        case _:
            damaged = bytes(value[:5]) + data.draw(st.binary(max_size=60))
    good = record_of(ENCODER.encode(USUAL))
    records = [good, record_of(damaged), good]
    intake = INTAKES["usual"]
    assert together(intake, records) == one_by_one(intake, records)


def test_the_usual_payment_takes_the_fast_way() -> None:
    """Without this the tests above could compare the slow decoder with itself."""
    slow: list[Record] = []

    def slowly(record: Record) -> PaymentEvent:
        slow.append(record)
        raise InvalidEvent("not usual")

    fast = INTAKES["usual"]._fast
    told = {**USUAL, "device_id": "d", "ip": "::1", "mcc": "5411", "country": "DE", "channel": "ecom"}
    records = [
        record_of(ENCODER.encode(payment)) for payment in (USUAL, told, {**told, "declined": True, "currency": "JPY"})
    ]
    assert all(isinstance(event, PaymentEvent) for event in fast.payments(records, NOW_MS, slowly))
    assert slow == []


@pytest.mark.parametrize("schema_id", [17, IDS.id_of("payments")])
def test_todays_schema_takes_the_fast_way_under_both_of_its_ids(schema_id: int) -> None:
    """After a registry is turned on, earlier records still have the fingerprint."""

    class Registered(LocalSchemaIds):
        def id_of(self, topic: str) -> int:
            return 17 if topic == "payments" else super().id_of(topic)

    def slowly(record: Record) -> PaymentEvent:
        raise AssertionError(record)

    fast = EventDecoder(ENGINES["usual"], small_world.rates(), Registered())._fast
    (event,) = fast.payments([record_of(Encoder("payments", schema_id).encode(USUAL))], NOW_MS, slowly)
    assert isinstance(event, PaymentEvent)
