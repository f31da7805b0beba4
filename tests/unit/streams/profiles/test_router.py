from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from paywarden.features import kernel
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.base import ProfileStore, StoreConflict, TtlS, Versioned
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import StoreUnavailable
from paywarden.schemas.proto.store_pb2 import PaymentRecord
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.decoder import EventDecoder
from paywarden.streams.profiles.events import (
    ATTRIBUTES_AT,
    LABEL_CHANGES_MAX,
    OFFSET,
    TOO_MANY_CHANGES,
    UNREADABLE,
    OutcomeEvent,
    record_key,
)
from paywarden.streams.profiles.guards.broker_clock import BrokerClock
from paywarden.streams.profiles.payment_columns import Position
from paywarden.streams.profiles.repartition import decode_frame
from paywarden.streams.profiles.router import Decoded, Router
from paywarden.streams.profiles.stream_settings import StreamSettings, stream_metrics
from tests.worlds.small import small_world
from tests.worlds.stream.topics import small_world as simulated

NOW_MS = 1_800_000_000_000
ROUTES = {name: (f"repartition-{name}", 2) for name in small_world.engine().plan.entity_names}


class FakeSender:
    def __init__(self) -> None:
        self.sent: list[tuple[str, int, bytes]] = []

    def send(self, topic: str, value: bytes, *, key: bytes | None, partition: int, **_: object) -> None:
        assert key is None
        self.sent.append((topic, partition, value))


class UnwellStore(MemoryStore):
    """A store whose first write is preceded by `meanwhile`."""

    def __init__(self, meanwhile: Any) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile(super().write, values)
        super().write(values, ttl_s=ttl_s, versions=versions)


class CountingStore(MemoryStore):
    """A store that counts the keys that are read."""

    keys_read = 0

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        self.keys_read += len(keys)
        return super().read_versioned(keys)


def router(store: ProfileStore, sender: FakeSender) -> Router:
    engine = small_world.engine()
    given: Any = sender
    return Router(
        intake=EventDecoder(engine, load_rates(), LocalSchemaIds()),
        store=store,
        sender=given,
        plan=engine.plan,
        routes=ROUTES,
        outcome_days=1,
        clock=BrokerClock(stream_metrics(StreamSettings(), engine.plan.entity_names, CollectorRegistry())),
    )


def records(count: int, first_offset: int = 0) -> list[Record]:
    encoder = Encoder("payments", LocalSchemaIds().id_of("payments"))
    rows = simulated()[0].slice(0, count).to_pylist()
    return [
        Record("payments", 0, first_offset + at, b"k", encoder.encode(row), row["event_time_ms"] + 100, ())
        for at, row in enumerate(rows)
    ]


def decoded(store: MemoryStore, sender: FakeSender, first_offset: int = 0) -> tuple[Router, Decoded]:
    built = router(store, sender)
    return built, built.decode(records(5, first_offset), [], NOW_MS)


def test_a_payment_that_another_worker_stored_is_a_duplicate() -> None:
    def another(write: Any, values: Mapping[bytes, bytes]) -> None:
        key = next(iter(values))
        theirs = PaymentRecord.FromString(values[key])
        theirs.offset = 77
        write({key: theirs.SerializeToString()}, ttl_s=0)

    store, sender = UnwellStore(another), FakeSender()
    built, events = decoded(store, sender)
    joined = built.keep(events)
    assert (joined.duplicates, len(joined.rows)) == (1, 4)
    # This batch read its records before it wrote. The next one does so as well, and meets another conflict.
    later = built.decode(records(6, 40)[5:], [], NOW_MS)
    store.meanwhile = another
    with pytest.raises(StoreConflict):
        built.keep(later)
    assert built.keep(later).duplicates == 1
    (first, *_) = (record_key(event.payment_id) for event in events.payments)
    kept = store.read([first])[0]
    assert kept is not None
    assert PaymentRecord.FromString(kept).offset == 77


def test_new_payments_are_written_unread_until_one_is_known() -> None:
    store = CountingStore()
    built = router(store, FakeSender())

    def keep(first: int, last: int) -> tuple[int, int]:
        store.keys_read = 0
        joined = built.keep(built.decode(records(last, 100)[first:], [], NOW_MS))
        return store.keys_read, joined.duplicates

    assert [keep(0, 5), keep(5, 6)] == [(0, 0), (0, 0)]
    again = built.decode(records(7), [], NOW_MS)
    assert built.keep(again).duplicates == 6
    # One batch that reads and finds nothing known: the next is written unread.
    assert [keep(7, 9), keep(9, 11)] == [(2, 0), (0, 0)]


def test_a_repeated_write_after_a_lost_answer_gives_the_same_events() -> None:
    def lost(write: Any, values: Mapping[bytes, bytes]) -> None:
        write(values, ttl_s=0)
        raise StoreUnavailable("no answer")

    store, sender = UnwellStore(lost), FakeSender()
    built, events = decoded(store, sender)
    with pytest.raises(StoreUnavailable):
        built.keep(events)
    joined = built.keep(events)
    assert (joined.duplicates, len(joined.rows)) == (0, 5)


def test_a_payment_that_comes_again_is_written_once_more() -> None:
    """The first write may stand on a node that was cut off, and was never acknowledged."""

    def lost(write: Any, values: Mapping[bytes, bytes]) -> None:
        write(values, ttl_s=0)
        raise StoreConflict("all were written")

    store, sender = UnwellStore(lost), FakeSender()
    built, events = decoded(store, sender)
    built.keep(events)
    keys = [record_key(event.payment_id) for event in events.payments]
    before = store.read_versioned(keys)
    assert built.keep(events).duplicates == 0
    after = store.read_versioned(keys)
    assert [one.value for one in after] == [one.value for one in before]
    assert all(new.version != old.version for new, old in zip(after, before, strict=True))


def test_nothing_is_written_before_an_outcome_without_a_payment_is_confirmed() -> None:
    """A worker that ends there must not leave a record of a payment whose events nobody gets."""

    def refuse() -> None:
        raise StoreUnavailable("another topic")

    store = MemoryStore()
    built, events = decoded(store, FakeSender())
    outcome = OutcomeEvent(Position(1, 0), "nobody", is_fraud=True)
    with pytest.raises(StoreUnavailable, match="another topic"):
        built.keep(replace(events, outcomes=[outcome]), refuse)
    assert store.read([record_key(event.payment_id) for event in events.payments]) == [None] * 5
    assert built.keep(events, refuse).orphans == []


def test_events_of_an_entity_go_in_order_to_the_partition_of_its_key() -> None:
    store, sender = MemoryStore(), FakeSender()
    built, events = decoded(store, sender)
    built.send(built.keep(events))
    for entity, (topic, count) in ROUTES.items():
        found: list[tuple[bytes, int]] = []
        for sent_to, _, value in sender.sent:
            if sent_to == topic:
                part = decode_frame(value, count)
                assert part.rows[:, OFFSET].tolist() == sorted(part.rows[:, OFFSET].tolist())
                found += zip(part.keys, part.rows[:, OFFSET].tolist(), strict=True)
        number = list(ROUTES).index(entity)
        wanted = [(event.keys[number], event.position.offset) for event in events.payments if event.keys[number]]
        assert sorted(found) == sorted(wanted)


def test_a_frame_holds_the_identities_that_its_profiles_take_in_and_a_record_holds_none() -> None:
    store, sender = MemoryStore(), FakeSender()
    built, events = decoded(store, sender)
    built.send(built.keep(events))
    plan = small_world.engine().plan
    for (topic, count), used in zip(ROUTES.values(), plan.entity_identities, strict=True):
        for sent_to, _, value in sender.sent:
            if sent_to == topic:
                rows = decode_frame(value, count).rows[:, ATTRIBUTES_AT:]
                for column in range(kernel.CODE_COUNT, kernel.ATTRIBUTE_COUNT):
                    by_offset = {event.position.offset: event.attributes[column] for event in events.payments}
                    offsets = decode_frame(value, count).rows[:, OFFSET].tolist()
                    wanted = [by_offset[offset] if column in used else 0 for offset in offsets]
                    assert rows[:, column].tolist() == wanted
    kept = [value for value in store.read([record_key(event.payment_id) for event in events.payments]) if value]
    assert {len(PaymentRecord.FromString(value).attributes) for value in kept} == {kernel.CODE_COUNT}


def outcome_record(payment_id: str, offset: int, label: str = "fraud") -> Record:
    encoder = Encoder("outcomes", LocalSchemaIds().id_of("outcomes"))
    value = encoder.encode({"payment_id": payment_id, "outcome_time_ms": NOW_MS, "label": label})
    return Record("outcomes", 0, offset, b"k", value, NOW_MS, ())


def test_a_damaged_record_of_a_payment_refuses_its_events_alone() -> None:
    store, sender = MemoryStore(), FakeSender()
    built, events = decoded(store, sender)
    bad = events.payments[2].payment_id
    store.write({record_key(bad): b"\xff\xff damaged"}, ttl_s=0)
    with_outcomes = built.decode(records(5), [outcome_record(bad, 7)], NOW_MS)
    joined = built.keep(with_outcomes)
    assert joined.refused == [(events.payments[2].position, UNREADABLE), (Position(1, 7), UNREADABLE)]
    assert len(joined.rows) == 4
    assert store.read([record_key(bad)]) == [b"\xff\xff damaged"]


def break_declined(record: PaymentRecord) -> None:
    record.attributes[kernel.DECLINED] = -1


def break_changes(record: PaymentRecord) -> None:
    record.declined_changes.add(source=1, offset=1, before=0, after=7, label=0)


def break_labels(record: PaymentRecord) -> None:
    record.label_changes.add(source=1, offset=1, weight=-(2**31))


@pytest.mark.parametrize("change", [break_declined, break_changes, break_labels])
def test_a_record_with_numbers_that_cannot_be_refuses_its_events_alone(change: Callable[[PaymentRecord], None]) -> None:
    store, sender = MemoryStore(), FakeSender()
    built, events = decoded(store, sender)
    built.keep(events)
    bad = events.payments[2].payment_id
    record = PaymentRecord.FromString(store.read([record_key(bad)])[0] or b"")
    record.offset += 100
    change(record)
    store.write({record_key(bad): record.SerializeToString()}, ttl_s=0)
    # The payments come again, one of them with an outcome.
    joined = built.keep(built.decode(records(5), [outcome_record(bad, 7)], NOW_MS))
    assert joined.refused == [(events.payments[2].position, UNREADABLE), (Position(1, 7), UNREADABLE)]
    assert len(joined.rows) == 4


def test_a_record_with_more_codes_than_any_declaration_is_refused() -> None:
    store, sender = MemoryStore(), FakeSender()
    built, events = decoded(store, sender)
    built.keep(events)
    key = record_key(events.payments[0].payment_id)
    later = PaymentRecord.FromString(store.read([key])[0] or b"")
    later.attributes.extend([1] * 65)
    store.write({key: later.SerializeToString()}, ttl_s=0)
    joined = built.keep(built.decode([], [outcome_record(events.payments[0].payment_id, 7)], NOW_MS))
    assert (joined.refused, joined.rows) == ([(Position(1, 7), UNREADABLE)], [])


def test_a_label_that_changes_without_end_gives_dead_letters() -> None:
    store, sender = MemoryStore(), FakeSender()
    built, events = decoded(store, sender)
    built.keep(events)
    payment_id = events.payments[0].payment_id
    flips = [outcome_record(payment_id, n, "genuine" if n % 2 else "fraud") for n in range(LABEL_CHANGES_MAX + 3)]
    joined = built.keep(built.decode([], flips, NOW_MS))
    assert len(joined.rows) == LABEL_CHANGES_MAX
    # After the bound the label is genuine: only an outcome that would change it is refused.
    assert joined.refused == [
        (Position(1, offset), TOO_MANY_CHANGES) for offset in (LABEL_CHANGES_MAX, LABEL_CHANGES_MAX + 2)
    ]
    # A replay of them all changes nothing.
    again = built.keep(built.decode([], flips, NOW_MS))
    assert (again.rows, again.refused) == (joined.rows, joined.refused)
