from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from features.history import history_of_tables
from features.memory_store import MemoryStore
from features.store import ProfileStore
from schemas.store_pb2 import PaymentRecord
from streams import batch
from streams.backfill import BACKFILL_SOURCE, backfill
from streams.batch import OutcomeEvent, PaymentEvent, Position, record_key
from streams.simulator import split_at
from tests import small_world
from tests.packed import without_sources

DAY_MS = 86_400_000
PLAN = small_world.engine().plan


def fill(tables: tuple[pa.Table, pa.Table], store: ProfileStore, outcome_days: int = 120) -> int:
    return backfill(
        history_of_tables(*tables),
        store,
        engine=small_world.engine(),
        rates=small_world.rates(),
        outcome_days=outcome_days,
    )


def payment_event(row: Mapping[str, Any], offset: int) -> PaymentEvent:
    amount = small_world.rates().convert(row["amount_minor"], row["currency"], row["event_time_ms"])
    keys = tuple(
        f"{name}:{row[key]}".encode() if row[key] is not None else b""
        for name, key in zip(PLAN.entity_names, PLAN.entity_keys, strict=True)
    )
    return PaymentEvent(Position(0, offset), row["payment_id"], row["event_time_ms"], amount, keys)


def outcome_event(row: Mapping[str, Any], offset: int) -> OutcomeEvent:
    return OutcomeEvent(Position(1, offset), row["payment_id"], row["label"] == "fraud")


def stream(payments: Sequence[PaymentEvent], outcomes: Sequence[OutcomeEvent], store: ProfileStore) -> int:
    """Work events through the stream's own batches; returns how many payments were duplicates."""
    duplicates = 0
    events: list[PaymentEvent | OutcomeEvent] = [*payments, *outcomes]
    for first in range(0, len(events), 700):
        some = events[first : first + 700]
        some_payments = [event for event in some if isinstance(event, PaymentEvent)]
        some_outcomes = [event for event in some if isinstance(event, OutcomeEvent)]
        known = read(store, [record_key(event.payment_id) for event in some])
        joined = batch.join(some_payments, some_outcomes, known, PLAN.entity_count)
        assert joined.orphans == []
        applied = batch.apply(joined, read(store, joined.profile_keys()), small_world.engine())
        store.write(joined.records, ttl_s=0)
        store.write(applied.profiles, ttl_s=0)
        duplicates += joined.duplicates
    return duplicates


def read(store: ProfileStore, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    return {key: value for key, value in zip(keys, store.read(keys), strict=True) if value is not None}


def profiles_of(store: ProfileStore) -> dict[bytes, bytes]:
    """Every profile by key, without the offsets it contains."""
    return {key: without_sources(state) for name in PLAN.entity_names for key, state in store.scan(name)}


@pytest.fixture(scope="module")
def backfilled() -> Iterator[MemoryStore]:
    store = MemoryStore()
    fill(small_world.tables(), store)
    yield store
    store.close()


def test_profiles_are_those_that_the_stream_makes_of_the_same_events(backfilled: MemoryStore) -> None:
    payments, outcomes = (table.to_pylist() for table in small_world.tables())
    streamed = MemoryStore()
    stream(
        [payment_event(row, offset) for offset, row in enumerate(payments)],
        [outcome_event(row, offset) for offset, row in enumerate(outcomes)],
        streamed,
    )
    wanted = profiles_of(streamed)
    assert len(wanted) > 800
    assert profiles_of(backfilled) == wanted


def test_it_returns_how_many_profiles_there_are() -> None:
    store = MemoryStore()
    assert fill(small_world.tables(), store) == len(profiles_of(store))


def test_outcomes_that_come_later_find_the_payments() -> None:
    """Half a history backfilled and the rest streamed is the same as all of it backfilled."""
    payments, outcomes = small_world.tables()
    time_ms = payments["event_time_ms"][len(payments) * 2 // 3].as_py()
    past, rest = split_at(payments, outcomes, time_ms)
    halves, whole = MemoryStore(), MemoryStore()
    fill(past, halves)
    stream(
        [payment_event(row, offset) for offset, row in enumerate(rest[0].to_pylist())],
        [outcome_event(row, offset) for offset, row in enumerate(rest[1].to_pylist())],
        halves,
    )
    fill((payments, outcomes), whole)
    assert profiles_of(halves) == profiles_of(whole)


def test_a_payment_that_comes_from_the_topic_once_more_is_a_duplicate(backfilled: MemoryStore) -> None:
    rows = small_world.tables()[0].slice(5000, 100).to_pylist()
    before = profiles_of(backfilled)
    assert stream([payment_event(row, offset) for offset, row in enumerate(rows)], [], backfilled) == 100
    assert profiles_of(backfilled) == before


def test_records_of_payments_say_what_an_outcome_needs(backfilled: MemoryStore) -> None:
    rows = small_world.tables()[0].to_pylist()
    fraud = small_world.history().outcome_payment[small_world.history().outcome_fraud][0]
    abroad = next(row for row in rows if row["currency"] == "JPY")
    for row in (rows[0], rows[-1], rows[fraud], abroad):
        (stored,) = backfilled.read([record_key(row["payment_id"])])
        assert stored is not None
        record, event = PaymentRecord.FromString(stored), payment_event(row, 0)
        assert (record.source, record.offset) == (BACKFILL_SOURCE, 0)
        assert (record.event_time_ms, record.amount) == (event.event_time_ms, event.amount)
        assert tuple(key.encode() for key in record.keys) == event.keys


def test_only_payments_that_may_still_get_an_outcome_are_kept() -> None:
    payments = small_world.tables()[0]
    store = MemoryStore()
    fill(small_world.tables(), store, outcome_days=10)
    kept = {key: PaymentRecord.FromString(value).event_time_ms for key, value in store.scan("payment")}
    newest_ms = payments["event_time_ms"][-1].as_py()
    wanted = {
        record_key(row["payment_id"]): row["event_time_ms"]
        for row in payments.to_pylist()
        if row["event_time_ms"] >= newest_ms - 10 * DAY_MS
    }
    assert 0 < len(wanted) < len(payments)
    assert kept == wanted


def test_nothing_expires_before_its_time() -> None:
    class Noting(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.ttl_s: dict[str, set[int]] = {}

        def write(self, values: Mapping[bytes, bytes], *, ttl_s: int) -> None:
            for key in values:
                self.ttl_s.setdefault(key.partition(b":")[0].decode(), set()).add(ttl_s)
            super().write(values, ttl_s=ttl_s)

    store = Noting()
    fill(small_world.tables(), store, outcome_days=45)
    assert store.ttl_s["payment"] == {45 * 86_400}
    for name, retention_ms in zip(PLAN.entity_names, PLAN.retention_ms, strict=True):
        assert store.ttl_s[name] == {retention_ms // 1000 + 86_400}


def test_an_empty_history_is_no_bug() -> None:
    payments, outcomes = small_world.tables()
    store = MemoryStore()
    assert fill((payments.slice(0, 0), outcomes.slice(0, 0)), store) == 0
    assert profiles_of(store) == {}


def test_progress_counts_every_payment() -> None:
    seen: list[int] = []
    backfill(
        small_world.history(),
        MemoryStore(),
        engine=small_world.engine(),
        rates=small_world.rates(),
        outcome_days=1,
        progress=seen.append,
    )
    assert sum(seen) == len(small_world.history())
