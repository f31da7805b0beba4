"""A history from the rows of topics: its order, the records left out, and the errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from paywarden.features.history.history import History, history_of_tables
from paywarden.schemas.avro import Encoder
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.streams.archive.archive import Archiver
from paywarden.streams.archive.topic_history import LeftOut, PaymentTimes, archived_rows, history_of_rows
from paywarden.streams.kafka.topic_rows import RowBuilder, TopicRows, rows_schema
from paywarden.streams.profiles.decoder import EventDecoder
from paywarden.streams.profiles.payment_columns import Position
from tests.fakes.topic_memory import IDS, MemoryTopic
from tests.worlds.small import small_world

NOW = 1_704_067_200_000
PAYMENT = {
    "payment_id": "p",
    "event_time_ms": NOW,
    "card_id": "c",
    "merchant_id": "m",
    "amount_minor": 100,
    "currency": "EUR",
}
OUTCOME = {"payment_id": "p", "outcome_time_ms": NOW + 5, "label": "fraud", "source": None}


def table(topic: str, records: Iterable[Mapping[str, Any]]) -> TopicRows:
    """Returns rows in reading order at growing offsets, in partition 0 unless a row names another."""
    offsets = count()
    places = [
        {
            "kafka_partition": 0,
            "kafka_offset": next(offsets),
            "kafka_timestamp_ms": NOW + 10,
            **{name: None for name in rows_schema(topic).names if not name.startswith("kafka_")},
            **record,
        }
        for record in records
    ]
    return TopicRows(pa.Table.from_pylist(places, rows_schema(topic)), ())


def history_of(
    payments: Iterable[Mapping[str, Any]], outcomes: Iterable[Mapping[str, Any]] = (), days: PaymentTimes | None = None
) -> tuple[History, LeftOut]:
    return history_of_rows(
        table("payments", payments),
        table("outcomes", outcomes),
        days=days,
    )


def world_topics() -> tuple[MemoryTopic, MemoryTopic]:
    """The small world as payment systems send it: by card, a few events late, some twice."""
    payments, outcomes = (MemoryTopic(name, batch=500) for name in ("payments", "outcomes"))
    rows = small_world.tables()[0].to_pylist()
    # The order of arrival is not that of the events.
    order = sorted(range(len(rows)), key=lambda number: number + (40 if number % 97 == 0 else 0))
    for number in order:
        row = rows[number]
        for _ in range(2 if number % 501 == 0 else 1):
            payments.append(int(row["card_id"][-2:]) % 3, row, row["event_time_ms"] + 200)
    for row in small_world.tables()[1].to_pylist():
        outcomes.append(int(row["payment_id"][-2:]) % 2, row, row["outcome_time_ms"] + 200)
    return payments, outcomes


def read_topic(topic: MemoryTopic) -> TopicRows:
    builder = RowBuilder(topic.name, IDS)
    for partition, offsets in topic.ranges(None, None).items():
        for records in topic.records(partition, offsets):
            for record in records:
                builder.add(record)
    return builder.take()


def assert_equal(one: History, other: History) -> None:
    for name in vars(one):
        left, right = getattr(one, name), getattr(other, name)
        if name in ("fields", "declared", "propensity", "never_labelled"):
            assert left == right, name
        elif isinstance(left, pa.Array):
            assert left.equals(right), name
        elif hasattr(left, "codes"):
            assert left.names.equals(right.names), name
            assert left.codes.tolist() == right.codes.tolist(), name
        else:
            assert left.tolist() == right.tolist(), name


# The same history


def test_topics_give_the_sent_history_with_or_without_an_archive(tmp_path: Path) -> None:
    topics = world_topics()
    for topic in topics:
        archiver = Archiver(topic, IDS, topic.name, tmp_path, records_max=1000)
        archiver.run(archiver.wanted(None, None), Event(), lambda _: None)
    of_topics, left_out = history_of_rows(*map(read_topic, topics))
    of_archive, left_out_too = history_of_rows(*archived_rows(tmp_path))
    assert_equal(of_topics, of_archive)
    assert left_out == left_out_too
    (what,) = left_out.counts.items()
    assert what == ("payments that came before, field by field the same", -(-len(small_world.history()) // 501))
    payments, outcomes = small_world.tables()
    # All events of this world have different times, so there is one order.
    assert pc.count_distinct(payments["event_time_ms"]).as_py() == len(payments)
    assert_equal(of_topics, history_of_tables(payments, outcomes))


def test_events_of_one_time_are_ordered_by_partition_and_offset() -> None:
    rows = [PAYMENT | {"payment_id": f"p{n}", "kafka_partition": n % 2, "kafka_offset": 9 - n} for n in range(4)]
    history, _ = history_of(rows)
    assert history.payment_id.to_pylist() == ["p2", "p0", "p3", "p1"]


def test_outcomes_are_ordered_by_their_own_time() -> None:
    corrected = OUTCOME | {"label": "genuine", "outcome_time_ms": NOW + 9}
    history, _ = history_of([PAYMENT], [corrected, OUTCOME])
    assert history.outcome_fraud.tolist() == [True, False]


# Records that are left out


def test_a_repeated_payment_counts_once() -> None:
    history, left_out = history_of([PAYMENT, PAYMENT, PAYMENT | {"payment_id": "q"}, PAYMENT])
    assert history.payment_id.to_pylist() == ["p", "q"]
    assert left_out.lines() == [
        "left out: 2 payments that came before, field by field the same (partition 0, offset 1)"
    ]


@pytest.mark.parametrize("said", [(None, True), (True, None), (False, True, False), (True, False), (None, False, True)])
def test_a_payment_was_declined_when_one_of_its_records_says_so(said: tuple[bool | None, ...]) -> None:
    rows = [PAYMENT | {"declined": flag} for flag in said]
    history, left_out = history_of([*rows, PAYMENT | {"payment_id": "q"}])
    assert history.payment_id.to_pylist() == ["p", "q"]
    assert history.declined_code.tolist() == [2, 0]
    assert sum(left_out.counts.values()) == len(said) - 1
    assert left_out.counts["payments that came before, field by field but for declined the same"] >= 1


@pytest.mark.parametrize("other", [{"amount_minor": 101}, {"event_time_ms": NOW + 1}])
def test_differing_payments_of_one_id_are_refused_with_both_places(other: dict[str, Any]) -> None:
    rows = [PAYMENT, PAYMENT | {"payment_id": "q"}, PAYMENT | other]
    with pytest.raises(Misconfigured) as refused:
        history_of(rows)
    assert str(refused.value) == (
        "topic payments holds two payments of one payment_id that differ: "
        "partition 0, offset 0 and partition 0, offset 2"
    )


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"payment_id": ""}, "payment_id must be printable text of 1 to 256 bytes"),
        ({"payment_id": "p" * 257}, "payment_id must be printable text of 1 to 256 bytes"),
        ({"event_time_ms": 0}, "event_time_ms must be milliseconds since 1970 UTC"),
        ({"event_time_ms": NOW // 1000}, "event_time_ms must be milliseconds since 1970 UTC"),
        ({"event_time_ms": NOW + 60_011}, "event_time_ms must be near the record's arrival"),
        ({"event_time_ms": NOW - 40 * 86_400_000 + 9}, "event_time_ms must be near the record's arrival"),
        ({"amount_minor": -1}, "amount_minor must be a whole number of minor units from 0 to 100000000000"),
        ({"amount_minor": 10**11 + 1}, "amount_minor must be a whole number of minor units from 0 to 100000000000"),
        ({"currency": "XXX"}, "currency must be three capital letters, A to Z (ISO 4217)"),
        ({"currency": "eur"}, "currency must be three capital letters, A to Z (ISO 4217)"),
        ({"card_id": ""}, "card_id must be a token of 1 to 256 bytes of printable text"),
        ({"card_id": "4111111111111111"}, "card_id must be a token of 1 to 256 bytes of printable text"),
        ({"device_id": ""}, "device_id must be printable text of 1 to 256 bytes"),
        ({"merchant_id": "ü" * 129}, "merchant_id must be printable text of 1 to 256 bytes"),
        ({"country": "Germany"}, "country must be two capital letters, A to Z (ISO 3166-1 alpha-2)"),
        ({"utc_offset_minutes": 1440}, "utc_offset_minutes must be whole minutes from -1439 to 1439"),
    ],
)
def test_payments_that_the_stream_refuses_are_left_out_and_counted(changes: dict[str, Any], rule: str) -> None:
    refused = PAYMENT | {"payment_id": "q"} | changes
    history, left_out = history_of([PAYMENT, refused])
    intake = EventDecoder(small_world.engine(), small_world.rates(), IDS)
    with pytest.raises(InvalidEvent):
        intake.payment(Encoder("payments", IDS.id_of("payments")).encode(refused), Position(0, 1), NOW + 10, NOW + 10)
    assert history.payment_id.to_pylist() == ["p"]
    assert left_out.lines() == [f"left out: 1 payments that the stream refuses: {rule} (partition 0, offset 1)"]


def test_outcomes_that_cannot_be_joined_are_left_out_and_counted() -> None:
    early, lost = OUTCOME | {"outcome_time_ms": NOW - 1}, OUTCOME | {"payment_id": "q"}
    history, left_out = history_of([PAYMENT], [early, lost, OUTCOME, lost])
    assert history.outcome_time_ms.tolist() == [NOW + 5]
    assert left_out.counts == {
        "outcomes of payments that are not among those read": 2,
        "outcomes that are older than their payments": 1,
    }


def test_records_that_do_not_decode_are_counted() -> None:
    topic = MemoryTopic("payments")
    topic.append_bytes(1, b"", NOW)
    _, left_out = history_of_rows(read_topic(topic), table("outcomes", []))
    assert left_out.lines() == [
        "left out: 1 records of payments that do not decode "
        "(partition 1, offset 0: too short: 0 bytes, the header alone has 5)"
    ]


def test_payments_outside_the_days_are_cut_with_their_outcomes() -> None:
    rows = [PAYMENT | {"payment_id": f"p{n}", "event_time_ms": NOW + n} for n in range(5)]
    outcomes = [OUTCOME | {"payment_id": f"p{n}", "outcome_time_ms": NOW + n} for n in range(4)]
    history, left_out = history_of(rows, outcomes, PaymentTimes(NOW + 1, NOW + 2))
    assert history.payment_id.to_pylist() == ["p1", "p2"]
    assert history.outcome_payment.tolist() == [0, 1]
    assert left_out.counts == {"outcomes of payments that are not among those read": 1}
