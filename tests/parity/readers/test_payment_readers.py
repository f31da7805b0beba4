"""Every reader of payments against every other: all accept the same payments and read the same values.

    endpoint   JSON, protobuf parsed, protobuf by the compiled loop
    topic      Avro one by one, Avro by the compiled loop, rows of the topic as a history
    history    Parquet as a whole, Parquet in parts

Readers differ only where the table (schemas/payment_fields.py) says so. The endpoint's time bounds
are tighter than the topic's, and these are tighter than a history's. A request has no `declined`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.catalogue.attributes import ATTRIBUTES, KEYED, AttributeKind, declined
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.history.entity_columns import entity_column
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.point_in_time import reference_amounts
from paywarden.features.history.rows import HistoryRows
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX, FIELD, FIELDS, TIME_MS_END, TIME_MS_MIN
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.validation import RequestLimits, RequestRules
from paywarden.streams.archive.topic_history import history_of_rows
from paywarden.streams.kafka.reading import Record
from paywarden.streams.kafka.topic_rows import TopicRows, rows_schema
from paywarden.streams.profiles.decoder import EventDecoder as Stream
from paywarden.streams.profiles.payment_columns import Position
from tests.oracles.request_rows import RequestRows
from tests.oracles.step_decoder import StepDecoder as Endpoint

NOW_MS = 1_720_000_000_000
DAY_MS = 86_400_000
RATES = RateTable({"EUR": [(0, RATE_SCALE)], "JPY": [(0, 6_123), (NOW_MS - 500, 6_321)]})
IDS = LocalSchemaIds()
ENCODER = Encoder("payments", IDS.id_of("payments"))

card, trio = Entity("card", "card_id"), Entity("trio", ("device_id", "merchant_id", "ip"))
# A condition on every attribute, so that the reader reads every attribute of a request.
CODES = {"country": "AB", "currency": "EUR", "mcc": "5411"}
QUESTIONS = [
    card.count(f"{one.name}_count", "1d", where=one != CODES.get(one.name, "x"))
    for one in ATTRIBUTES
    if one.kind in (AttributeKind.TEXT, AttributeKind.COUNTRY)
]
QUESTIONS += [card.is_new(f"{one.name}_new", one, among=1) for one in KEYED]
ENGINE = FeatureEngine(Catalogue([card, trio], [trio.count("trio_count", "1d"), request.hour("hour"), *QUESTIONS]))
ENTITIES = list(zip(ENGINE.plan.entity_names, ENGINE.plan.entity_keys, strict=True))
ENDPOINT, STREAM = Endpoint(ENGINE.plan, RATES, RequestLimits()), Stream(ENGINE, RATES, IDS)
RULES, ROWS = RequestRules(RequestLimits()), RequestRows(ENGINE.plan, RATES, 1)

Payment = Mapping[str, Any]


class Read(NamedTuple):
    """The values that a reader read from an accepted payment."""

    payment_id: str
    row: list[int]
    keys: list[bytes]


Verdict = Read | str
"""Or the name of the refused field."""


def asked(payment: Payment) -> dict[str, Any]:
    return {name: value for name, value in payment.items() if value is not None and FIELD[name].at_endpoint}


def of_endpoint(body: bytes) -> Verdict:
    payments, wrong = ENDPOINT.read([body], NOW_MS)
    if wrong:
        return wrong[0].field
    return Read(payments.ids[0].decode(), payments.rows[0].tolist(), list(payments.keys))


def json_request(payment: Payment) -> Verdict:
    try:
        return of_endpoint(JSON.take(json.dumps(asked(payment)).encode()))
    except InvalidEvent as error:
        return error.field


def protobuf_request(payment: Payment) -> Verdict:
    return of_endpoint(ScoreRequest(**asked(payment)).SerializeToString())


def parsed_request(payment: Payment) -> Verdict:
    message = ScoreRequest(**asked(payment))
    try:
        RULES.check(message, NOW_MS)
    except InvalidEvent as error:
        return error.field
    ROWS.write(0, message)
    return Read(message.payment_id, ROWS.attributes[0].tolist(), ROWS.keys_of(message))


def avro_record(payment: Payment) -> Verdict:
    try:
        event = STREAM.payment(ENCODER.encode(payment), Position(0, 0), NOW_MS, NOW_MS)
    except InvalidEvent as error:
        return error.field
    return Read(event.payment_id, list(event.attributes), list(event.keys))


def avro_batch(payment: Payment) -> Verdict:
    (event,) = STREAM.payments([Record("payments", 0, 0, b"k", ENCODER.encode(payment), NOW_MS, ())], NOW_MS)
    if isinstance(event, InvalidEvent):
        return event.field
    return Read(event.payment_id, list(event.attributes), list(event.keys))


def topic_row(payment: Payment) -> Verdict:
    place = {"kafka_partition": 0, "kafka_offset": 0, "kafka_timestamp_ms": NOW_MS}
    table = pa.Table.from_pylist([{**payment, **place}], rows_schema("payments"))
    history, left_out = history_of_rows(TopicRows(table, ()), no_outcomes_of_topic())
    for reason in left_out.counts:
        return reason.removeprefix("payments that the stream refuses: ").split()[0]
    return of_history(history)


def no_outcomes_of_topic() -> TopicRows:
    return TopicRows(rows_schema("outcomes").empty_table(), ())


COLUMN_TYPES = {"event_time_ms": pa.int64(), "amount_minor": pa.int64(), "utc_offset_minutes": pa.int32()}
COLUMN_TYPES["declined"] = pa.bool_()


def columns_of(payment: Payment) -> pa.Table:
    return pa.table({name: pa.array([payment[name]], COLUMN_TYPES.get(name, pa.string())) for name in FIELD})


def no_outcomes() -> pa.Table:
    kinds = {"payment_id": pa.string(), "outcome_time_ms": pa.int64(), "label": pa.string(), "source": pa.string()}
    return pa.table({name: pa.array([], kind) for name, kind in kinds.items()})


def whole_history(payment: Payment) -> Verdict:
    return named(lambda: of_history(history_of_tables(columns_of(payment), no_outcomes())))


def named(read: Callable[[], Read]) -> Verdict:
    """Returns the reading, or the field that a history's error names."""
    try:
        return read()
    except InvalidEvent as error:
        return error.field
    except Misconfigured as error:
        return "".join(re.findall(r"(?:, row 0: |column )(\w+) ", str(error)))


def of_history(history: History) -> Read:
    row = HistoryRows(history, reference_amounts(history, RATES)).of(np.array([0]))[0].tolist()
    keys = []
    for name, fields in ENTITIES:
        column = entity_column(history, name, fields)
        keys.append(column.store_keys()[int(column.codes[0])] if column.codes[0] >= 0 else b"")
    return Read(history.payment_id[0].as_py(), row, keys)


Reader = Callable[[Payment], Verdict]
GROUPS: dict[str, tuple[Reader, ...]] = {
    "endpoint": (json_request, protobuf_request, parsed_request),
    "topic": (avro_record, avro_batch, topic_row),
    "history": (whole_history,),
}


def verdicts(payment: Payment, groups: Mapping[str, tuple[Reader, ...]] = GROUPS) -> dict[str, Verdict]:
    """Returns the verdict of each group. The readers of a group must agree about everything."""
    found = {}
    for group, readers in groups.items():
        first, *others = [reader(payment) for reader in readers]
        for reader, other in zip(readers[1:], others, strict=True):
            assert other == first, (readers[0].__name__, reader.__name__)
        found[group] = first
    return found


def without_declined(verdict: Verdict) -> Verdict:
    if isinstance(verdict, str):
        return verdict
    row = list(verdict.row)
    row[declined.column] = 0
    return verdict._replace(row=row)


GOOD: dict[str, Any] = {
    "payment_id": "p-1",
    "event_time_ms": NOW_MS - 1000,
    "card_id": "c-1",
    "merchant_id": "m-1",
    "device_id": None,
    "ip": None,
    "amount_minor": 1050,
    "currency": "EUR",
    "mcc": None,
    "country": None,
    "channel": None,
    "utc_offset_minutes": None,
    "declined": None,
}
GOOD_IDS, BAD_IDS = (
    ["x", "ü", " ", "a:b", "x" * 256, "é" * 128, "💳"],
    ["", "x" * 257, "é" * 129, "a\nb", "\x7f", "\x1f"],
)
GOOD_WORDS, BAD_WORDS = ["ecom", "2001:db8::1", "x" * 64], ["", "x" * 65, "é" * 33, "a\tb"]
CARDS = ["4111111111111111", "4111 1111 1111 1111", "3782-822463-10005", "4222222222222"]
# The check digit is right, but no card network's numbers begin so, or are so long.
NUMBERS = ["100000000000009", "900000000000000001", "8000 0000 0000 0003", "34100000000000008"]
# These values are written by hand and not taken from the table.
RIGHT: dict[str, list[Any]] = {
    "payment_id": [*GOOD_IDS, *NUMBERS, "4111111111111112"],
    "event_time_ms": [NOW_MS, NOW_MS - 6 * DAY_MS, NOW_MS + 59_000],
    "card_id": [*GOOD_IDS, "4111111111111112", "1" * 12, "tok_4111111111111111"],
    "merchant_id": [*GOOD_IDS, *NUMBERS],
    "device_id": [None, *GOOD_IDS, *NUMBERS],
    "ip": [None, *GOOD_WORDS],
    "amount_minor": [0, 1, 10**11],
    # The naira and the franc have no rate.
    "currency": ["EUR", "JPY", "NGN", "XAF"],
    "mcc": [None, "5411", "0000"],
    "country": [None, "DE", "AA", "ZZ"],
    "channel": [None, *GOOD_WORDS],
    "utc_offset_minutes": [None, 0, 60, -1439, 1439],
    "declined": [None, True, False],
}
WRONG: dict[str, list[Any]] = {
    "payment_id": [*BAD_IDS, *CARDS],
    "event_time_ms": [
        *(0, 1, -1, NOW_MS // 1000, NOW_MS * 1000, NOW_MS * 10**6, 2**63 - 1, -(2**63)),
        *(TIME_MS_MIN - 1, TIME_MS_END),
    ],
    "card_id": [*BAD_IDS, *CARDS, *NUMBERS],
    "merchant_id": [*BAD_IDS, *CARDS],
    "device_id": [*BAD_IDS, *CARDS],
    "ip": [*BAD_WORDS, *CARDS],
    "amount_minor": [-1, 10**11 + 1, 2**63 - 1, -(2**63)],
    "currency": ["", "eur", "EU", "EURO", "E1R", "XXX", "XXQ", "OMN", "ÄÖÜ", "EUR\n", "Euro"],
    "mcc": ["", "541", "54111", "54a1", "٥٤١١", " 541"],
    "country": ["", "de", "De", "D", "DEU", "D1", "Germany", "ÄÖ", "DE\n"],
    "channel": [*BAD_WORDS, *CARDS],
    "utc_offset_minutes": [1440, -1440, 2**31 - 1, -(2**31)],
}
assert list(RIGHT) == list(FIELD)


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in RIGHT.items()}))
def test_every_reader_reads_the_same_from_a_valid_payment(payment: dict[str, Any]) -> None:
    found = verdicts(payment)
    assert isinstance(found["topic"], Read), found
    assert found["history"] == found["topic"]
    assert found["endpoint"] == without_declined(found["topic"])


@pytest.mark.parametrize("name", list(WRONG))
def test_every_reader_names_the_field_that_is_wrong(name: str) -> None:
    for value in WRONG[name]:
        assert verdicts(GOOD | {name: value}) == dict.fromkeys(GROUPS, name), repr(value)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in RIGHT.items()}),
    st.dictionaries(st.sampled_from(list(WRONG)), st.integers(0, 100), min_size=2),
)
def test_every_reader_names_the_first_wrong_field_of_the_table(payment: dict[str, Any], wrong: dict[str, int]) -> None:
    for name, number in wrong.items():
        payment[name] = WRONG[name][number % len(WRONG[name])]
    first = next(field.name for field in FIELDS if field.name in wrong)
    assert verdicts(payment) == dict.fromkeys(GROUPS, first)


TEXT = st.text(max_size=6) | st.text("0123456789 -", max_size=22) | st.text("AZaz09é \x7f", max_size=70)
NUMBER = st.integers(-(2**63), 2**63 - 1) | st.integers(NOW_MS - 60 * DAY_MS, NOW_MS + 100_000)
ANY: dict[str, st.SearchStrategy[Any]] = {
    **{field.name: TEXT if field.is_required else st.none() | TEXT for field in FIELDS if field.is_text},
    "event_time_ms": NUMBER,
    "amount_minor": st.integers(-5, 10**12) | NUMBER,
    "utc_offset_minutes": st.none() | st.integers(-(2**31), 2**31 - 1) | st.integers(-2000, 2000),
    "declined": st.none() | st.booleans(),
}


@st.composite
def payments_with_one_odd_field(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(list(ANY)))
    return GOOD | {name: draw(ANY[name])}


@settings(max_examples=100, deadline=None)
@given(payments_with_one_odd_field())
def test_every_reader_agrees_on_any_value(payment: dict[str, Any]) -> None:
    found = verdicts(payment)
    accepted = [group for group, verdict in found.items() if isinstance(verdict, Read)]
    refused = {verdict for verdict in found.values() if isinstance(verdict, str)}
    assert len(refused) <= 1
    if refused and accepted:
        # The only difference in values: a reader further from the moment of the payment accepts older payments.
        assert refused == {"event_time_ms"}
        assert accepted in (["topic", "history"], ["history"])
    assert len({str(without_declined(found[group])) for group in accepted}) <= 1


@pytest.mark.parametrize(
    ("event_time_ms", "accepted"),
    [
        (NOW_MS - 7 * DAY_MS, ["endpoint", "topic", "history"]),
        (NOW_MS - 7 * DAY_MS - 1, ["topic", "history"]),
        (NOW_MS - 40 * DAY_MS, ["topic", "history"]),
        (NOW_MS - 40 * DAY_MS - 1, ["history"]),
        (NOW_MS + 60_000, ["endpoint", "topic", "history"]),
        (NOW_MS + 60_001, ["history"]),
        (TIME_MS_MIN, ["history"]),
        (TIME_MS_END - 1, ["history"]),
        (TIME_MS_MIN - 1, []),
        (TIME_MS_END, []),
    ],
)
def test_each_kind_of_reader_keeps_the_time_bounds_of_the_table(event_time_ms: int, accepted: list[str]) -> None:
    found = verdicts(GOOD | {"event_time_ms": event_time_ms})
    assert [group for group, verdict in found.items() if isinstance(verdict, Read)] == accepted
    assert all(verdict == "event_time_ms" for group, verdict in found.items() if group not in accepted)


@pytest.mark.parametrize("name", [field.name for field in FIELDS if field.is_required])
def test_every_reader_or_writer_names_a_missing_required_field(name: str) -> None:
    payment = GOOD | {name: None}
    for reader in (*GROUPS["endpoint"], *GROUPS["history"]):
        assert reader(payment) == name, reader.__name__
    # A record without this field cannot be written: Avro has no other way to lack a required field.
    with pytest.raises(InvalidEvent, match=f"^{name}: ") as caught:
        ENCODER.encode({field: value for field, value in payment.items() if field != name})
    assert caught.value.field == name


@pytest.mark.parametrize("name", list(FIELD))
def test_every_reader_or_writer_names_a_field_of_a_wrong_type(name: str) -> None:
    other: Any = 7 if FIELD[name].is_text else "7"
    with pytest.raises(InvalidEvent) as caught:
        JSON.take(json.dumps(asked(GOOD) | {name: other}).encode())
    assert caught.value.field == name
    with pytest.raises(InvalidEvent) as caught:
        ENCODER.encode(GOOD | {name: other})
    assert caught.value.field == name
    table = columns_of(GOOD)
    table = table.set_column(table.column_names.index(name), name, pa.array([other]))
    assert named(lambda: of_history(history_of_tables(table, no_outcomes()))) == name


@pytest.mark.parametrize("number", [field.number for field in ScoreRequest.DESCRIPTOR.fields])
def test_a_protobuf_field_of_another_wire_type_counts_as_missing(number: int) -> None:
    """Every protobuf reader does this: the parser takes such a field for one of a newer schema."""
    name = ScoreRequest.DESCRIPTOR.fields_by_number[number].name
    # A tag with the other wire type: the varint 7 for a text, an empty text for a number.
    odd = bytes([number << 3, 7]) if FIELD[name].is_text else bytes([number << 3 | 2, 0])
    rest = ScoreRequest(**{field: value for field, value in asked(GOOD).items() if field != name})
    verdict = of_endpoint(rest.SerializeToString() + odd)
    assert verdict == name if FIELD[name].is_required else isinstance(verdict, Read)


def test_the_table_has_the_fields_of_the_topic_and_of_a_request() -> None:
    assert list(FIELD) == rows_schema("payments").names[: len(FIELD)]
    assert [field.name for field in FIELDS if field.at_endpoint] == [
        field.name for field in ScoreRequest.DESCRIPTOR.fields
    ]
    assert FIELD["amount_minor"].maximum == AMOUNT_MINOR_MAX
