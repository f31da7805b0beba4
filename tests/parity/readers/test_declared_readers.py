"""A project's own fields through every reader of topics and files: the same row, keys, vectors and refusals.

    topic      Avro one by one, Avro by the compiled loop
    history    Parquet whole, Parquet in parts, rows of the topic with keyed hashes in place of e-mail addresses
    stream     events through records in the store and frames, against the point-in-time pass through a history

Declarations are random (tests/worlds/stream/declarations.py). Tests of one form take theirs from FORMS.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue import fields as words
from paywarden.features.catalogue.attributes import (
    Attribute,
    AttributeKind,
    amount_minor,
    hour,
    ip,
    row_width,
    weekday,
)
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.history.entity_columns import entity_column
from paywarden.features.history.history import History, history_of_tables, read_history, write_history
from paywarden.features.history.point_in_time import PointInTimeReplay, declared_amounts, reference_amounts
from paywarden.features.history.rows import HistoryRows
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.schemas.payment_fields import Form, PaymentField, PaymentFields
from paywarden.streams.archive.topic_history import history_of_rows
from paywarden.streams.kafka.reading import Record
from paywarden.streams.kafka.topic_rows import RowBuilder, TopicRows, rows_schema
from paywarden.streams.maintenance.backfill import backfill
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.decoder import EventDecoder
from paywarden.streams.profiles.events import OutcomeEvent, RecordLayout
from paywarden.streams.profiles.payment_columns import PaymentEvent, Position
from paywarden.streams.profiles.repartition import decode_frame, encode_frame
from tests.worlds.stream.declarations import column_types, maybe_values_of, payment_declarations, wrong_values_of

NOW_MS = 1_720_000_000_000
RATES = RateTable({"EUR": [(0, RATE_SCALE)], "JPY": [(0, 6_123), (NOW_MS - 500, 6_321)]})
KEY = IdentityKey.of_bytes(b"sixteen bytes...")

# One of each form, by a name of its own.
FORMS: dict[str, Any] = {
    "customer": lambda n: words.text("customer", n, personal=True),
    "product": lambda n: words.category("product", n, ["book", "toy"]),
    "issuer": lambda n: words.bin_number("issuer", n),
    "billing": lambda n: words.country("billing", n),
    "delivery": lambda n: words.address("delivery", n),
    "buyer": lambda n: words.email("buyer", n),
    "days": lambda n: words.integer("days", n, unit="days", least=-10, most=10_000),
    "weight": lambda n: words.decimal("weight", n, unit="kg", least=-90, most=500, decimals=3),
    "tip": lambda n: words.money("tip", n),
    "opened": lambda n: words.time("opened", n),
    "born": lambda n: words.time("born", n, earliest="1900-01-01"),
    "gift": lambda n: words.flag("gift", n),
    "needed": lambda n: words.text("needed", n, required=True),
}
TEXTS = {
    Form.ID: ["c-1", "c-2", "Zürich", "book"],
    Form.BIN: ["411111", "51005100"],
    Form.COUNTRY: ["DE", "FR"],
    Form.ADDRESS: ["192.0.2.7", "192.0.2.200", "10.0.0.1", "2001:db8::7", "2001:DB8::7"],
    Form.EMAIL: ["ann@example.com", "Ann@Example.COM", "bob@mail.example.org"],
}
DECIMALS = [0.0, -0.0, 1.0005, 2.0005, 12.3445, 499.9994, 500.0, 500.0004, -90.0, 1e-9, 1 / 3]


class World(NamedTuple):
    """A declaration with all that reads its payments."""

    fields: PaymentFields
    engine: FeatureEngine
    encoder: Encoder
    ids: LocalSchemaIds
    stream: EventDecoder


def worlds() -> st.SearchStrategy[World]:
    return payment_declarations().map(world_of)


def world_of(payment: words.Payment) -> World:
    numbers = [one for one in payment.attributes if one.kind is AttributeKind.NUMBER]
    texts = [one for one in payment.attributes if one.derived or (one.field and one.field.is_text)]
    keys = [one.name for one in texts if one.kind is not AttributeKind.COUNTRY]
    entities = [Entity("card", "card_id"), *(Entity(f"by_{name}", name) for name in keys[:4])]
    if keys:
        entities.append(Entity("pair", ("merchant_id", keys[-1])))
    features = [request.hour("hour")]
    for entity in entities:
        features.append(entity.count(f"{entity.name}_count", "1d"))
        features += [entity.distinct(f"{entity.name}_{one.name}", one, "1d") for one in texts[:3]]
        # Labels are counted by a number of their payment where it has one.
        where = numbers[0] >= middle_of(numbers[0]) if numbers else None
        features.append(entity.fraud_count(f"{entity.name}_frauds", "1d", delay="", where=where))
    plan_catalogue = Catalogue(entities, features, payment)
    engine, ids = FeatureEngine(plan_catalogue, KEY), LocalSchemaIds(fields=payment.fields)
    encoder = Encoder("payments", ids.id_of("payments"), schema=ids.current_schema("payments"))
    return World(payment.fields, engine, encoder, ids, EventDecoder(engine, RATES, ids))


def middle_of(number: Attribute) -> float:
    """Returns a value of a declared number that some of its values reach."""
    assert number.field is not None
    middle = (number.field.minimum + min(number.field.maximum, number.field.minimum + 10_000)) // 2
    return middle / 10**number.field.decimals if number.field.is_decimal else middle


def values_of(field: PaymentField, *, right: bool) -> st.SearchStrategy[Any]:
    if right:
        return maybe_values_of(field)
    return st.one_of(*[maybe_values_of(field)] * 8, wrong_values_of(field), st.none())


def payments_of(world: World, *, right: bool = True) -> st.SearchStrategy[list[dict[str, Any]]]:
    own = {field.name: values_of(field, right=right) for field in world.fields.declared}
    usual = {
        "card_id": st.sampled_from(["k1", "k2"]),
        "merchant_id": st.sampled_from(["m1", "m2"]),
        "ip": st.sampled_from([None, "198.51.100.7", "203.0.113.9", "no address", "2001:db8::1", "1.2.3.04"]),
        "amount_minor": st.integers(0, 10_000),
        "currency": st.sampled_from(["EUR", "JPY", "NGN"]),
        "event_time_ms": st.integers(NOW_MS - 2_000, NOW_MS),
    }

    def numbered(payments: list[dict[str, Any]]) -> list[dict[str, Any]]:
        payments.sort(key=lambda payment: payment["event_time_ms"])
        return [{"payment_id": f"p{number}", **payment} for number, payment in enumerate(payments)]

    return st.lists(st.fixed_dictionaries(usual | own), min_size=1, max_size=6).map(numbered)


def records_of(world: World, payments: Sequence[dict[str, Any]]) -> list[Record]:
    return [
        Record("payments", 0, offset, b"k", world.encoder.encode(payment), NOW_MS, ())
        for offset, payment in enumerate(payments)
    ]


def one_by_one(world: World, records: Sequence[Record]) -> list[PaymentEvent | str]:
    events: list[PaymentEvent | str] = []
    for record in records:
        try:
            events.append(world.stream.payment(record.value, Position(0, record.offset), NOW_MS, NOW_MS))
        except InvalidEvent as error:
            events.append(str(error))
    return events


def tables_of(world: World, payments: Sequence[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    table = pa.table(
        {
            name: pa.array([payment.get(name) for payment in payments], kind)
            for name, kind in column_types(world.fields).items()
        }
    )
    return table, outcomes_of(payments)


def outcomes_of(payments: Sequence[dict[str, Any]]) -> pa.Table:
    """Every second payment is a fraud, known at once."""
    frauds = payments[::2]
    return pa.table(
        {
            "payment_id": pa.array([payment["payment_id"] for payment in frauds], pa.string()),
            "outcome_time_ms": pa.array([payment["event_time_ms"] for payment in frauds], pa.int64()),
            "label": pa.array(["fraud" for _ in frauds], pa.string()),
            "source": pa.nulls(len(frauds), pa.string()),
        }
    )


def topic_history(world: World, records: Sequence[Record], payments: Sequence[dict[str, Any]]) -> History:
    builder = RowBuilder("payments", world.ids, world.fields, KEY)
    for record in records:
        builder.add(record)
    rows = builder.take()
    for field in world.fields.declared:
        if field.form is Form.EMAIL:
            assert rows.table[field.name].type == pa.int64()
    outcomes = outcomes_of(payments)
    places = {"kafka_partition": pa.int32(), "kafka_offset": pa.int64(), "kafka_timestamp_ms": pa.int64()}
    for name, kind in places.items():
        outcomes = outcomes.append_column(
            name, pa.array([NOW_MS] * len(outcomes) if "ms" in name else range(len(outcomes)), kind)
        )
    told = TopicRows(outcomes.cast(rows_schema("outcomes")), ())
    history, left_out = history_of_rows(rows, told, fields=world.fields)
    assert left_out.counts == {}
    return history


def histories(world: World, payments: Sequence[dict[str, Any]], folder: Path) -> Iterator[History]:
    tables = tables_of(world, payments)
    yield history_of_tables(*tables, world.fields)
    write_history(folder, *tables, world.fields)
    yield read_history(folder, world.fields)
    yield topic_history(world, records_of(world, payments), payments)


@settings(max_examples=60)
@given(st.data(), worlds())
def test_declared_fields_decoded_together_equal_those_decoded_one_by_one(data: st.DataObject, world: World) -> None:
    records = records_of(world, data.draw(payments_of(world, right=data.draw(st.booleans()))))
    together = [str(e) if isinstance(e, InvalidEvent) else e for e in world.stream.payments(records, NOW_MS)]
    assert together == one_by_one(world, records)


def test_every_declared_form_takes_the_fast_way() -> None:
    """Without this the test above could compare the slow decoder with itself."""
    declared = {name: make(number) for number, (name, make) in enumerate(FORMS.items(), 1)}
    near, street = words.network("near", 40, of=ip), words.network("street", 41, of=declared["delivery"], bits=20)
    domain = words.email_domain("domain", 42, of=declared["buyer"])
    bands = (
        words.band("hours", 43, of=hour, bounds=(6, 22)),
        words.band("days_of_week", 44, of=weekday),
        words.band("sizes", 45, of=amount_minor, bounds=(1, 6, 1000)),
        words.band("weights", 46, of=declared["weight"], bounds=(0, 12.344, 12.345)),
        words.band("tips", 47, of=declared["tip"], bounds=(900,)),
    )
    world = world_of(words.Payment(*declared.values(), near, street, domain, *bands))

    def slowly(record: Record) -> PaymentEvent:
        raise AssertionError(record)

    payment: dict[str, Any] = {
        "payment_id": "p", "card_id": "k", "merchant_id": "m", "amount_minor": 5, "currency": "JPY",
        "event_time_ms": NOW_MS, "ip": "198.51.100.7",
        **{one.field.name: TEXTS[one.field.form][0] for one in declared.values() if one.field.is_text},
        "days": 7, "weight": 12.3445, "tip": 900, "opened": NOW_MS, "gift": True,
        "born": -500_000_000_000,
    }  # fmt: skip
    few = {name: payment[name] for name in payment if name not in FORMS or name == "needed"}
    others = [{**payment, "weight": weight} for weight in DECIMALS]
    others += [{**payment, "buyer": buyer, "delivery": "10.0.0.255"} for buyer in TEXTS[Form.EMAIL]]
    records = records_of(world, [payment, few, *others])
    assert list(world.stream._fast.payments(records, NOW_MS, slowly)) == one_by_one(world, records)


@settings(max_examples=25)
@given(st.data(), worlds())
def test_a_history_has_the_rows_and_keys_of_the_topic(data: st.DataObject, world: World) -> None:
    payments = data.draw(payments_of(world))
    events = one_by_one(world, records_of(world, payments))
    plan = world.engine.plan
    with tempfile.TemporaryDirectory() as folder:
        for history in histories(world, payments, Path(folder)):
            amounts, more = reference_amounts(history, RATES), declared_amounts(history, RATES)
            rows = HistoryRows(history, amounts, KEY, more).of(slice(0, len(history)))
            keys = []
            for name, names in zip(plan.entity_names, plan.entity_keys, strict=True):
                column = entity_column(history, name, names, key=KEY)
                texts = [*column.store_keys(), b""]
                keys.append([texts[code] for code in column.codes.tolist()])
            order = [history.payment_id.to_pylist().index(payment["payment_id"]) for payment in payments]
            read = [(rows[row].tolist(), tuple(of_entity[row] for of_entity in keys)) for row in order]
            assert read == [(list(event.attributes), event.keys) for event in events if isinstance(event, PaymentEvent)]


@settings(max_examples=15)
@given(st.data(), worlds())
def test_the_stream_gives_the_vectors_of_the_point_in_time_pass(data: st.DataObject, world: World) -> None:
    """Through records in the store, which hold public codes alone, and through frames."""
    payments = data.draw(payments_of(world))
    # At equal times a history has all payments before the labels.
    times = [payment["event_time_ms"] for payment in payments]
    assume(all(later > earlier for earlier, later in pairwise(times)))
    history = history_of_tables(*tables_of(world, payments), world.fields)
    (chunk,) = PointInTimeReplay(history, world.engine, RATES).chunks()
    events = [event for event in one_by_one(world, records_of(world, payments)) if isinstance(event, PaymentEvent)]
    vectors = np.concatenate(list(streamed(world, events)))
    assert chunk.vectors.tobytes() == vectors.tobytes()


def streamed(world: World, events: Sequence[PaymentEvent]) -> Iterator[np.ndarray[Any, Any]]:
    """Yields each payment's vector before it; then the payment and, for every second one, its fraud are applied."""
    engine, layout = world.engine, RecordLayout(world.fields)
    profiles: list[dict[bytes, bytes]] = [{} for _ in engine.plan.entity_names]
    records: dict[bytes, bytes] = {}
    for number, event in enumerate(events):
        yield vector_of(engine, event, profiles)
        frauds = [OutcomeEvent(Position(1, number), event.payment_id, is_fraud=True)] if number % 2 == 0 else []
        for some_payments, some_outcomes in (([event], []), ([], frauds)):
            joined = batch.join(some_payments, some_outcomes, records, len(profiles), layout)
            assert not joined.refused
            records |= joined.records
            for entity, of_entity in enumerate(joined.of_entities()):
                received = decode_frame(encode_frame(of_entity, 4), 4)
                profiles[entity] |= batch.apply(entity, received, profiles[entity], engine).profiles


def vector_of(
    engine: FeatureEngine, event: PaymentEvent, profiles: Sequence[dict[bytes, bytes]]
) -> np.ndarray[Any, Any]:
    states = [profiles[entity].get(key, b"") for entity, key in enumerate(event.keys)]
    presence = [
        kernel.KNOWN if state else kernel.UNKNOWN if key else kernel.ABSENT
        for state, key in zip(states, event.keys, strict=True)
    ]
    bounds = np.cumsum([0, *map(len, states)]).astype(np.int64)
    out = np.empty((1, engine.plan.feature_count), dtype=np.float32)
    packed = np.frombuffer(bytearray(b"".join(states)), dtype=np.uint8)
    row = np.array([event.attributes], dtype=np.int64)
    engine.fill_vectors(row, np.array(presence, dtype=np.uint8), packed, bounds, out)
    return out


@cache
def every_form() -> World:
    return world_of(words.Payment(*[declare(number) for number, declare in enumerate(FORMS.values(), 1)]))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(FORMS)))
def test_a_later_record_is_changed_if_a_declared_field_differs(data: st.DataObject, name: str) -> None:
    world = every_form()
    field = world.fields.by_name[name]
    assert isinstance(field, PaymentField)
    payment = {
        "payment_id": "p", "card_id": "k", "merchant_id": "m", "amount_minor": 5, "currency": "JPY",
        "event_time_ms": NOW_MS, "needed": "n",
    }  # fmt: skip
    payment, other = ({**payment, field.name: data.draw(values_of(field, right=True))} for _ in range(2))
    (first,), (later,) = world_events(world, [payment]), world_events(world, [other])
    later = later._replace(position=Position(0, 1))
    layout, entities = RecordLayout(world.fields), len(first.keys)
    kept = batch.join([first], [], {}, entities, layout).records
    # A row has more than a record keeps: the identities of all texts.
    kind = batch.RESENT if first.attributes == later.attributes else batch.CHANGED
    assert batch.join([later], [], kept, entities, layout).later == {kind: 1}
    # The same holds for a payment that was backfilled.
    store = MemoryStore()
    history = history_of_tables(*tables_of(world, [payment]), world.fields)
    backfill(history, store, engine=world.engine, rates=RATES, outcome_days=1)
    kept = dict(store.scan("payment"))
    assert batch.join([later], [], kept, entities, layout).later == {kind: 1}


def test_a_later_record_is_compared_by_the_fields_that_both_declarations_have() -> None:
    few = world_of(words.Payment(FORMS["product"](2)))
    more = world_of(words.Payment(FORMS["product"](2), FORMS["buyer"](3), FORMS["tip"](4)))
    most = world_of(words.Payment(FORMS["product"](2), FORMS["buyer"](3), FORMS["tip"](4), words.money("fee", 5)))
    values = {"product": "book", "buyer": "ann@example.com", "tip": 5, "fee": 7}
    payment: dict[str, Any] = {
        "payment_id": "p", "card_id": "k", "merchant_id": "m", "amount_minor": 5, "currency": "EUR",
        "event_time_ms": NOW_MS,
    }  # fmt: skip
    for before, after in ((few, more), (more, most), (most, more), (more, few)):
        events = []
        for world in (before, after):
            said = {name: value for name, value in values.items() if name in world.fields.by_name}
            events.append(world_events(world, [payment | said])[0])
        first, later = events[0], events[1]._replace(position=Position(0, 1), keys=events[0].keys)
        kept = batch.join([first], [], {}, len(first.keys), RecordLayout(before.fields)).records
        joined = batch.join([later], [], kept, len(first.keys), RecordLayout(after.fields))
        assert joined.later == {batch.RESENT: 1}


def test_records_and_frames_of_another_declaration_are_read_by_number() -> None:
    few = world_of(words.Payment(FORMS["product"](2)))
    many = world_of(words.Payment(FORMS["product"](2), FORMS["weight"](5)))
    payment: dict[str, Any] = {
        "payment_id": "p", "card_id": "k", "merchant_id": "m", "amount_minor": 5, "currency": "EUR",
        "event_time_ms": NOW_MS, "product": "book", "weight": 1.5,
    }  # fmt: skip
    (wide,) = world_events(many, [payment])
    (narrow,) = world_events(few, [{name: value for name, value in payment.items() if name != "weight"}])
    told = OutcomeEvent(Position(1, 0), "p", is_fraud=True)
    for first, later, same in ((wide, few, narrow), (narrow, many, narrow)):
        sender = many if first is wide else few
        kept = batch.join([first], [], {}, len(first.keys), RecordLayout(sender.fields)).records
        joined = batch.join([], [told], kept, len(first.keys), RecordLayout(later.fields))
        (row,) = joined.rows
        columns = {column: same.attributes[column] for column in range(kernel.CODE_COUNT)}
        columns[kernel.ATTRIBUTE_COUNT + 2] = same.attributes[kernel.ATTRIBUTE_COUNT + 2]
        assert {column: row[batch.ATTRIBUTES_AT + column] for column in columns} == columns
        assert len(row) == batch.ATTRIBUTES_AT + row_width(later.fields)
        joined = batch.join([first], [], {}, len(first.keys), RecordLayout(sender.fields))
        received = decode_frame(encode_frame(joined.of_entities()[0], 4), 4)
        batch.apply(0, received, {}, later.engine)


def world_events(world: World, payments: Sequence[dict[str, Any]]) -> list[PaymentEvent]:
    return [event for event in one_by_one(world, records_of(world, payments)) if isinstance(event, PaymentEvent)]


def test_a_missing_required_field_is_refused_by_name() -> None:
    world = world_of(words.Payment(FORMS["needed"](1)))
    payment = {
        "payment_id": "p", "card_id": "k", "merchant_id": "m", "amount_minor": 5, "currency": "EUR",
        "event_time_ms": NOW_MS, "needed": None,
    }  # fmt: skip
    assert one_by_one(world, records_of(world, [payment])) == [
        "needed: is missing or empty; wanted printable text of 1 to 256 bytes"
    ]
    tables = tables_of(world, [payment])
    with pytest.raises(Misconfigured, match=r"payments.parquet: column needed must not be null, and 1 rows are"):
        history_of_tables(*tables, world.fields)
    with pytest.raises(Misconfigured, match=r"payments.parquet: column needed is missing"):
        history_of_tables(tables[0].drop_columns(["needed"]), tables[1], world.fields)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("buyer", "ann at example", "buyer is text of 14 characters; wanted an e-mail address"),
        ("buyer", 17, "buyer is a number that is no hash; wanted an e-mail address"),
        ("weight", float("nan"), "weight is out of bounds; wanted a number from -90 to 500"),
        ("days", 10_001, "days is above 10000; wanted a whole number from -10 to 10000"),
        ("delivery", "192.0.2.07", "delivery is no IPv4 or IPv6 address"),
        (
            "opened",
            1_720_000_000,
            "opened is below 946684800000; wanted milliseconds .*, 2000-01-01 or later",
        ),
        ("born", -2_208_988_800_001, "born is below -2208988800000; wanted milliseconds .*, 1900-01-01 or later"),
    ],
)
def test_a_wrong_value_in_a_file_is_named_by_row_and_field(name: str, value: Any, problem: str, tmp_path: Path) -> None:
    world = world_of(words.Payment(FORMS["product"](1), FORMS[name](2)))
    usual = {"card_id": "k", "merchant_id": "m", "amount_minor": 5, "currency": "EUR", "event_time_ms": NOW_MS}
    payments = [{"payment_id": f"p{number}", **usual} for number in range(3)]
    table, outcomes = tables_of(world, payments)
    kind = pa.int64() if isinstance(value, int) else pa.float64() if isinstance(value, float) else pa.string()
    table = table.set_column(table.column_names.index(name), name, pa.array([None, None, value], kind))
    with pytest.raises(Misconfigured, match=f"payments.parquet, row 2: {problem}"):
        history_of_tables(table, outcomes, world.fields)
    pq.write_table(table, tmp_path / "payments.parquet")
    pq.write_table(outcomes, tmp_path / "outcomes.parquet")
    with pytest.raises(Misconfigured, match=f"payments.parquet, row 2: {problem}"):
        read_history(tmp_path, world.fields)
