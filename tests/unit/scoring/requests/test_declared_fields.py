"""Requests with fields that a project declares: JSON, protobuf and the compiled reader against the obvious code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import DeclaredRow, ip, row_of
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.catalogue.fields import Payment
from paywarden.features.profiles.keys import key_maker
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.features.profiles.plan import Plan, compile_plan
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.payment_fields import Form, PaymentField
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.requests import json_form
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.protobuf_form import parse
from paywarden.scoring.requests.schema import RequestSchema
from paywarden.scoring.requests.validation import RequestLimits, RequestRules
from tests.oracles.step_decoder import StepDecoder, read_pieces
from tests.unit.scoring.requests.test_decoder import check_as_a_scorer_reads
from tests.worlds.stream.declarations import declarations

NOW_MS = 1_700_000_000_000
LIMITS = RequestLimits(past_ms_max=5_000, future_ms_max=500)
RATES = RateTable({"EUR": [(0, RATE_SCALE)], "USD": [(0, 900_001), (NOW_MS, 930_333)], "JPY": [(NOW_MS - 500, 6_123)]})
BASE: dict[str, Any] = {
    "payment_id": "p",
    "event_time_ms": NOW_MS,
    "card_id": "c",
    "merchant_id": "m",
    "amount_minor": 1,
    "currency": "EUR",
}


def of_every_kind(*, required: bool = False) -> Payment:
    """Returns a declaration with every kind of field, and what derives from them."""
    customer = fields.text("customer_id", 1, personal=True, required=required)
    product = fields.category("product", 2, ["book", "phone"], required=required)
    mail = fields.email("buyer_email", 4, required=required)
    address = fields.address("login_address", 15, required=required)
    return Payment(
        customer,
        product,
        fields.decimal("weight", 3, unit="kg", least=-5, most=500, decimals=3, required=required),
        mail,
        fields.email_domain("buyer_domain", 5, of=mail),
        fields.network("ip_network", 6, of=ip),
        fields.money("fee_minor", 7, required=required),
        fields.flag("is_gift", 8, required=required),
        fields.coordinates("home", 9, required=required),
        fields.country("billing_country", 11, required=required),
        fields.time("account_opened_ms", 12, required=required),
        fields.integer("items", 13, unit="items", least=-1000, most=1000, required=required),
        fields.bin_number("bin", 14, required=required),
        address,
        fields.network("login_network", 16, of=address, bits=17, bits_v6=60),
        fields.network("login_host", 64, of=address, bits=32),
    )


VALUES: dict[str, Any] = {
    "ip": "192.0.2.77",
    "customer_id": "c-9",
    "product": "phone",
    "weight": 12.3455,
    "buyer_email": "Ann@Example.COM",
    "fee_minor": 250,
    "is_gift": True,
    "home_latitude": 52.5,
    "home_longitude": -13.25,
    "billing_country": "DE",
    "account_opened_ms": 1_600_000_000_000,
    "items": -3,
    "bin": "45678901",
    "login_address": "198.51.100.255",
}


def plan_of(payment: Payment, keys: Sequence[tuple[str, ...]] = (("card_id",),)) -> Plan:
    """Returns a plan with an entity for each of these keys."""
    entities = [Entity(f"entity_{number}", names) for number, names in enumerate(keys)]
    return compile_plan(Catalogue(entities, [entities[0].count("payments", "1d")], payment))


EVERYTHING = plan_of(
    of_every_kind(),
    [
        ("card_id",),
        ("customer_id",),
        ("product", "merchant_id"),
        ("buyer_email", "bin"),
        ("buyer_domain",),
        ("ip_network", "card_id", "login_host"),
        ("login_address",),
        ("login_network", "product"),
    ],
)


class Slowly(NamedTuple):
    row: list[int]
    keys: list[bytes]
    kept: bytes


def slowly(body: bytes, plan: Plan, schema: RequestSchema) -> Slowly | str:
    """Read a body with protobuf's parser and the obvious code. Returns the error's text for a wrong one."""
    try:
        parsed = parse(body, schema)
        RequestRules(LIMITS, schema).check(parsed, NOW_MS)
        amount = RATES.convert(parsed.amount_minor, parsed.currency, parsed.event_time_ms)
    except InvalidEvent as error:
        return f"{error.field}: {error}"
    values = {field.name: value for field, value in parsed.ListFields()}

    def convert(minor: int, _: object) -> int | None:
        return RATES.convert(minor, parsed.currency, parsed.event_time_ms)

    row = row_of(
        values,
        event_time_ms=parsed.event_time_ms,
        amount=amount,
        amount_minor=parsed.amount_minor,
        key=plan.key,
        declared=DeclaredRow(plan.fields, convert),
    )
    keys = [
        key_maker(name, names, plan.fields, plan.key)(values)
        for name, names in zip(plan.entity_names, plan.entity_keys, strict=True)
    ]
    # Only those fields of every payment have a column that features use.
    asked = {*plan.attribute_columns, 0, 1, 2, *range(18, plan.row_width)}.union(*plan.entity_identities)
    kept = ScoreRequest(
        **{name: value for name, value in values.items() if name in ScoreRequest.DESCRIPTOR.fields_by_name}
    )
    return Slowly([value if column in asked else 0 for column, value in enumerate(row)], keys, kept.SerializeToString())


def check(bodies: list[bytes], plan: Plan) -> None:
    """Assert that the decoder reads every body as `slowly` does."""
    decoder = StepDecoder(plan, RATES, LIMITS)
    expected = [slowly(body, plan, decoder.schema) for body in bodies]
    payments, wrong = decoder.read(bodies, NOW_MS)
    assert {place: f"{error.field}: {error}" for place, error in wrong.items()} == {
        place: each for place, each in enumerate(expected) if isinstance(each, str)
    }
    right = [each for each in expected if not isinstance(each, str)]
    assert payments.rows.tolist() == [each.row for each in right]
    assert list(payments.keys) == [key for each in right for key in each.keys]
    # As the generated class writes them, but in the order in which they came.
    assert list(map(sorted, payments.bodies)) == [sorted(each.kept) for each in right]
    assert [ScoreRequest.FromString(body) for body in payments.bodies] == [
        ScoreRequest.FromString(each.kept) for each in right
    ]
    sent = [body for body, each in zip(bodies, expected, strict=True) if not isinstance(each, str)]
    for kept, body in zip(payments.sent, sent, strict=True):
        understood = parse(body, decoder.schema)
        understood.DiscardUnknownFields()
        assert parse(kept, decoder.schema) == understood
    check_as_a_scorer_reads(decoder, bodies)


# Random declarations and values.

_letters = st.text("abcXYZ0123456789-_ ", min_size=1, max_size=20)
_wild_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
_ADDRESSES = ["10.0.0.1", "255.255.255.255", "0.0.0.0", "2001:db8::1", "::ffff:10.0.0.1"]
_ODD_ADDRESSES = [
    "256.1.1.1",
    "1.2.3",
    "01.2.3.4",
    "1.2.3.4.5",
    "1..2.3",
    "fe80::1%eth0",
    "1.2.3.4 ",
    "",
    "word",
    "a:b",
    "1.2.3.",
    "1234.1.1.1",
]
_EMAILS = ["a@b", "Ann.B+x@Example.COM", "x" * 64 + "@y.org", "a@" + "b" * 190]
_ODD_EMAILS = ["", "a", "@b", "a@", "a@b@c", "ä@b.de", "a b@c", "x" * 65 + "@y", "a@" + "b" * 191, "a@b_c", "a@b.é"]


def values_of(field: PaymentField) -> st.SearchStrategy[Any]:
    """Returns values of the right type, right and wrong ones."""
    match field.form:
        case Form.ID:
            return _letters.map(lambda text: text[: field.size_max]) | _wild_texts | st.just("4111111111111111")
        case Form.BIN:
            return st.sampled_from(["123456", "12345678", "1234567"]) | st.sampled_from(
                ["12345", "123456789", "12345x"]
            )
        case Form.COUNTRY:
            return st.sampled_from(["DE", "AA", "ZZ", "DE", "de", "D", "DEU"])
        case Form.ADDRESS:
            return st.sampled_from(_ADDRESSES[:3]) | st.sampled_from([*_ADDRESSES, *_ODD_ADDRESSES])
        case Form.EMAIL:
            return st.sampled_from(_EMAILS) | st.sampled_from([*_EMAILS, *_ODD_EMAILS])
        case Form.FLAG:
            return st.booleans()
        case Form.DECIMAL:
            scale = 10.0**field.decimals
            # Ties, and the doubles beside them, are among them.
            near = st.integers(field.minimum * 2, field.maximum * 2).map(lambda halves: halves / 2 / scale)
            return near | near.map(lambda v: math.nextafter(v, math.inf)) | near | st.floats()
        case _:
            inside = st.integers(field.minimum, field.maximum)
            return inside | st.sampled_from([field.minimum - 1, field.maximum + 1, 0, -1, 2**63 - 1, -(2**63)])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Plan, list[dict[str, Any]]]:
    """Draws a declaration with entities over its fields, and requests by their values: at most one is wrong in each."""
    declaration = draw(declarations(fields_max=10, features_max=3))
    plan = compile_plan(declaration.catalogue)
    requests = []
    for _ in range(draw(st.integers(1, 4))):
        values = {**BASE, "currency": draw(st.sampled_from(["EUR", "USD", "JPY"]))}
        values["event_time_ms"] = draw(st.integers(NOW_MS - 1000, NOW_MS + 500))
        if draw(st.booleans()):
            values["ip"] = draw(st.sampled_from([*_ADDRESSES, *_ODD_ADDRESSES[:-1]]) | _letters)
        odd = draw(st.sampled_from([None, None, None, *plan.fields.declared]))
        for field in plan.fields.declared:
            if field.is_required or field is odd or draw(st.booleans()):
                possible = values_of(field)
                values[field.name] = draw(possible if field is odd else possible.filter(field.is_right))
        requests.append(values)
    return plan, requests


def as_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode()


@settings(max_examples=80, deadline=None)
@given(worlds(), st.data())
def test_every_way_to_read_declared_fields_gives_the_same_row_keys_and_errors(
    world: tuple[Plan, list[dict[str, Any]]], data: st.DataObject
) -> None:
    plan, requests = world
    schema = RequestSchema(plan.fields)
    bodies = [schema.message(**values).SerializeToString() for values in requests]
    check(bodies, plan)
    in_protobuf, wrong = StepDecoder(plan, RATES, LIMITS).read(bodies, NOW_MS)
    taken = [JSON.take(as_json(values), schema) for values in requests]
    in_json, wrong_json = StepDecoder(plan, RATES, LIMITS).read(taken, NOW_MS)
    assert {place: str(error) for place, error in wrong.items()} == {p: str(error) for p, error in wrong_json.items()}
    assert list(in_json.bodies) == list(in_protobuf.bodies)
    assert list(in_json.keys) == list(in_protobuf.keys)
    assert in_json.rows.tolist() == in_protobuf.rows.tolist()
    check([damaged(data.draw, body, schema) for body in bodies], plan)


def damaged(draw: Any, body: bytes, schema: RequestSchema) -> bytes:
    """Returns a body that is cut, has a wrong byte, has its fields in another order, or one of them twice."""
    kind = draw(st.sampled_from(["cut", "flipped", "turned", "twice", "unknown"]))
    place = draw(st.integers(0, len(body) - 1))
    if kind == "cut":
        return body[:place]
    if kind == "flipped":
        return body[:place] + bytes([draw(st.integers(0, 255))]) + body[place + 1 :]
    parts = [schema.message(**{field.name: value}) for field, value in schema.message.FromString(body).ListFields()]
    pieces = [part.SerializeToString() for part in parts]
    if kind == "turned":
        return b"".join(draw(st.permutations(pieces)))
    if kind == "twice":
        return body + bytes(draw(st.sampled_from(pieces)))
    # A number that nobody declares, one of two bytes that is not in its shortest form, and one of three bytes.
    return body + bytes(draw(st.sampled_from([b"\xa8\x0a\x01", b"\xa8\x86\x00\x01", b"\x98\x80\x01\x01", b"\x68\x01"])))


def test_a_request_with_every_kind_of_field_is_read_by_the_compiled_loop() -> None:
    """Otherwise the property above would compare the slow way with itself."""
    decoder = StepDecoder(EVERYTHING, RATES, LIMITS)
    for address in (None, "2001:db8::1"):
        own = {} if address is None else dict.fromkeys(("login_address", "ip"), address)
        body = decoder.schema.message(**{**BASE, **VALUES, **own}).SerializeToString()
        assert read_pieces(decoder.fast, [body], NOW_MS).is_usual == b"\1"
        check([body], EVERYTHING)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("login_address", "::ffff:192.0.2.1"),
        ("ip", "64:ff9b::192.0.2.1"),
        ("product", "café"),
        ("weight", 501.0),
        ("fee_minor", -1),
    ],
)
def test_an_unusual_value_is_left_to_the_slow_way(name: str, value: Any) -> None:
    decoder = StepDecoder(EVERYTHING, RATES, LIMITS)
    body = decoder.schema.message(**{**BASE, **VALUES, name: value}).SerializeToString()
    assert read_pieces(decoder.fast, [body], NOW_MS).is_usual == b"\0"
    check([body], EVERYTHING)


def test_a_required_field_that_is_missing_is_refused_by_name() -> None:
    plan = plan_of(of_every_kind(required=True))
    decoder = StepDecoder(plan, RATES, LIMITS)
    for left_out in (field.name for field in plan.fields.declared):
        values = {name: value for name, value in {**BASE, **VALUES}.items() if name != left_out}
        _, wrong = decoder.read([decoder.schema.message(**values).SerializeToString()], NOW_MS)
        assert wrong[0].field == left_out
        assert "is missing" in str(wrong[0])


def json_error(schema: RequestSchema, body: str) -> str:
    with pytest.raises(InvalidEvent) as error:
        JSON.take(body.encode(), schema)
    return f"{error.value.field}: {error.value}"


def test_json_refuses_wrong_types_in_the_words_of_the_table() -> None:
    schema = RequestSchema(EVERYTHING.fields)
    assert json_error(schema, '{"weight": "12"}') == "weight: weight: is text; wanted a number from -5 to 500"
    assert json_error(schema, '{"weight": true}') == "weight: weight: is true or false; wanted a number from -5 to 500"
    assert json_error(schema, '{"is_gift": 1}') == "is_gift: is_gift: is a whole number; wanted true or false"
    assert json_error(schema, '{"items": 1.0}').startswith("items: items: is a number with a fraction; wanted a whole")
    assert json_error(schema, '{"items": 9223372036854775808}').startswith(
        "items: items: does not fit in 64 bits; wanted"
    )
    assert json_error(schema, '{"weight": 1' + "0" * 400 + "}").startswith("weight: weight: is out of bounds; wanted")
    # A derived field is none that a request can bring.
    assert json_error(schema, '{"buyer_domain": "x.org"}') == "buyer_domain: buyer_domain: is not a field of a request"


def test_a_decimal_takes_whole_numbers_and_null_and_refuses_what_is_not_finite() -> None:
    decoder = StepDecoder(EVERYTHING, RATES, LIMITS)
    texts = ["12", "null", "NaN", "Infinity", "1e999", "1e308", "-5.0004"]
    taken = [JSON.take(as_json(BASE)[:-1] + f', "weight": {text}}}'.encode(), decoder.schema) for text in texts]
    payments, wrong = decoder.read(taken, NOW_MS)
    assert {place: str(error) for place, error in wrong.items()} == dict.fromkeys(
        range(2, 6), "weight: is out of bounds; wanted a number from -5 to 500"
    )
    assert payments.rows[:, 22].tolist() == [(1 << 54) + 12_000, 0, (1 << 54) - 5_000]


def test_unknown_fields_are_refused_or_ignored_by_setting() -> None:
    body = as_json({**BASE, "colour": {"any": [1, None]}, "items": 3})
    assert json_error(RequestSchema(EVERYTHING.fields), body.decode()) == "colour: colour: is not a field of a request"
    ignoring = StepDecoder(EVERYTHING, RATES, RequestLimits(past_ms_max=5_000, unknown_fields="ignore"))
    payments, wrong = ignoring.read([JSON.take(body, ignoring.schema)], NOW_MS)
    without, _ = ignoring.read([JSON.take(as_json({**BASE, "items": 3}), ignoring.schema)], NOW_MS)
    assert not wrong
    assert list(payments.sent) == list(without.sent)
    with pytest.raises(
        Misconfigured,
        match=r'\[limits\] unknown_fields: wanted "refuse" or "ignore", got "drop"'.replace('"drop"', "'drop'"),
    ):
        RequestLimits(unknown_fields="drop")


def test_errors_hold_no_value_of_a_declared_field() -> None:
    decoder = StepDecoder(EVERYTHING, RATES, LIMITS)
    secrets = {"customer_id": "4111111111111111", "buyer_email": "ann.secret@nowhere@", "login_address": "10.secret.1"}
    for name, secret in secrets.items():
        body = decoder.schema.message(**{**BASE, name: secret}).SerializeToString()
        _, wrong = decoder.read([body], NOW_MS)
        assert wrong[0].field == name
        assert secret not in str(wrong[0])
        assert "secret" not in str(wrong[0])


def test_the_kept_part_of_a_request_has_no_declared_field() -> None:
    decoder = StepDecoder(EVERYTHING, RATES, LIMITS)
    usual = {**BASE, **VALUES}
    bodies = [decoder.schema.message(**{**usual, "product": product}).SerializeToString() for product in ("phone", "é")]
    payments, _ = decoder.read(bodies, NOW_MS)
    for kept in payments.bodies:
        assert kept == ScoreRequest(**BASE, ip=VALUES["ip"]).SerializeToString()
        assert b"xample" not in kept.lower()
    # Conditions of the policy see them all.
    facts: Any = payments.facts_of(0)
    assert (facts.merchant_id, facts.product, facts.buyer_domain) == ("m", "phone", "example.com")
    assert (facts.weight, facts.is_gift, facts.items, facts.ip_network) == (12.346, True, -3, "192.0.2.0/24")
    chosen = payments.chosen([1])
    facts = chosen.facts_of(0)
    assert (facts.product, list(chosen.bodies)) == ("é", [payments.bodies[1]])


NUMBERS = ["0", "-0", "7", "-0.0", "12.5", "1e400", "-1E+2", "0.1", "4.35", "9007199254740993", "1" * 19, "1" * 40]
ODD = [
    "01",
    "1.",
    ".5",
    "+1",
    "NaN",
    "-Infinity",
    "null",
    "true",
    "{}",
    "[]",
    "[1]",
    '{"items": 1}',
    '"',
    "'p'",
    '"\t"',
]
TEXTS = ['"p"', '""', '"a\x7fb"', '"1"', "\"{'items': 1}\""]
USUAL = {"items": NUMBERS, "amount_minor": NUMBERS, "weight": NUMBERS, "card_id": TEXTS, "customer_id": TEXTS}
members = st.sampled_from([*USUAL, *USUAL, "unknown", ""]).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.sampled_from(["", "", " ", "\n", "\t\r", "\f"]),
        st.sampled_from(5 * USUAL.get(name, TEXTS) + ODD),
    )
)
objects = st.lists(members, max_size=4).map(
    lambda chosen: "{" + ",".join(f'"{name}"{space}:{value}{space}' for name, space, value in chosen) + "}"
)


def _read_or_refused(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except InvalidEvent as error:
        return error.field, str(error)


@settings(max_examples=75)
@given(st.lists(objects, min_size=1, max_size=3), st.sampled_from(["", " ", "\ufeff", "}", ", "]))
def test_the_quick_reader_of_json_gives_what_the_other_gives(written: list[str], end: str) -> None:
    """Numbers of every form, names given twice, and texts that look like something else."""
    schema = RequestSchema(EVERYTHING.fields)
    alone, together = (written[0] + end).encode(), ('{"requests":[' + ",".join(written) + "]}" + end).encode()
    quick = (
        _read_or_refused(lambda: JSON.take(alone, schema)),
        _read_or_refused(lambda: JSON.take_batch(together, 3, schema)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_form, "_take_quickly", lambda *_: None)
        patch.setattr(json_form, "_take_batch_quickly", lambda *_: None)
        assert quick == (
            _read_or_refused(lambda: JSON.take(alone, schema)),
            _read_or_refused(lambda: JSON.take_batch(together, 3, schema)),
        )
