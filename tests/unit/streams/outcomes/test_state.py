"""Outcomes joined in the store: after any fault, with any workers, the tallies equal a recount."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.base import StoreConflict, TtlS, Versioned
from paywarden.features.stores.memory import MemoryStore
from paywarden.models.metrics.outcome_tally import OutcomeTally
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.outcome_state import (
    DECISIONS,
    OTHER_ARM,
    OUTCOMES,
    OutcomeWork,
    StateReading,
    read_cells,
    read_heads,
    take_over,
)
from paywarden.streams.outcomes.payments import (
    DAY_MS,
    Arm,
    CountedDecision,
    JoinedPayment,
    RowEffect,
    SourcePartition,
    TallyCell,
    TallyChange,
    first_record,
    payment_key,
)
from tests.worlds.drift.outcome_world import (
    FIRST_DAY,
    Record,
    assert_same,
    by_partition,
    decision,
    kinds,
    outcome,
    random_records,
    recount,
)

SETTINGS = OutcomeSettings()
RATES = load_rates()
PARTITIONS = {DECISIONS: 2, OUTCOMES: 3}
SOURCES = [SourcePartition(topic, partition) for topic, count in PARTITIONS.items() for partition in range(count)]
DAYS = range(FIRST_DAY - 1, FIRST_DAY + 5)
NOON_MS = FIRST_DAY * DAY_MS + DAY_MS // 2


class ShakyStore(MemoryStore):
    """Fails as planned: before a write, in the middle or after it. Lets others work between any two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[str] = []
        self.others: list[Callable[[], None]] = []

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        found = super().read_versioned(keys)
        self._let_others_work()
        return found

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        self._let_others_work()
        what = self.failures.pop(0) if self.failures else ""
        if what == "before":
            raise StoreUnavailable("away")
        if what == "partly":
            # Some records are written, as if they lay on several nodes.
            values = dict(list(values.items())[::2])
        super().write(values, ttl_s=ttl_s, versions=versions)
        if what in ("after", "partly"):
            raise StoreUnavailable("away")

    def _let_others_work(self) -> None:
        if self.others:
            self.others.pop(0)()


class World:
    """Two topics with all their records, and workers that come and go."""

    def __init__(self, decisions: Sequence[Record] = (), outcomes: Sequence[Record] = ()) -> None:
        self.store = ShakyStore()
        self.logs = {
            SourcePartition(topic, partition): rows
            for topic, records in ((DECISIONS, decisions), (OUTCOMES, outcomes))
            for partition, rows in enumerate(by_partition(records, PARTITIONS[topic]))
        }
        # All owners each partition ever had, the newest last.
        self.owners: dict[SourcePartition, list[OutcomeWork]] = {source: [] for source in SOURCES}
        self.busy: list[OutcomeWork] = []

    def take(self, source: SourcePartition, settings: OutcomeSettings = SETTINGS) -> OutcomeWork:
        checkpoint = take_over(self.store, source, settings)
        reading = StateReading(source.topic, settings, RATES)
        owner = OutcomeWork(self.store, source, checkpoint, reading=reading, settings=settings)
        self.owners[source].append(owner)
        return owner

    def feed(self, owner: OutcomeWork, count: int) -> None:
        """Feed the next records, and some before them again."""
        rows = self.logs[owner.source]
        first = max(0, owner.next_offset - 2)
        for offset in range(first, min(len(rows), owner.next_offset + len(owner) + count)):
            owner.add(offset, rows[offset])
        owner.hand_over(0)

    def finish(self) -> None:
        """Let new owners work in all records."""
        self.store.failures, self.store.others = [], []
        for source in SOURCES:
            owner = self.take(source)
            self.feed(owner, len(self.logs[source]))
            while owner.has_news:
                owner.save(0)

    def cells(self) -> dict[TallyCell, OutcomeTally]:
        return read_cells(self.store, SOURCES, DAYS)

    def totals(self) -> Mapping[str, int]:
        return kinds(head.progress.totals for head in read_heads(self.store, SOURCES).values())


def try_to_save(world: World, source: SourcePartition, which: int, count: int) -> None:
    """Let an owner of a partition, perhaps a former one, read on and save. An owner that fails is gone."""
    owners = [owner for owner in world.owners[source] if owner not in world.busy]
    try:
        owner = owners[which % len(owners)] if owners else world.take(source)
    except StoreUnavailable:
        return
    world.feed(owner, count)
    world.busy.append(owner)
    try:
        owner.save(0)
    except StoreUnavailable:
        # The owner may try again, or be gone.
        if which % 2:
            world.owners[source].remove(owner)
    except StoreConflict:
        world.owners[source].remove(owner)
    finally:
        world.busy.remove(owner)


saves = st.tuples(st.sampled_from(SOURCES), st.integers(0, 3), st.integers(1, 12))
steps = st.lists(
    st.tuples(
        saves,
        st.booleans(),
        st.lists(st.sampled_from(["", "", "before", "after", "partly"]), max_size=3),
        st.lists(saves, max_size=4),
    ),
    max_size=14,
)


@given(st.integers(0, 50), steps)
def test_tallies_equal_a_recount_despite_crashes_and_concurrent_owners(
    seed: int,
    plan: list[tuple[tuple[SourcePartition, int, int], bool, list[str], list[tuple[SourcePartition, int, int]]]],
) -> None:
    decisions, outcomes = random_records(seed, 14)
    world = World(decisions, outcomes)
    for save, is_new_owner, failures, others in plan:
        world.store.failures = list(failures)
        world.store.others = [
            lambda other=other: try_to_save(world, *other)  # type: ignore[misc]
            for other in others
        ]
        if is_new_owner:
            with suppress(StoreUnavailable):
                world.take(save[0])
        try_to_save(world, *save)
    world.finish()
    assert_same(world.cells(), recount(decisions, outcomes, SETTINGS.window_days))
    totals = world.totals()
    assert sum(totals[kind.name.lower()] for kind in RowEffect) == len(decisions) + len(outcomes)
    assert totals["decided"] == len({(one["payment_id"], one["variant"]) for one in decisions})


def joined(decisions: Sequence[Record], outcomes: Sequence[Record], *, first: str = DECISIONS) -> World:
    world = World(decisions, outcomes)
    for source in sorted(SOURCES, key=lambda one: one.topic != first):
        owner = world.take(source)
        world.feed(owner, 100)
        if owner.has_news:
            owner.save(0)
    return world


def test_repeated_older_and_late_outcomes_change_nothing() -> None:
    decisions = [decision("p1", NOON_MS), decision("p1", NOON_MS + 5, action="decline")]
    outcomes = [
        outcome("p1", NOON_MS + 9 * DAY_MS, "fraud"),
        outcome("p1", NOON_MS + 9 * DAY_MS, "fraud"),
        outcome("p1", NOON_MS + 8 * DAY_MS, "genuine"),
        outcome("p1", NOON_MS + 91 * DAY_MS, "genuine"),
    ]
    totals = joined(decisions, outcomes).totals()
    assert (totals["decided"], totals["labelled"], totals["nothing"], totals["late"]) == (1, 1, 3, 1)


def test_a_later_outcome_corrects_or_confirms() -> None:
    outcomes = [
        outcome("p1", NOON_MS + DAY_MS, "fraud"),
        outcome("p1", NOON_MS + 2 * DAY_MS, "genuine"),
        outcome("p1", NOON_MS + 3 * DAY_MS, "genuine"),
    ]
    world = joined([decision("p1", NOON_MS)], outcomes)
    totals = world.totals()
    assert (totals["labelled"], totals["corrected"], totals["confirmed"]) == (1, 1, 1)
    (tally,) = world.cells().values()
    assert tally.counts.sum(axis=(1, 2)).tolist() == [1, 0, 0]


def test_versions_and_variants_beyond_the_limit_are_counted_together() -> None:
    few = OutcomeSettings(arms_max=2)
    decisions = [decision(f"p{2 * n}", NOON_MS, model_version=f"m{n}") for n in range(5)]
    decisions.append(decision("p98", NOON_MS, model_version="m" * 1000))
    world = World(decisions)
    owner = world.take(SourcePartition(DECISIONS, 0), few)
    world.feed(owner, 100)
    owner.save(0)
    found = {cell.arm: int(tally.counts.sum()) for cell, tally in world.cells().items()}
    assert found == {Arm("m0", ""): 1, Arm("m1", ""): 1, OTHER_ARM: 4}


def test_an_amount_without_a_rate_counts_as_zero() -> None:
    decisions = [decision("p0", NOON_MS, currency="XXX"), decision("p2", NOON_MS, amount_minor=-5)]
    world = joined(decisions, [])
    (tally,) = world.cells().values()
    assert (int(tally.counts.sum()), int(tally.amount_minor.sum())) == (2, 0)
    assert world.totals()["without_amount"] == 2


def test_a_damaged_payment_record_is_counted_and_holds_nothing_up() -> None:
    world = World([decision("p0", NOON_MS), decision("p2", NOON_MS)])
    world.store.write({payment_key("p0"): b"damaged"}, ttl_s=0)
    owner = world.take(SourcePartition(DECISIONS, 0))
    world.feed(owner, 100)
    owner.save(0)
    assert (world.totals()["unreadable"], world.totals()["decided"]) == (1, 1)


def test_a_former_owner_takes_nothing_back_of_what_a_day_has() -> None:
    """The newer one has died between days and head, so its successor looks again at what the day says that it has."""
    decisions = [decision(f"p{number}", NOON_MS) for number in (0, 2, 4, 6)]
    world = World(decisions)
    source = SourcePartition(DECISIONS, 0)
    old, newer = world.take(source), world.take(source)
    world.feed(newer, 4)
    # The writes of payments, days and head.
    world.store.failures = ["", "", "before"]
    with pytest.raises(StoreUnavailable):
        newer.save(0)
    world.feed(old, 2)
    with pytest.raises(StoreConflict):
        old.save(0)
    world.finish()
    assert_same(world.cells(), recount(decisions, [], SETTINGS.window_days))


def test_the_quiet_mark_waits_until_all_rows_are_worked_in() -> None:
    world = World()
    owner = world.take(SourcePartition(DECISIONS, 0))
    for offset in range(2_100):
        owner.add(offset, decision("p0", NOON_MS))
    owner.hand_over(NOON_MS)
    owner.save(0)
    assert read_heads(world.store, SOURCES)[owner.source].quiet_ms == 0
    owner.save(0)
    assert read_heads(world.store, SOURCES)[owner.source].quiet_ms == NOON_MS
    assert not owner.has_news


@given(
    st.builds(
        CountedDecision,
        st.builds(Arm, st.text(max_size=5), st.text(max_size=5)),
        st.integers(-(2**63), 2**63 - 1),
        st.integers(0, 2),
        st.integers(-1, 2**30),
        st.integers(0, 10**11),
    ),
    st.integers(0, 2**63 - 1),
)
def test_the_short_way_to_a_first_decisions_record_writes_the_same_bytes(decided: CountedDecision, offset: int) -> None:
    source = SourcePartition(DECISIONS, 77)
    joined, kind = JoinedPayment().join(decided, source, offset, DAY_MS)
    assert kind is RowEffect.DECIDED
    assert first_record(decided, source, offset) == joined.to_bytes()
    assert list(joined.counted(joined.marks[0])) == [TallyChange(decided, None, 1)]


def test_rows_without_a_payment_id_end_no_worker() -> None:
    """Anybody who may write to a topic can write one. Payments have none, so it is joined to nothing else."""
    world = World()
    world.logs[SourcePartition(DECISIONS, 0)].append(decision("", NOON_MS))
    world.logs[SourcePartition(OUTCOMES, 0)].append(outcome("", NOON_MS, "fraud"))
    world.finish()
    assert sum(head.progress.next_offset for head in read_heads(world.store, SOURCES).values()) == 2
