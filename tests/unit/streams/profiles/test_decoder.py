from __future__ import annotations

from typing import Any

import pytest

from paywarden.features.catalogue.attributes import row_of
from paywarden.features.kernel import AMOUNT, AMOUNT_MINOR
from paywarden.features.stores.base import split_key
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import ID_BYTES_MAX, TIME_MS_MIN
from paywarden.streams.profiles.decoder import TIMES, EventDecoder
from paywarden.streams.profiles.events import OutcomeEvent, record_key
from paywarden.streams.profiles.payment_columns import Position
from tests.worlds.small import small_world

NOW_MS = 1_720_000_000_000
ARRIVED_MS = NOW_MS - 877
POSITION = Position(4, 17)
IDS = LocalSchemaIds()
PAYMENT: dict[str, Any] = {
    "payment_id": "pay-1",
    "event_time_ms": NOW_MS - 5,
    "card_id": "card-1",
    "merchant_id": "merchant-1",
    "device_id": "device-1",
    "amount_minor": 1050,
    "currency": "EUR",
}
OUTCOME: dict[str, Any] = {"payment_id": "pay-1", "outcome_time_ms": NOW_MS, "label": "fraud"}
SECRET = "4111-secret"


@pytest.fixture(scope="module")
def intake() -> EventDecoder:
    return EventDecoder(small_world.engine(), small_world.rates(), IDS)


def encoded(topic: str, record: dict[str, Any]) -> bytes:
    return Encoder(topic, IDS.id_of(topic)).encode(record)


def refused(intake: EventDecoder, **changed: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        intake.payment(encoded("payments", {**PAYMENT, **changed}), POSITION, ARRIVED_MS, NOW_MS)
    return caught.value


def test_a_payment_becomes_an_event_with_the_keys_of_its_entities(intake: EventDecoder) -> None:
    event = intake.payment(encoded("payments", PAYMENT), POSITION, ARRIVED_MS, NOW_MS)
    assert event.position == POSITION
    assert event.payment_id == "pay-1"
    assert event.attributes == row_of(PAYMENT, event_time_ms=NOW_MS - 5, amount=1050, amount_minor=1050)
    assert event.keys == (b"card:card-1", b"merchant:merchant-1", b"device:device-1")


def test_an_amount_is_converted_at_the_rate_of_the_payments_time(intake: EventDecoder) -> None:
    for time_ms in (TIME_MS_MIN, 1_600_000_000_000, NOW_MS):
        changed = {**PAYMENT, "currency": "JPY", "event_time_ms": time_ms}
        event = intake.payment(encoded("payments", changed), POSITION, time_ms, NOW_MS)
        assert event.attributes[AMOUNT] == small_world.rates().convert(1050, "JPY", time_ms) != 1050
        assert event.attributes[AMOUNT_MINOR] == 1050


def test_a_topic_that_is_read_again_years_later_gives_the_same_payments(intake: EventDecoder) -> None:
    years_later = NOW_MS + 5 * 365 * 86_400_000
    value = encoded("payments", PAYMENT)
    assert intake.payment(value, POSITION, ARRIVED_MS, NOW_MS) == intake.payment(
        value, POSITION, ARRIVED_MS, years_later
    )
    ahead = encoded("payments", {**PAYMENT, "event_time_ms": ARRIVED_MS + TIMES.future_ms_max + 1})
    for now_ms in (NOW_MS, years_later):
        with pytest.raises(InvalidEvent, match="in the future"):
            intake.payment(ahead, POSITION, ARRIVED_MS, now_ms)


def test_no_refusal_quotes_the_record(intake: EventDecoder) -> None:
    for changed in ({"event_time_ms": 0}, {"amount_minor": -1}, {"currency": "XXX"}, {"merchant_id": ""}):
        error = refused(intake, card_id=SECRET, payment_id=SECRET, **changed)
        assert SECRET not in str(error)
        assert error.field in changed


@pytest.mark.parametrize("label", ["fraud", "genuine"])
def test_an_outcome_becomes_an_event(intake: EventDecoder, label: str) -> None:
    event = intake.outcome(encoded("outcomes", {**OUTCOME, "label": label}), POSITION, ARRIVED_MS)
    assert event == OutcomeEvent(POSITION, "pay-1", label == "fraud", ARRIVED_MS)


@pytest.mark.parametrize("payment_id", ["", "x" * (ID_BYTES_MAX + 1), "a\n"])
def test_an_outcome_of_an_impossible_payment_id_is_refused(intake: EventDecoder, payment_id: str) -> None:
    with pytest.raises(InvalidEvent, match=r"^payment_id: ") as caught:
        intake.outcome(encoded("outcomes", {**OUTCOME, "payment_id": payment_id}), POSITION, ARRIVED_MS)
    assert caught.value.field == "payment_id"


def test_every_accepted_key_fits_the_store(intake: EventDecoder) -> None:
    for odd in ("a:b", ":", " ", "ü", "💳", "x" * ID_BYTES_MAX):
        event = intake.payment(
            encoded("payments", {**PAYMENT, "card_id": odd, "payment_id": odd}), POSITION, ARRIVED_MS, NOW_MS
        )
        assert split_key(event.keys[0]) == ("card", odd.encode())
        assert split_key(record_key(odd)) == ("payment", odd.encode())
