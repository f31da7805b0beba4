"""The table of a payment's fields: what it says of values, of times, and of itself."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import (
    FIELD,
    FIELDS,
    TIME_MS_END,
    TIME_MS_MIN,
    PaymentRules,
    TimeBounds,
    looks_like_card_number,
)
from tests.checkout import CHECKOUT

NOW_MS = 1_720_000_000_000
DAY_MS = 86_400_000
ENDPOINT_PAGE = CHECKOUT / "docs/integrate/endpoint.md"


def test_the_table_has_the_fields_of_the_topic_and_says_which_are_required() -> None:
    schema = json.loads(resources.files("paywarden.schemas.avsc").joinpath("payments.avsc").read_text(encoding="utf-8"))
    assert {field["name"]: not isinstance(field["type"], list) for field in schema["fields"]} == {
        field.name: field.is_required for field in FIELDS
    }


def test_the_page_of_the_endpoint_has_every_line_of_the_table() -> None:
    fields = [field for field in FIELDS if field.at_endpoint]
    lines = [f"- `{field.name}`{' (required)' if field.is_required else ''}: {field.wanted}" for field in fields]
    assert "\n".join(lines) + "\n\n" in ENDPOINT_PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("country", "Germany", "is text of 7 characters; wanted two capital letters, A to Z (ISO 3166-1 alpha-2)"),
        ("country", "", "is empty; wanted two capital letters, A to Z (ISO 3166-1 alpha-2)"),
        ("mcc", "5", "is text of 1 character; wanted four digits (ISO 18245)"),
        ("payment_id", None, "is missing or empty; wanted printable text of 1 to 256 bytes"),
        ("merchant_id", "x" * 300, "is 300 bytes long; wanted printable text of 1 to 256 bytes"),
        ("ip", "a\nb", "holds a control character; wanted printable text of 1 to 64 bytes"),
        (
            "card_id",
            "4111111111111111",
            "looks like a real card number; wanted a token of 1 to 256 bytes of printable text",
        ),
        ("amount_minor", None, "is missing; wanted a whole number of minor units from 0 to 100000000000"),
        ("amount_minor", -5, "is below 0; wanted a whole number of minor units from 0 to 100000000000"),
        ("utc_offset_minutes", 1440, "is above 1439; wanted whole minutes from -1439 to 1439"),
        ("event_time_ms", None, "is missing or 0; wanted milliseconds since 1970 UTC"),
        ("event_time_ms", 1_704_067_200, "1704067200 looks like seconds; wanted milliseconds since 1970 UTC"),
        ("event_time_ms", TIME_MS_END, "is after 2099; wanted milliseconds since 1970 UTC"),
        ("currency", "euro", "is text of 4 characters; wanted three capital letters, A to Z (ISO 4217)"),
        ("currency", "XXQ", "is no currency of ISO 4217; wanted three capital letters, A to Z (ISO 4217)"),
        ("currency", "XAU", "is no currency of ISO 4217; wanted three capital letters, A to Z (ISO 4217)"),
    ],
)
def test_an_error_says_what_a_value_is_and_what_was_wanted(name: str, value: object, said: str) -> None:
    assert FIELD[name].problem_of(value) == said


@pytest.mark.parametrize("name", [field.name for field in FIELDS if not field.is_required])
def test_an_optional_field_may_be_missing(name: str) -> None:
    assert FIELD[name].problem_of(None) == ""


@given(st.integers(TIME_MS_MIN, TIME_MS_END - 1))
def test_a_time_in_another_unit_is_never_taken_for_milliseconds(time_ms: int) -> None:
    field = FIELD["event_time_ms"]
    assert field.problem_of(time_ms) == ""
    for factor, unit in ((1000, "microseconds"), (10**6, "nanoseconds")):
        assert field.problem_of(time_ms * factor).startswith(f"looks like {unit}; ")
    assert "looks like seconds; " in field.problem_of(time_ms // 1000)


def test_a_narrowed_field_says_its_own_bound() -> None:
    assert (
        FIELD["payment_id"].narrowed(3).problem_of("four") == "is 4 bytes long; wanted printable text of 1 to 3 bytes"
    )
    assert FIELD["amount_minor"].narrowed(9).problem_of(10) == (
        "is above 9; wanted a whole number of minor units from 0 to 9"
    )


BOUNDS = TimeBounds(past_ms_max=2 * DAY_MS, future_ms_max=1000)


def test_a_time_is_compared_with_the_arrival_not_with_the_clock() -> None:
    for now_ms in (NOW_MS, NOW_MS + 400 * DAY_MS):
        for inside_ms in (NOW_MS - 2 * DAY_MS, NOW_MS, NOW_MS + 1000):
            assert BOUNDS.problem_of(inside_ms, arrived_ms=NOW_MS, now_ms=now_ms) == ""
        early = BOUNDS.problem_of(NOW_MS - 3 * DAY_MS, arrived_ms=NOW_MS, now_ms=now_ms)
        assert early == "is 3 days in the past; wanted at most 2 days"
        late = BOUNDS.problem_of(NOW_MS + 3_600_000, arrived_ms=NOW_MS, now_ms=now_ms)
        assert late == "is 1 hour in the future; wanted at most 1 s"


def test_an_arrival_in_the_future_does_not_allow_a_payment_in_the_future() -> None:
    ahead_ms = NOW_MS + 5 * DAY_MS
    assert BOUNDS.problem_of(ahead_ms, arrived_ms=ahead_ms, now_ms=NOW_MS) == (
        "is 5 days in the future; wanted at most 1 s"
    )


def test_without_an_arrival_only_the_future_is_refused() -> None:
    assert BOUNDS.problem_of(TIME_MS_MIN, arrived_ms=0, now_ms=NOW_MS) == ""
    assert BOUNDS.problem_of(NOW_MS + 1001, arrived_ms=0, now_ms=NOW_MS) != ""


def test_the_first_wrong_field_of_the_table_is_named() -> None:
    rules = PaymentRules(FIELDS, BOUNDS)
    good = {
        "payment_id": "p",
        "event_time_ms": NOW_MS,
        "card_id": "c",
        "merchant_id": "m",
        "amount_minor": 0,
        "currency": "EUR",
        "declined": False,
    }
    rules.check(good, arrived_ms=NOW_MS, now_ms=NOW_MS)
    for wrong, name in (
        ({"currency": "XXQ"}, "currency"),
        ({"currency": "XXQ", "mcc": "x"}, "currency"),
        ({"country": "de", "amount_minor": -1}, "amount_minor"),
        ({"event_time_ms": 0, "card_id": ""}, "event_time_ms"),
    ):
        with pytest.raises(InvalidEvent) as caught:
            rules.check(good | wrong, arrived_ms=NOW_MS, now_ms=NOW_MS)
        assert caught.value.field == name


@pytest.mark.parametrize("token", ["4111111111111112", "411111111111", "tok_4111111111111111", "1", ""])
def test_a_token_that_only_resembles_a_card_number_is_none(token: str) -> None:
    assert not looks_like_card_number(token)
