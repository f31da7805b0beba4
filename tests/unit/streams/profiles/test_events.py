from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import row_of
from paywarden.features.profiles.engine import UnreadableProfile
from paywarden.schemas.proto.store_pb2 import PaymentRecord
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.events import Joined, OutcomeEvent, ProfileUpdates
from paywarden.streams.profiles.payment_columns import PaymentEvent, Position
from tests.worlds.small import small_world
from tests.worlds.stream.joined import apply, touched
from tests.worlds.stream.packed import sources_of

Event = PaymentEvent | OutcomeEvent
ENTITIES = small_world.engine().plan.entity_count
NOON_MS = 1_700_000_000_000
DAY_MS = 86_400_000


@dataclass
class Store:
    """A store made of two dictionaries, and micro-batches applied to it."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    profiles: dict[bytes, bytes] = field(default_factory=dict)

    def work(self, events: Iterable[Event]) -> tuple[Joined, ProfileUpdates]:
        """Returns the effects of a batch; writes nothing."""
        events = list(events)
        payments = [event for event in events if isinstance(event, PaymentEvent)]
        outcomes = [event for event in events if isinstance(event, OutcomeEvent)]
        joined = batch.join(payments, outcomes, self.records, ENTITIES)
        return joined, apply(joined, self.profiles, small_world.engine())

    def take(self, *events: Event) -> tuple[Joined, ProfileUpdates]:
        """Apply a batch and write its results."""
        joined, applied = self.work(events)
        self.records |= joined.records
        self.profiles |= applied.profiles
        return joined, applied

    def frauds(self, key: bytes = b"merchant:m") -> float:
        """Returns the fraud share of an entity's payments, as a feature sees it 38 days later."""
        engine = small_world.engine()
        entity = engine.plan.entity_names.index(key.partition(b":")[0].decode())
        presence = np.full(ENTITIES, kernel.ABSENT, dtype=np.uint8)
        presence[entity] = kernel.KNOWN
        state = self.profiles[key]
        bounds = np.array([0 if number <= entity else len(state) for number in range(ENTITIES + 1)])
        out = np.empty((1, engine.plan.feature_count), dtype=np.float32)
        requests = np.array([attributes_of(NOON_MS + 10 * DAY_MS, 0)])
        engine.fill_vectors(requests, presence, np.frombuffer(bytearray(state), dtype=np.uint8), bounds, out)
        return float(out[0, engine.plan.names.index("merchant_fraud_share_30d")])


def attributes_of(time_ms: int, amount: int) -> list[int]:
    return row_of({}, event_time_ms=time_ms, amount=amount, amount_minor=amount)


def payment(
    offset: int = 0,
    payment_id: str = "p",
    *,
    source: int = 0,
    time_ms: int = NOON_MS,
    amount: int = 1000,
    keys: tuple[bytes, ...] = (b"card:c", b"merchant:m", b""),
) -> PaymentEvent:
    return PaymentEvent(Position(source, offset), payment_id, attributes_of(time_ms, amount), keys)


def outcome(offset: int = 0, payment_id: str = "p", *, source: int = 1, is_fraud: bool = True) -> OutcomeEvent:
    return OutcomeEvent(Position(source, offset), payment_id, is_fraud)


# Payments


def test_a_new_payment_changes_its_profiles_and_is_stored() -> None:
    store = Store()
    joined, applied = store.take(payment(7))
    assert store.profiles.keys() == {b"card:c", b"merchant:m"}
    assert touched(joined) == [b"card:c", b"merchant:m"]
    assert (applied.replayed, joined.duplicates) == (0, 0)
    record = PaymentRecord.FromString(store.records[batch.record_key("p")])
    assert (record.source, record.offset, list(record.keys)) == (0, 7, ["card:c", "merchant:m", ""])
    assert list(record.attributes) == attributes_of(NOON_MS, 1000)[: kernel.CODE_COUNT]
    assert sources_of(store.profiles[b"card:c"]) == {0: 7}


def test_the_same_payment_from_another_record_is_a_duplicate() -> None:
    store = Store()
    store.take(payment(7))
    before = dict(store.profiles)
    for again in (payment(8), payment(7, source=2)):
        joined, _ = store.take(again)
        assert joined.duplicates == 1
        assert touched(joined) == []
        assert store.profiles == before


def test_a_duplicate_within_a_batch_is_dropped() -> None:
    store, once = Store(), Store()
    joined, _ = store.take(payment(7), payment(8, "q"), payment(9))
    once.take(payment(7), payment(8, "q"))
    assert joined.duplicates == 1
    assert store == once


def test_a_payment_that_is_too_late_for_some_tiles_is_counted() -> None:
    store = Store()
    store.take(payment(1))
    _, applied = store.take(payment(2, "old", time_ms=NOON_MS - 2 * DAY_MS))
    assert applied.late == 2  # once for the card, once for the merchant


def test_a_profile_that_cannot_be_read_stops_the_batch() -> None:
    store = Store(profiles={b"card:c": bytes([kernel.LAYOUT_VERSION, 1, 2, 3, 4, 0, 0, 0, 0])})
    with pytest.raises(UnreadableProfile, match="card profile cannot be read: it is damaged"):
        store.work([payment()])


# Outcomes


def test_a_fraud_label_reaches_every_entity_of_the_payment() -> None:
    store = Store()
    store.take(payment())
    assert store.frauds() == 0.0
    joined, _ = store.take(outcome(3))
    assert touched(joined) == [b"card:c", b"merchant:m"]
    assert store.frauds() == 1.0


def test_an_outcome_of_an_unknown_payment_is_an_orphan() -> None:
    store = Store()
    joined, _ = store.take(outcome(3, "nobody"))
    assert joined.orphans == [outcome(3, "nobody")]
    assert store == Store()


def test_a_correction_removes_the_label_and_may_set_it_again() -> None:
    store = Store()
    store.take(payment())
    known = []
    for offset, is_fraud in enumerate((True, False, False, True, False)):
        store.take(outcome(offset, is_fraud=is_fraud))
        known.append(store.frauds())
    assert known == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_an_outcome_of_a_backfilled_payment_counts() -> None:
    store = Store()
    store.take(payment())
    record = PaymentRecord.FromString(store.records[batch.record_key("p")])
    record.source, record.offset = -1, 0
    store.records[batch.record_key("p")] = record.SerializeToString()
    store.take(outcome(0, source=1))
    assert store.frauds() == 1.0


def test_an_outcome_corrects_a_backfilled_one_whatever_its_offset() -> None:
    """Offsets of two sources cannot be compared: a backfilled change has offset 0, like a topic's first record."""
    store = Store()
    store.take(payment())
    store.take(outcome(0, source=9))
    assert store.frauds() == 1.0
    store.take(outcome(0, source=1, is_fraud=False))
    assert store.frauds() == 0.0


# The guarantee


CARDS, MERCHANTS, DEVICES = (b"card:a", b"card:b"), (b"merchant:m", b"merchant:n"), (b"device:d", b"")


@st.composite
def consumed(draw: st.DrawFn) -> list[Event]:
    """Events of two partitions of each topic, in the order in which a consumer got them.

    Some payments are repeated, some outcomes are repeated, corrected or of nobody; an outcome comes after its
    payment, as it does by days in life.
    """
    events: list[Event] = []
    next_offset = [0, 0, 0, 0]
    seen: set[int] = set()
    for number, is_payment, flag, minutes in draw(
        st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.booleans(), st.integers(0, 60 * 24 * 45)), max_size=25)
    ):
        # An id's partition is fixed, as its key is. Number 7 never has a payment.
        source = 2 * (number % 2) + (0 if is_payment else 1)
        position = Position(source, next_offset[source])
        next_offset[source] += draw(st.integers(1, 2))
        if is_payment and number < 7:
            keys = (CARDS[number % 2], MERCHANTS[number % 3 % 2], DEVICES[int(flag)])
            time_ms = NOON_MS + minutes * 60_000
            events.append(PaymentEvent(position, f"p{number}", attributes_of(time_ms, 100 * minutes), keys))
            seen.add(number)
        elif not is_payment and (number in seen or number == 7):
            events.append(OutcomeEvent(position, f"p{number}", flag))
    return events


def final_state(events: Sequence[Event], size: int) -> Store:
    """Apply all events without a crash, `size` at a time."""
    store = Store()
    for first in range(0, len(events), size):
        store.take(*events[first : first + size])
    return store


@given(consumed(), st.data())
def test_a_replay_after_crashes_gives_the_states_of_a_clean_run(events: list[Event], data: st.DataObject) -> None:
    """A crash leaves any part of a batch's writes and no commit; the next batch may have another size."""
    store, committed = Store(), 0
    crashes = data.draw(st.integers(0, 5))
    while committed < len(events):
        end = data.draw(st.integers(committed + 1, len(events)))
        joined, applied = store.work(events[committed:end])
        crashes -= 1
        survives = st.booleans() if crashes >= 0 else st.just(True)
        store.records |= {key: value for key, value in joined.records.items() if data.draw(survives)}
        store.profiles |= {key: value for key, value in applied.profiles.items() if data.draw(survives)}
        if crashes < 0:
            committed = end
    assert store == final_state(events, 1 + len(events))


@given(consumed())
def test_the_order_of_partitions_does_not_matter(events: list[Event]) -> None:
    """Records have an order inside a partition, and none across partitions or topics."""
    reordered = sorted(events, key=lambda event: (event.position.source % 2, -event.position.source))
    ordered, other = final_state(events, 4), final_state(reordered, 4)
    assert other == ordered
