import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.payment_fields import looks_like_card_number
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse
from paywarden.scoring.http.content_types import format_of
from paywarden.scoring.requests.format import Format
from paywarden.scoring.requests.json_form import JSON, render_error
from paywarden.scoring.requests.protobuf_form import PROTOBUF, parse
from paywarden.scoring.requests.validation import RequestLimits, RequestRules

NOW_MS = 1_700_000_000_000
LIMITS = RequestLimits(id_bytes_max=20, amount_minor_max=1000, past_ms_max=5000, future_ms_max=500, batch_size_max=3)


def a_request(**changes: object) -> ScoreRequest:
    """Returns a valid request with `changes`."""
    fields: dict[str, object] = {
        "payment_id": "p-1",
        "event_time_ms": NOW_MS,
        "card_id": "c-1",
        "merchant_id": "m-1",
        "amount_minor": 1000,
        "currency": "EUR",
    }
    return ScoreRequest(**(fields | changes))  # type: ignore[arg-type]


def fields_of(request: ScoreRequest) -> dict[str, object]:
    return {descriptor.name: value for descriptor, value in request.ListFields()}


def check(request: ScoreRequest) -> None:
    RequestRules(LIMITS).check(request, NOW_MS)


def field_refused(act: Callable[[], object]) -> str:
    with pytest.raises(InvalidEvent) as caught:
        act()
    return caught.value.field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("payment_id", "x" * 21),
        ("payment_id", "é" * 11),
        ("event_time_ms", NOW_MS + 501),
        ("event_time_ms", NOW_MS - 5001),
        ("amount_minor", 1001),
        ("device_id", "x" * 21),
    ],
)
def test_a_value_beyond_the_limits_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    assert field_refused(lambda: check(a_request(**{field: value}))) == field


def test_the_largest_values_allowed_are_valid() -> None:
    check(a_request(payment_id="x" * 20, event_time_ms=NOW_MS + 500, amount_minor=1000))
    check(a_request(event_time_ms=NOW_MS - 5000, amount_minor=0))


def test_no_message_repeats_a_text_or_an_amount() -> None:
    secret = "4111111111111112"
    for name in ("payment_id", "card_id", "merchant_id", "currency", "device_id", "ip", "mcc", "country", "channel"):
        with pytest.raises(InvalidEvent) as caught:
            check(a_request(**{name: secret * 5}))
        assert secret not in str(caught.value)
    for name in ("amount_minor", "event_time_ms"):
        with pytest.raises(InvalidEvent) as caught:
            check(a_request(**{name: int(secret)}))
        assert secret not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("past_ms_max", -1), ("future_ms_max", -1)])
def test_a_limit_that_cannot_be_is_refused_at_start(name: str, value: int) -> None:
    with pytest.raises(Misconfigured, match=rf"^\[limits\] {name}: wanted \d+ to \d+, got {value}$"):
        RequestLimits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["4111111111111111", "4111 1111 1111 1111", "3782-822463-10005", "4222222222222"])
def test_a_real_card_number_is_refused_and_not_repeated(number: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        RequestRules(RequestLimits()).check(a_request(card_id=number), NOW_MS)
    assert caught.value.field == "card_id"
    assert number not in str(caught.value)


@given(st.integers(min_value=10**11, max_value=10**18 - 1))
def test_exactly_one_check_digit_makes_a_number_look_like_a_card(payload: int) -> None:
    assert sum(looks_like_card_number(f"{payload}{digit}") for digit in range(10)) == 1


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
requests_of_all_kinds = st.builds(
    ScoreRequest,
    payment_id=texts,
    event_time_ms=st.integers(-(2**63), 2**63 - 1),
    card_id=texts,
    merchant_id=texts,
    amount_minor=st.integers(-(2**63), 2**63 - 1),
    currency=texts,
    device_id=st.none() | texts,
    ip=st.none() | texts,
    mcc=st.none() | texts,
    country=st.none() | texts,
    channel=st.none() | texts,
)


@given(requests_of_all_kinds)
def test_both_formats_read_the_same_request(request: ScoreRequest) -> None:
    as_json = json.dumps(fields_of(request)).encode()
    assert JSON.take(as_json) == request.SerializeToString()
    assert parse(PROTOBUF.take(request.SerializeToString())) == request


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    for form in (PROTOBUF, JSON):
        with contextlib.suppress(InvalidEvent):
            parse(form.take(body))
        with contextlib.suppress(InvalidEvent):
            form.take_batch(body, 10)


@pytest.mark.parametrize(
    "value", ["12", 12.5, 12.0, True, float("nan"), float("inf"), [1], {"a": 1}, 2**63, -(2**63) - 1]
)
def test_json_takes_nothing_but_a_64_bit_integer_as_an_amount(value: object) -> None:
    body = json.dumps(fields_of(a_request()) | {"amount_minor": value}).encode()
    assert field_refused(lambda: JSON.take(body)) == "amount_minor"


@pytest.mark.parametrize("value", [12, True, 1.5, ["c"], {"c": 1}])
def test_json_takes_nothing_but_text_as_an_id(value: object) -> None:
    body = json.dumps(fields_of(a_request()) | {"card_id": value}).encode()
    assert field_refused(lambda: JSON.take(body)) == "card_id"


def test_json_null_is_absent() -> None:
    body = json.dumps(fields_of(a_request()) | {"device_id": None}).encode()
    assert not parse(JSON.take(body)).HasField("device_id")
    missing = json.dumps(fields_of(a_request()) | {"card_id": None}).encode()
    assert field_refused(lambda: check(parse(JSON.take(missing)))) == "card_id"


def test_json_with_an_unknown_field_is_refused_by_its_name() -> None:
    assert field_refused(lambda: JSON.take(b'{"amount": 12}')) == "amount"


def test_an_unknown_field_whose_name_may_be_a_secret_is_not_named() -> None:
    with pytest.raises(InvalidEvent) as caught:
        JSON.take(b'{"4111111111111111": null}')
    assert "4111" not in str(caught.value)


def test_json_with_a_field_given_twice_is_refused() -> None:
    assert field_refused(lambda: JSON.take(b'{"amount_minor": 1, "amount_minor": 9}')) == "amount_minor"


def test_json_with_half_a_character_is_refused_by_its_field() -> None:
    assert field_refused(lambda: JSON.take(rb'{"payment_id": "p", "card_id": "\ud800"}')) == "card_id"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 100_000, b'{"amount_minor": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "array", "number", "null", "utf-8", "deep", "long-number"],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidEvent):
        JSON.take(body)


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff"], ids=["tag", "cut", "utf-8"])
def test_a_body_that_is_no_protobuf_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidEvent):
        parse(body)


def test_a_batch_is_read_in_order_in_both_formats() -> None:
    requests = [a_request(payment_id=f"p-{index}") for index in range(3)]
    as_json = json.dumps({"requests": [fields_of(request) for request in requests]}).encode()
    serialised = [request.SerializeToString() for request in requests]
    assert [*JSON.take_batch(as_json, 3)] == serialised
    assert PROTOBUF.take_batch(ScoreBatchRequest(requests=requests).SerializeToString(), 3) == serialised


@pytest.mark.parametrize("count", [0, 4])
def test_a_batch_that_is_empty_or_too_large_is_refused(count: int) -> None:
    batch = ScoreBatchRequest(requests=[a_request()] * count)
    as_json = json.dumps({"requests": [fields_of(a_request())] * count}).encode()
    assert field_refused(lambda: PROTOBUF.take_batch(batch.SerializeToString(), 3)) == "requests"
    assert field_refused(lambda: JSON.take_batch(as_json, 3)) == "requests"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "requests"),
        (b'{"requests": {}}', "requests"),
        (b'{"requests": [{}], "more": 1}', "more"),
        (b'{"requests": [{}, 1]}', "requests[1]"),
        (b'{"requests": [{}, {"card_id": 1}]}', "requests[1].card_id"),
    ],
)
def test_a_json_batch_of_the_wrong_shape_is_refused_by_the_place(body: bytes, field: str) -> None:
    assert field_refused(lambda: JSON.take_batch(body, 3)) == field


def test_a_response_is_the_same_in_both_formats() -> None:
    response = ScoreResponse(
        payment_id="p",
        decision_id="d",
        score=0.25,
        action="review",
        reasons=["velocity"],
        model_version="v1",
        flags=["unknown_card"],
        profile_age_ms=0,
    )
    serialised = response.SerializeToString()
    assert PROTOBUF.render(serialised) == serialised
    assert ScoreResponse(**json.loads(JSON.render(serialised))) == response
    batch = ScoreBatchResponse(responses=[response, response])
    assert ScoreBatchResponse.FromString(PROTOBUF.render_batch([serialised, serialised])) == batch
    assert ScoreBatchResponse(**json.loads(JSON.render_batch([serialised, serialised]))) == batch


def test_an_unknown_profile_age_is_absent_from_json() -> None:
    assert "profile_age_ms" not in json.loads(JSON.render(ScoreResponse(payment_id="p").SerializeToString()))


def test_a_score_that_is_no_number_is_never_sent_as_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        JSON.render(ScoreResponse(score=float("nan")).SerializeToString())


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/json", JSON),
        (b"Application/JSON; charset=UTF-8", JSON),
        (b'application/json;charset="utf-8"', JSON),
        (b"application/x-protobuf", PROTOBUF),
        (b"application/json; charset=latin-1", None),
        (b"text/plain", None),
        (b"", None),
    ],
)
def test_the_content_type_decides_the_format(content_type: bytes, expected: Format | None) -> None:
    assert format_of(content_type) is expected


def test_an_error_body_names_code_field_and_message() -> None:
    assert json.loads(render_error("invalid_argument", "is missing", "card_id")) == {
        "error": {"code": "invalid_argument", "field": "card_id", "message": "is missing"}
    }
