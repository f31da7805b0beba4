"""A backfill gives the same store as the stream, and the same store after any kill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from paywarden.features.catalogue.attributes import row_of
from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.dataflow.processes import ProcessEngine
from paywarden.features.dataflow.vectors import Passage
from paywarden.features.datasets.simulator import split_at
from paywarden.features.history.history import final_labels, history_of_tables, write_history
from paywarden.features.kernel import CODE_COUNT, TIME_MS
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import entity_key
from paywarden.features.profiles.money import RateTable
from paywarden.features.stores.base import ProfileStore, TtlS
from paywarden.features.stores.lmdb import LmdbStore
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.store_pb2 import LabelChange, PaymentRecord
from paywarden.streams.maintenance.backfill import BACKFILL_SOURCE, Backfill, backfill
from paywarden.streams.maintenance.backfill_passage import PassageBackfill
from paywarden.streams.maintenance.backfill_progress import PROGRESS_KEY, read_progress
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.events import OutcomeEvent, RecordLayout, record_key
from paywarden.streams.profiles.payment_columns import PaymentEvent, Position
from tests.patience import PATIENCE_S
from tests.services.product.processes import PaywardenProcess
from tests.worlds.small import small_world
from tests.worlds.stream.joined import apply, touched
from tests.worlds.stream.packed import without_sources

DAY_MS = 86_400_000
PLAN = small_world.engine().plan


def fill(
    tables: tuple[pa.Table, pa.Table], store: ProfileStore, outcome_days: int = 120, of: FeatureEngine | None = None
) -> int:
    return backfill(
        history_of_tables(*tables),
        store,
        engine=of or small_world.engine(),
        rates=small_world.rates(),
        outcome_days=outcome_days,
    )


def counting_labels() -> FeatureEngine:
    """An engine of the same entities whose profiles count labelled payments."""
    entities = [Entity(name, keys) for name, keys in zip(PLAN.entity_names, PLAN.entity_keys, strict=True)]
    shares = [one.fraud_share(one.name, "ever", delay="1d", labelled_only=True) for one in entities]
    return FeatureEngine(Catalogue(entities, shares))


OF = pytest.mark.parametrize("of", [small_world.engine(), counting_labels()], ids=["frauds", "labels"])


def payment_event(row: Mapping[str, Any], offset: int) -> PaymentEvent:
    amount = small_world.rates().convert(row["amount_minor"], row["currency"], row["event_time_ms"])
    keys = []
    for name, fields in zip(PLAN.entity_names, PLAN.entity_keys, strict=True):
        ids = [row[field] for field in fields]
        keys.append(b"" if None in ids else entity_key(name, ids))
    attributes = row_of(row, event_time_ms=row["event_time_ms"], amount=amount, amount_minor=row["amount_minor"])
    return PaymentEvent(Position(0, offset), row["payment_id"], attributes, tuple(keys))


def outcome_event(row: Mapping[str, Any], offset: int) -> OutcomeEvent:
    return OutcomeEvent(Position(1, offset), row["payment_id"], row["label"] == "fraud")


def stream(
    payments: Sequence[PaymentEvent],
    outcomes: Sequence[OutcomeEvent],
    store: ProfileStore,
    of: FeatureEngine | None = None,
) -> int:
    """Apply events in the stream's own batches; returns the number of duplicate payments."""
    engine = of or small_world.engine()
    layout = RecordLayout(engine.plan.fields, counts_labels=engine.plan.counts_labels)
    duplicates = 0
    events: list[PaymentEvent | OutcomeEvent] = [*payments, *outcomes]
    for first in range(0, len(events), 700):
        some = events[first : first + 700]
        some_payments = [event for event in some if isinstance(event, PaymentEvent)]
        some_outcomes = [event for event in some if isinstance(event, OutcomeEvent)]
        known = read(store, [record_key(event.payment_id) for event in some])
        joined = batch.join(some_payments, some_outcomes, known, PLAN.entity_count, layout)
        assert joined.orphans == []
        applied = apply(joined, read(store, touched(joined)), engine)
        store.write(joined.records, ttl_s=0)
        store.write(applied.profiles, ttl_s=0)
        duplicates += joined.duplicates
    return duplicates


def read(store: ProfileStore, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    return {key: value for key, value in zip(keys, store.read(keys), strict=True) if value is not None}


def profiles_of(store: ProfileStore) -> dict[bytes, bytes]:
    """Returns every profile by key, without its offsets."""
    return {key: without_sources(state) for name in PLAN.entity_names for key, state in store.scan(name)}


@pytest.fixture(scope="module")
def backfilled() -> Iterator[MemoryStore]:
    store = MemoryStore()
    fill(small_world.tables(), store)
    yield store
    store.close()


def test_backfilled_profiles_equal_those_of_the_stream(backfilled: MemoryStore) -> None:
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


def filled_by_partitions(
    folder: Path, store: ProfileStore, of: FeatureEngine | None = None, **options: Any
) -> dict[str, int]:
    write_history(folder, *small_world.tables())
    paths = str(folder / "payments.parquet"), str(folder / "outcomes.parquet")
    with ProcessEngine(folder, partitions=3) as engine:
        passage = Passage.open(engine, *paths, features=of or small_world.engine(), rates=small_world.rates())
        return PassageBackfill(passage, store, 20, **options).write()


@OF
def test_partitions_write_the_records_of_one_process(tmp_path: Path, of: FeatureEngine) -> None:
    one, many = MemoryStore(), MemoryStore()
    fill(small_world.tables(), one, outcome_days=20, of=of)
    counts = filled_by_partitions(tmp_path, many, of)
    names = (*PLAN.entity_names, "payment")
    assert {name: dict(many.scan(name)) for name in names} == {name: dict(one.scan(name)) for name in names}
    assert counts == {name: len(dict(one.scan(name))) for name in names}
    # Again there is nothing to do, and a run that was killed writes over nothing.
    assert filled_by_partitions(tmp_path, many, of) == {}
    progress = read_progress(many)
    assert progress is not None
    many.write({PROGRESS_KEY: replace(progress, phase="card").encode()}, ttl_s=0)
    assert filled_by_partitions(tmp_path, many, of) == counts


def test_partitions_write_over_nothing_of_another_origin(tmp_path: Path) -> None:
    store = MemoryStore()
    fill(small_world.tables(), store, outcome_days=20)
    with pytest.raises(Misconfigured, match="the store holds card profiles from a backfill of something else"):
        filled_by_partitions(tmp_path, store)
    assert filled_by_partitions(tmp_path, store, overwrite=True)["card"] > 0


@OF
def test_later_outcomes_find_the_backfilled_payments(of: FeatureEngine) -> None:
    """Backfilling half a history and streaming the rest gives the same store as backfilling all of it."""
    payments, outcomes = small_world.tables()
    time_ms = payments["event_time_ms"][len(payments) * 2 // 3].as_py()
    past, rest = split_at(payments, outcomes, time_ms)
    halves, whole = MemoryStore(), MemoryStore()
    fill(past, halves, of=of)
    stream(
        [payment_event(row, offset) for offset, row in enumerate(rest[0].to_pylist())],
        [outcome_event(row, offset) for offset, row in enumerate(rest[1].to_pylist())],
        halves,
        of,
    )
    fill((payments, outcomes), whole, of=of)
    assert profiles_of(halves) == profiles_of(whole)


def test_a_backfilled_payment_that_comes_again_is_a_duplicate(backfilled: MemoryStore) -> None:
    rows = small_world.tables()[0].slice(5000, 100).to_pylist()
    before = profiles_of(backfilled)
    assert stream([payment_event(row, offset) for offset, row in enumerate(rows)], [], backfilled) == 100
    assert profiles_of(backfilled) == before


def test_only_payments_that_may_still_get_an_outcome_are_kept() -> None:
    payments = small_world.tables()[0]
    store = MemoryStore()
    fill(small_world.tables(), store, outcome_days=10)
    kept = {key: PaymentRecord.FromString(value).attributes[TIME_MS] for key, value in store.scan("payment")}
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

        def write(
            self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None
        ) -> None:
            for key in values:
                self.ttl_s.setdefault(key.partition(b":")[0].decode(), set()).add(
                    ttl_s if isinstance(ttl_s, int) else ttl_s[key]
                )
            super().write(values, ttl_s=ttl_s, versions=versions)

    store = Noting()
    fill(small_world.tables(), store, outcome_days=45)
    assert store.ttl_s["payment"] == {45 * 86_400}
    for name, retention_ms in zip(PLAN.entity_names, PLAN.retention_ms, strict=True):
        assert store.ttl_s[name] == {retention_ms // 1000 + 86_400}
    assert store.ttl_s["progress"] == {max(ttl_s for name in store.ttl_s for ttl_s in store.ttl_s[name])}


def test_an_empty_history_can_be_backfilled() -> None:
    payments, outcomes = small_world.tables()
    store = MemoryStore()
    assert fill((payments.slice(0, 0), outcomes.slice(0, 0)), store) == 0
    assert profiles_of(store) == {}


def test_progress_counts_every_payment_and_every_record() -> None:
    payments: list[int] = []
    records: list[int] = []
    store = MemoryStore()
    job = job_of(store)
    left_count = job.left_count
    job.compute(payments.append)
    assert job.write(records.append) == left_count == len(contents(store)) - 1
    assert sum(payments) == len(small_world.history())
    assert sum(records) == left_count
    assert job.left_count == 0


def test_records_of_payments_are_encoded_like_one_message() -> None:
    store = MemoryStore()
    fill(small_world.tables(), store)
    rows = small_world.tables()[0].to_pylist()
    frauds = {rows[row]["payment_id"] for row in np.flatnonzero(final_labels(small_world.history()) == 1)}
    assert 0 < len(frauds) < len(rows)
    assert any(row["device_id"] is None for row in rows)
    for row in rows:
        event = payment_event(row, 0)
        changes = [LabelChange(source=BACKFILL_SOURCE, weight=1)] if row["payment_id"] in frauds else []
        wanted = PaymentRecord(
            source=BACKFILL_SOURCE,
            keys=[key.decode() for key in event.keys],
            label_changes=changes,
            attributes=event.attributes[:CODE_COUNT],
        )
        assert store.read([record_key(row["payment_id"])]) == [wanted.SerializeToString()]


# Kills and resumes


class Killed(BaseException):
    """Simulates kill -9: no code catches it."""


class Mortal(MemoryStore):
    """A store that dies at a chosen write, before it or after it.

    `written` counts records, without those of progress; `lost` those of them that no progress had noted at a death.
    """

    def __init__(self, writes_left: int = -1) -> None:
        super().__init__()
        self.writes_left = writes_left
        self.dies_after_it = False
        self.written = self.lost = 0
        self._not_noted = 0

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        self.writes_left -= 1
        if self.writes_left == 0 and not self.dies_after_it:
            self._die()
        super().write(values, ttl_s=ttl_s, versions=versions)
        self._not_noted = 0 if PROGRESS_KEY in values else len(values)
        self.written += self._not_noted
        if self.writes_left == 0:
            self._die()

    def _die(self) -> None:
        self.lost += self._not_noted
        self._not_noted = 0
        raise Killed


def job_of(store: ProfileStore, *, overwrite: bool = False, batch_size: int = 1000, **changed: Any) -> Backfill:
    options: dict[str, Any] = {
        "history": small_world.history(),
        "engine": small_world.engine(),
        "rates": small_world.rates(),
        "outcome_days": 120,
        **changed,
    }
    return Backfill(options.pop("history"), store, overwrite=overwrite, batch_size=batch_size, **options)


def run(job: Backfill) -> int:
    job.compute()
    return job.write()


def contents(store: ProfileStore) -> dict[bytes, bytes]:
    """Returns every record of the store."""
    return {key: value for name in (*PLAN.entity_names, "payment", "progress") for key, value in store.scan(name)}


@pytest.fixture(scope="module")
def whole() -> dict[bytes, bytes]:
    """The store after an uninterrupted run."""
    store = MemoryStore()
    run(job_of(store))
    return contents(store)


@pytest.mark.parametrize("dies_after_it", [False, True])
def test_a_backfill_killed_at_any_write_resumes_and_ends_the_same(
    dies_after_it: bool, whole: dict[bytes, bytes]
) -> None:
    store = Mortal()
    store.dies_after_it = dies_after_it
    deaths, left_count = 0, len(whole)
    while True:
        job = job_of(store)
        assert job.left_count <= left_count
        left_count = job.left_count
        # The first write of a run only stores the checkpoint.
        store.writes_left = 1 + deaths % 5
        try:
            run(job)
        except Killed:
            deaths += 1
        else:
            break
    assert deaths > 10
    assert contents(store) == whole
    # Only a batch without its checkpoint is written again.
    assert 0 < store.lost == store.written - (len(whole) - 1)


def test_profiles_are_not_computed_again_when_all_of_them_are_written() -> None:
    class Forbidden(Exception):
        pass

    def forbid(_: int) -> None:
        raise Forbidden

    store = Mortal()
    store.writes_left = 12
    with pytest.raises(Killed):
        run(job_of(store))
    progress = read_progress(store)
    assert progress is not None
    assert progress.phase == "payment"
    job = job_of(store)
    assert not job.needs_profiles
    job.compute(forbid)
    store.writes_left = -1
    job.write()
    assert job_of(store).is_finished


CHILD = """
import sys
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.history.history import read_history
from paywarden.features.stores.lmdb import LmdbStore
from paywarden.features.profiles.money import load_rates
from paywarden.streams.maintenance.backfill import Backfill

history, store = read_history(sys.argv[1]), LmdbStore(sys.argv[2])
job = Backfill(history, store, engine=FeatureEngine(), rates=load_rates(), outcome_days=120, batch_size=200)
print(job.left_count, flush=True)
job.compute()
job.write(lambda _: print(job.left_count, flush=True))
"""


def test_a_backfill_resumes_after_kill_9_with_the_same_result(tmp_path: Path, whole: dict[bytes, bytes]) -> None:
    write_history(tmp_path / "data", *small_world.tables())
    left_count = len(whole)
    for batches in (2, 9, 20, None):
        child = PaywardenProcess.of_program(tmp_path, CHILD, str(tmp_path / "data"), str(tmp_path / "store"))
        first = int(child.first_line())
        # The count never rises: a run does not repeat batches with a checkpoint.
        assert first <= left_count
        if batches is None:
            assert child.process.stdout is not None
            left = [int(line) for line in child.process.stdout]
            assert left[-1] == 0
            assert child.process.wait(PATIENCE_S) == child.stop() == 0
            break
        for _ in range(batches):
            left_count = int(child.first_line())
        child.kill()
        assert 0 < left_count < first
    store = LmdbStore(tmp_path / "store", readonly=True)
    assert contents(store) == whole
    store.close()


def test_a_finished_backfill_does_nothing(whole: dict[bytes, bytes]) -> None:
    store = Mortal()
    run(job_of(store))
    before = store.written
    again = job_of(store)
    assert again.is_finished
    assert again.left_count == 0
    assert run(again) == 0
    assert run(job_of(store, overwrite=True)) == 0
    assert store.written == before
    assert contents(store) == whole


def test_a_finished_backfill_does_not_restore_a_forgotten_card() -> None:
    store = MemoryStore()
    run(job_of(store))
    key = next(store.scan("card"))[0]
    store.delete([key])
    run(job_of(store))
    assert store.read([key]) == [None]


# Other records in the store


def changed_tables(change: str) -> tuple[pa.Table, pa.Table]:
    """Returns the tables of the small world with one change."""
    payments, outcomes = small_world.tables()
    table, name, value = {
        "an amount": (payments, "amount_minor", payments["amount_minor"][0].as_py() + 1),
        "a merchant": (payments, "merchant_id", payments["merchant_id"][1].as_py()),
        "a payment's name": (payments, "payment_id", "another"),
        "a label": (outcomes, "label", "genuine" if outcomes["label"][0].as_py() == "fraud" else "fraud"),
    }[change]
    values = [value, *table[name].to_pylist()[1:]]
    changed = table.set_column(
        table.column_names.index(name), name, pa.array(values, pa.string() if isinstance(value, str) else pa.int64())
    )
    if table is outcomes:
        return payments, changed
    if change == "a payment's name":
        first = payments["payment_id"][0].as_py()
        kept = pc.if_else(
            pc.equal(outcomes["payment_id"].cast(pa.string()), first), value, outcomes["payment_id"].cast(pa.string())
        )
        outcomes = outcomes.set_column(outcomes.column_names.index("payment_id"), "payment_id", kept)
    return changed, outcomes


@pytest.mark.parametrize(
    "change", ["an amount", "a merchant", "a payment's name", "a label", "days", "rates", "catalogue"]
)
def test_a_backfill_of_something_else_does_not_resume_this_one(change: str) -> None:
    store = MemoryStore()
    run(job_of(store))
    rates = small_world.rates()
    doubled = {c: [(0, 2 * (rates.convert(1_000_000, c, 1) or 0))] for c in rates.currencies}
    options: dict[str, dict[str, Any]] = {
        "days": {"outcome_days": 60},
        "rates": {"rates": RateTable(doubled)},
        "catalogue": {"engine": FeatureEngine(replace(CATALOGUE, features=CATALOGUE.features[:-1]))},
    }
    changed = options.get(change) or {"history": history_of_tables(*changed_tables(change))}
    with pytest.raises(Misconfigured, match="from a backfill of something else"):
        job_of(store, **changed)


def test_another_history_may_start_before_anything_is_written(whole: dict[bytes, bytes]) -> None:
    store = Mortal()
    store.writes_left, store.dies_after_it = 1, True
    with pytest.raises(Killed):
        run(job_of(store, outcome_days=1))
    assert read_progress(store) is not None
    store.writes_left = -1
    run(job_of(store))
    assert contents(store) == whole


@pytest.mark.parametrize(
    ("key", "what"),
    [(b"card:somebody", "card profiles"), (b"device:d", "device profiles"), (b"payment:p", "payment records")],
)
def test_a_store_that_something_else_has_written_to_is_refused(key: bytes, what: str) -> None:
    store = MemoryStore()
    store.write({key: b"precious"}, ttl_s=0)
    with pytest.raises(Misconfigured, match=f"the store holds {what} that no backfill of this wrote") as refused:
        job_of(store)
    assert "--overwrite" in str(refused.value)
    assert "somebody" not in str(refused.value)
    assert store.read([key, PROGRESS_KEY]) == [b"precious", None]


def test_overwrite_replaces_its_own_records_and_keeps_others(whole: dict[bytes, bytes]) -> None:
    store = MemoryStore()
    own = next(key for key in whole if key.startswith(b"card:"))
    store.write({own: b"old", b"card:somebody": b"precious", b"payment:p": b"kept"}, ttl_s=0)
    run(job_of(store, overwrite=True))
    assert contents(store) == {**whole, b"card:somebody": b"precious", b"payment:p": b"kept"}


def test_a_killed_overwriting_backfill_resumes(whole: dict[bytes, bytes]) -> None:
    store = Mortal()
    store.write({key: b"old" for key in whole if key.startswith(b"merchant:")}, ttl_s=0)
    for _ in range(3):
        store.writes_left = 4
        with pytest.raises(Killed):
            run(job_of(store, overwrite=True))
    store.writes_left = -1
    run(job_of(store, overwrite=True))
    assert contents(store) == whole


@pytest.mark.parametrize(("entity", "writes"), [(b"card:", 2), (b"payment:", 12)])
def test_a_backfill_never_overwrites_what_the_stream_wrote_meanwhile(
    entity: bytes, writes: int, whole: dict[bytes, bytes]
) -> None:
    """The backfill was killed and the stream started before it was finished: the stream's records are newer."""
    store = Mortal()
    store.writes_left = writes
    with pytest.raises(Killed):
        run(job_of(store))
    store.writes_left = -1
    last = max(key for key in whole if key.startswith(entity))
    store.write({last: b"newer"}, ttl_s=0)
    with pytest.raises(Misconfigured, match="something else has written to the store"):
        run(job_of(store))
    assert store.read([last]) == [b"newer"]


def test_unreadable_progress_counts_as_another_backfill() -> None:
    for value in (b"", b"\xff", b"{}", b"[1]", b'{"origin": {"payments": 1}, "phase": "card", "position": 0}'):
        store = MemoryStore()
        store.write({PROGRESS_KEY: value, b"card:somebody": b"precious"}, ttl_s=0)
        assert read_progress(store) is None
        with pytest.raises(Misconfigured, match="card profiles"):
            job_of(store)
