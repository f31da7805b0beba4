"""Compares the two ways of reading requests: the compiled loop, and the protobuf parser with the rules."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.catalogue.attributes import ATTRIBUTES, AttributeKind, row_of
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import entity_key
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry, OutboxRecord
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.requests.fast_requests import ROWS_MAX
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.protobuf_form import parse
from paywarden.scoring.requests.validation import RequestLimits, RequestRules
from tests.oracles.step_decoder import StepDecoder, as_a_scorer_reads, read_pieces
from tests.worlds.endpoint.hostile_requests import groups, hostile_bodies, varint

NOW_MS = 1_700_000_000_000
LIMITS = RequestLimits(
    id_bytes_max=40, text_bytes_max=20, amount_minor_max=10_000_000, past_ms_max=5_000, future_ms_max=500
)
# USD has rates that begin between two payments. A unit of IDR is worth less than a cent.
RATES = RateTable(
    {
        "EUR": [(0, RATE_SCALE)],
        "USD": [(0, 900_001), (NOW_MS - 1000, 910_007), (NOW_MS, 930_333)],
        "JPY": [(NOW_MS - 500, 6_123)],
        "IDR": [(0, 1)],
        "odd": [(0, RATE_SCALE)],
    }
)
# Values for conditions on these fields; the others take any text.
CODES = {"country": "AB", "currency": "EUR", "mcc": "5411"}


def plan_of_everything() -> Plan:
    """Returns a plan that uses every attribute, with entity keys of one, two and three fields."""
    card, pair = Entity("card", "card_id"), Entity("card_merchant", ("card_id", "merchant_id"))
    odd = Entity("odd", ("device_id", "ip", "mcc"))
    features = [
        pair.count("pair_count", "1d"),
        odd.count("odd_count", "1d"),
        # One feature about each attribute, and one about the hour of the day.
        *(
            card.count(f"{attribute.name}_count", "1d", where=attribute != CODES.get(attribute.name, "x"))
            for attribute in ATTRIBUTES
            if attribute.kind in (AttributeKind.TEXT, AttributeKind.COUNTRY)
        ),
        request.hour("hour"),
    ]
    return FeatureEngine(Catalogue([card, pair, odd], features)).plan


PLANS = (FeatureEngine().plan, plan_of_everything())


def slowly(body: bytes, plan: Plan) -> tuple[list[int], list[bytes], bytes] | str:
    """Read a body with protobuf's parser and the obvious code. Returns row, keys and payment id, or the error."""
    try:
        parsed = parse(body)
        RequestRules(LIMITS).check(parsed, NOW_MS)
        amount = RATES.convert(parsed.amount_minor, parsed.currency, parsed.event_time_ms)
    except InvalidEvent as error:
        return f"{error.field}: {error}"
    keys = []
    for name, fields in zip(plan.entity_names, plan.entity_keys, strict=True):
        ids = [getattr(parsed, field) for field in fields]
        keys.append(entity_key(name, ids) if all(ids) else b"")
    # An offset of 0 minutes that was sent counts; an empty text has been refused by now.
    sent = {field.name: value for field, value in parsed.ListFields()}
    row = row_of(sent, event_time_ms=parsed.event_time_ms, amount=amount, amount_minor=parsed.amount_minor)
    asked = {*plan.attribute_columns, 0, 1, 2}.union(*plan.entity_identities)
    return [value if column in asked else 0 for column, value in enumerate(row)], keys, parsed.payment_id.encode()


def check(bodies: list[bytes], plan: Plan) -> None:
    """Assert that the decoder reads every body as `slowly` does."""
    decoder = StepDecoder(plan, RATES, LIMITS)
    payments, wrong = decoder.read(bodies, NOW_MS)
    expected = [slowly(body, plan) for body in bodies]
    assert {place: f"{error.field}: {error}" for place, error in wrong.items()} == {
        place: each for place, each in enumerate(expected) if isinstance(each, str)
    }
    right = [(body, each) for body, each in zip(bodies, expected, strict=True) if not isinstance(each, str)]
    for kept, (body, _) in zip(payments.bodies, right, strict=True):
        understood = parse(body)
        understood.DiscardUnknownFields()
        # Inside the outbox's record it is one level deeper, and there it is the same request.
        record = OutboxRecord(request=kept).SerializeToString()
        assert OutboxEntry.FromString(record).request == understood
        # Nothing unknown, nothing twice, no number longer than it must be.
        assert len(kept) == understood.ByteSize()
        assert sorted(kept) == sorted(understood.SerializeToString())
    assert payments.rows.tolist() == [row for _, (row, _, _) in right]
    assert list(payments.keys) == [key for _, (_, keys, _) in right for key in keys]
    assert list(payments.ids) == [payment_id for _, (_, _, payment_id) in right]
    for first in range(0, len(bodies), ROWS_MAX):
        check_as_a_scorer_reads(decoder, bodies[first : first + ROWS_MAX])


def check_as_a_scorer_reads(decoder: StepDecoder, bodies: list[bytes]) -> None:
    """Assert that the compiled loop reads every request that is right, unusual ones too."""
    expected, wrong = decoder.read(bodies, NOW_MS)
    found, found_wrong = as_a_scorer_reads(decoder, bodies, NOW_MS)
    assert {place: str(error) for place, error in found_wrong.items()} == {
        place: str(error) for place, error in wrong.items()
    }
    assert found.rows.tolist() == expected.rows.tolist()
    assert [*found.keys] == [*expected.keys]
    assert [*found.ids] == [*expected.ids]
    assert [*found.bodies] == [*expected.bodies]


ids = st.text("abcXYZ0123456789-_ ", min_size=1, max_size=30)
usual = st.builds(
    ScoreRequest,
    payment_id=ids,
    event_time_ms=st.integers(NOW_MS - 2000, NOW_MS + 500),
    card_id=ids,
    merchant_id=ids,
    device_id=st.none() | ids,
    ip=st.none() | st.sampled_from(["10.0.0.1", "2001:db8::1"]),
    amount_minor=st.integers(0, 10_000_000),
    currency=st.sampled_from(["EUR", "USD", "JPY", "IDR"]),
    mcc=st.none() | st.sampled_from(["5411", "0000"]),
    country=st.none() | st.sampled_from(["DE", "AA", "ZZ"]),
    channel=st.none() | st.sampled_from(["ecom", "pos"]),
    utc_offset_minutes=st.none() | st.integers(-1439, 1439),
)
RIGHT = ScoreRequest(payment_id="p", event_time_ms=NOW_MS, card_id="c", merchant_id="m", amount_minor=1, currency="EUR")
# Values of single fields at the edge of the rules, or beyond it.
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60)
numbers = st.sampled_from(
    [
        0,
        -1,
        1,
        NOW_MS + 501,
        NOW_MS + 500,
        NOW_MS - 5000,
        NOW_MS - 5001,
        NOW_MS // 1000,
        10_000_001,
        2**63 - 1,
        -(2**63),
    ]
)
edges: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        ("payment_id", "merchant_id", "device_id"), texts | st.sampled_from(["x" * 40, "x" * 41, "a\x7f", "é"])
    ),
    "card_id": texts
    | st.text("0123456789 -", max_size=25)
    | st.sampled_from(["4111111111111111", "4111 1111-11111111"]),
    "event_time_ms": numbers,
    "amount_minor": numbers | st.integers(-(2**63), 2**63 - 1),
    "ip": texts | st.sampled_from(["1" * 20, "1" * 21]),
    "currency": texts | st.sampled_from(["", "eur", "XXX", "EURO", "E1R", "AAA", "odd", "ZZZ", "NGN"]),
    "mcc": texts | st.sampled_from(["", "541", "54a1", "٥٤١١", "54111"]),
    "country": texts | st.sampled_from(["", "de", "DEU", "D1"]),
    "channel": texts,
    "utc_offset_minutes": st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1439, 1440, -1439, -1440]),
}


@st.composite
def bodies_of_one(draw: st.DrawFn) -> bytes:
    """Draws the bytes of a request: usual, with an odd field, damaged, in another order, or with one more field."""
    sent = draw(usual)
    kind = draw(st.sampled_from(["usual", "usual", "odd", "cut", "flipped", "turned", "twice", "unknown", "noise"]))
    if kind == "odd":
        name = draw(st.sampled_from(sorted(edges)))
        setattr(sent, name, draw(edges[name]))
    body = sent.SerializeToString()
    if kind == "cut":
        return body[: draw(st.integers(0, len(body)))]
    if kind == "flipped":
        place = draw(st.integers(0, len(body) - 1))
        return body[:place] + bytes([draw(st.integers(0, 255))]) + body[place + 1 :]
    if kind == "turned":
        fields = [ScoreRequest(**{field.name: value}) for field, value in sent.ListFields()]
        return b"".join(one.SerializeToString() for one in draw(st.permutations(fields)))
    if kind == "twice":
        return body + ScoreRequest(merchant_id=draw(ids)).SerializeToString()
    if kind == "unknown":
        return body + draw(
            st.sampled_from([b"\x68\x01", b"\x6a\x01a", b"\x80\x01\x01", b"\x0d\x00\x00\x00\x00", b"\x08\x01"])
        )
    return draw(st.binary(max_size=60)) if kind == "noise" else body


@pytest.mark.parametrize("plan", PLANS, ids=["default", "everything"])
def test_both_ways_of_reading_agree_about_any_request(plan: Plan) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(bodies_of_one(), min_size=1, max_size=6))
    def hold(bodies: list[bytes]) -> None:
        check(bodies, plan)

    hold()


@settings(max_examples=150, deadline=None)
@given(st.lists(hostile_bodies(usual), min_size=1, max_size=4))
def test_hostile_bytes_are_read_as_protobuf_reads_them_and_kept_canonical(bodies: list[bytes]) -> None:
    check(bodies, PLANS[0])


def test_an_unknown_field_of_many_levels_does_not_reach_the_outbox() -> None:
    """A record is one level deeper than its request, and protobuf reads at most 100 levels."""
    body = RIGHT.SerializeToString() + groups(100)
    assert len(body) < 300
    with pytest.raises(DecodeError):
        OutboxEntry.FromString(OutboxRecord(request=body).SerializeToString())
    check([body], PLANS[0])
    payments, wrong = StepDecoder(PLANS[0], RATES, LIMITS).read([body], NOW_MS)
    assert (list(payments.bodies), wrong) == ([RIGHT.SerializeToString()], {})


@pytest.mark.parametrize("size", [2, 5, 6, 10])
def test_a_length_of_more_bytes_than_it_needs_is_left_to_protobuf(size: int) -> None:
    """protobuf takes a length of up to five bytes. The compiled loop once took ten, and wrote them to the outbox."""
    rest = ScoreRequest()
    rest.CopyFrom(RIGHT)
    rest.payment_id = ""
    body = b"\x0a" + varint(1, size) + b"p" + rest.SerializeToString()
    assert read_pieces(StepDecoder(PLANS[0], RATES, LIMITS).fast, [body], NOW_MS).is_usual == b"\0"
    payments, wrong = StepDecoder(PLANS[0], RATES, LIMITS).read([body], NOW_MS)
    assert (list(payments.bodies), len(wrong)) == (([RIGHT.SerializeToString()], 0) if size <= 5 else ([], 1))


@st.composite
def requests_with_one_odd_field(draw: st.DrawFn) -> ScoreRequest:
    sent = draw(usual)
    name = draw(st.sampled_from(sorted(edges)))
    setattr(sent, name, draw(edges[name]))
    return sent


@pytest.mark.parametrize("plan", PLANS, ids=["default", "everything"])
def test_a_json_request_is_read_as_the_same_request_in_protobuf(plan: Plan) -> None:
    """Rows, keys, ids, the outbox's bytes and the errors are the same, though JSON is not parsed as protobuf."""

    @settings(max_examples=75, deadline=None)
    @given(st.lists(usual | requests_with_one_odd_field(), min_size=1, max_size=4))
    def hold(sent: list[ScoreRequest]) -> None:
        as_json = [json.dumps({field.name: value for field, value in each.ListFields()}).encode() for each in sent]
        bodies = [each.SerializeToString() for each in sent]
        payments, wrong = StepDecoder(plan, RATES, LIMITS).read([JSON.take(body) for body in as_json], NOW_MS)
        expected, expected_wrong = StepDecoder(plan, RATES, LIMITS).read(bodies, NOW_MS)
        assert {place: str(error) for place, error in wrong.items()} == {
            place: str(error) for place, error in expected_wrong.items()
        }
        assert list(payments.bodies) == list(expected.bodies)
        assert list(payments.ids) == list(expected.ids)
        assert list(payments.keys) == list(expected.keys)
        np.testing.assert_array_equal(payments.rows, expected.rows)

    hold()


@settings(max_examples=60, deadline=None)
@given(usual)
def test_usual_requests_are_read_by_the_compiled_loop(sent: ScoreRequest) -> None:
    """Otherwise the test above would compare the slow way with itself."""
    intake = StepDecoder(PLANS[0], RATES, LIMITS)
    found = read_pieces(intake.fast, [sent.SerializeToString()], NOW_MS)
    # A text that may be a card number is looked at the slow way.
    numbers = [
        13 <= len(digits) <= 19 and digits.isdecimal()
        for text in (sent.card_id, sent.payment_id, sent.merchant_id, sent.device_id)
        for digits in [text.replace(" ", "").replace("-", "")]
    ]
    if numbers[0] or not any(numbers):
        assert found.is_usual == bytes([not numbers[0]])


def test_more_requests_than_one_chunk_holds_are_read_in_order() -> None:
    bodies = [
        ScoreRequest(
            payment_id=f"p{number}",
            event_time_ms=NOW_MS,
            card_id="c" if number % 50 else "4111111111111111",
            merchant_id="m",
            amount_minor=number,
            currency="EUR",
        ).SerializeToString()
        for number in range(2 * ROWS_MAX + 5)
    ]
    check(bodies, PLANS[0])


def test_a_chunk_of_bodies_that_are_too_long_is_read_all_the_same() -> None:
    long = [ScoreRequest(payment_id="p" * 200_000).SerializeToString(), *[b""] * (ROWS_MAX - 1)]
    check(long, PLANS[0])
