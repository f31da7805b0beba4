"""Counts in the store have each decision once, after any fault and for any owner of the partition."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from paywarden.features.stores.base import StoreConflict, TtlS
from paywarden.features.stores.memory import MemoryStore
from paywarden.models.drift.counts import Counts
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.drift import drift_state as drift_state
from paywarden.streams.drift.drift_counts import (
    MINUTE_MS,
    ROWS_MAX,
    Binnings,
    CountCell,
    PartitionCounts,
    counted,
    model_of,
)
from paywarden.streams.drift.drift_metrics import DriftMetrics
from paywarden.streams.drift.drift_settings import DriftSettings
from paywarden.streams.drift.drift_state import (
    FIVE_MS,
    Adder,
    DriftCounting,
    DriftHead,
    PartitionState,
    merged,
    read_heads,
    take_over,
    tile_key,
)
from tests.worlds.drift.drifting import NOON_MS, decision, small_binning

BINNINGS = Binnings({"m1": small_binning()})
ADDER = Adder(BINNINGS)
SETTINGS = DriftSettings()
NOW_MS = NOON_MS + 3_600_000


class ShakyStore(MemoryStore):
    """Fails as planned: before a write, or after it, so that the answer is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: list[str] = []

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        what = self.plan.pop(0) if self.plan else ""
        if what == "before":
            raise StoreUnavailable("away")
        if what == "partly":
            # Some records are written, as if they lay on several nodes.
            values = dict(list(values.items())[:1])
        super().write(values, ttl_s=ttl_s, versions=versions)
        if what in ("after", "partly"):
            raise StoreUnavailable("away")


def owner(store: MemoryStore, partition: int = 0) -> PartitionState:
    counting = DriftCounting(store, BINNINGS, SETTINGS, DriftMetrics(CollectorRegistry()))
    return counting.take_over(partition)


def moment(number: int) -> int:
    return NOON_MS + number % 37 * 20_000


def feed(state: PartitionState, first: int, last: int) -> None:
    for number in range(first, last):
        state.counts.add(number, decision(number, moment(number)))
    state.counts.hand_over()


def exact(last: int, start_ms: int = NOON_MS, end_ms: int = NOON_MS + 15 * MINUTE_MS) -> Counts:
    numbers = [number for number in range(last) if start_ms <= moment(number) < end_ms]
    counts = PartitionCounts(DriftHead("").progress, BINNINGS, SETTINGS)
    for number in numbers:
        counts.add(number, decision(number, moment(number)))
    counts.hand_over()
    total = Counts.empty(small_binning())
    while counts.progress.next_offset < counts.handed_to:
        for rows in counts.take(NOW_MS).values():
            total.add(counted(small_binning(), rows))
    return total


def stored(
    store: MemoryStore, start_ms: int = NOON_MS, end_ms: int = NOON_MS + 15 * MINUTE_MS, tile_ms: int = FIVE_MS
) -> Counts:
    (found,) = merged(store, read_heads(store, [0, 1]), start_ms, end_ms, ADDER, tile_ms=tile_ms).values()
    return found


def assert_equal(found: Counts, wanted: Counts) -> None:
    for name in ("payments", "scores", "actions", "features", "flags", "ages"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)


steps = st.lists(
    st.tuples(
        st.integers(1, 120), st.sampled_from(["", "", "flush", "restart"]),
        st.lists(st.sampled_from(["", "before", "after", "partly"]), max_size=4),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(steps)
def test_counts_are_exact_despite_failures_and_restarts(plan: list[tuple[int, str, list[str]]]) -> None:
    store = ShakyStore()
    state, read = owner(store), 0
    for more, what, failures in plan:
        feed(state, read, read + more)
        read += more
        store.plan = list(failures)
        with suppress(StoreUnavailable):
            state.save(NOW_MS, flush=what == "flush")
        if what == "restart":
            store.plan = []
            state = owner(store)
            read = state.saved.next_offset
    store.plan = []
    feed(state, read, 800)
    while state.has_news:
        state.save(NOW_MS)
    assert state.saved.next_offset == 800
    assert_equal(stored(store), exact(800))


@given(st.integers(0, 10), st.integers(0, 10))
def test_tiles_of_one_and_of_five_minutes_hold_the_same(seed: int, saves: int) -> None:
    store, chance = MemoryStore(), random.Random(seed)
    state, read = owner(store), 0
    for _ in range(saves):
        feed(state, read, read := read + chance.randrange(100))
        state.save(NOW_MS, flush=chance.random() < 0.5)
    feed(state, read, read + 300)
    state.save(NOW_MS)
    for start_ms in range(NOON_MS, NOON_MS + 10 * MINUTE_MS, FIVE_MS):
        five = stored(store, start_ms, start_ms + FIVE_MS)
        assert_equal(five, stored(store, start_ms, start_ms + FIVE_MS, MINUTE_MS))
        assert_equal(five, exact(read + 300, start_ms, start_ms + FIVE_MS))


def test_a_sliding_window_is_exact_to_its_tile() -> None:
    store = MemoryStore()
    state = owner(store)
    feed(state, 0, 700)
    state.save(NOW_MS)
    start_ms = NOON_MS + 3 * MINUTE_MS
    assert_equal(stored(store, start_ms, start_ms + FIVE_MS, MINUTE_MS), exact(700, start_ms, start_ms + FIVE_MS))


def test_the_counts_of_partitions_are_added_up() -> None:
    store = MemoryStore()
    for partition in (0, 1):
        state = owner(store, partition)
        feed(state, 0, 300)
        state.save(NOW_MS, flush=partition == 0)
    twice = exact(300)
    twice.add(exact(300))
    assert_equal(stored(store), twice)


def test_a_former_owner_meets_a_conflict_and_changes_nothing() -> None:
    store = MemoryStore()
    old = owner(store)
    feed(old, 0, 200)
    old.save(NOW_MS)
    new = owner(store)
    feed(old, 200, 300)
    with pytest.raises(StoreConflict):
        old.save(NOW_MS)
    feed(new, 200, 400)
    new.save(NOW_MS)
    assert_equal(stored(store), exact(400))
    with pytest.raises(StoreConflict):
        old.save(NOW_MS)


def test_a_former_owner_may_repeat_the_tiles_its_successor_wrote() -> None:
    store = ShakyStore()
    old = owner(store)
    feed(old, 0, 200)
    # The head is written, the tiles are not.
    store.plan = ["", "before"]
    with pytest.raises(StoreUnavailable):
        old.save(NOW_MS, flush=True)
    new = owner(store)
    feed(new, 200, 400)
    new.save(NOW_MS, flush=True)
    with pytest.raises(StoreConflict):
        old.save(NOW_MS)
    assert_equal(stored(store), exact(400))


def test_a_later_tile_takes_a_slot_and_an_earlier_one_does_not() -> None:
    store = MemoryStore()
    later_ms = NOON_MS + 120 * MINUTE_MS
    assert tile_key(MINUTE_MS, 0, later_ms) == tile_key(MINUTE_MS, 0, NOON_MS)
    state = owner(store)
    for offset, at in enumerate((NOON_MS, later_ms, NOON_MS)):
        state.counts.add(offset, decision(offset, at))
        state.counts.hand_over()
        state.save(later_ms, flush=True)
    assert stored(store, later_ms, later_ms + MINUTE_MS, MINUTE_MS).payments[0] == 1
    assert stored(store, NOON_MS, NOON_MS + FIVE_MS).payments[0] == 2


def test_a_record_that_is_too_large_loses_only_segment_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = CountCell(NOON_MS, model_of("m1", small_binning()))
    whole = exact(200)
    monkeypatch.setattr(drift_state, "RECORD_BYTES_MAX", len(whole.to_bytes()) - 1)
    trimmed: list[int] = []
    adder = Adder(BINNINGS, on_trimmed=lambda: trimmed.append(1))
    (data,) = adder.fitting({cell: whole.to_bytes()}).values()
    found = Counts.from_bytes(data, small_binning())
    assert trimmed == [1]
    np.testing.assert_array_equal(found.scores, whole.scores)
    np.testing.assert_array_equal(found.features[0], whole.features[0])
    assert found.features[1:].sum() == 0


def test_counts_of_a_removed_bundle_stay_and_are_not_mixed_in() -> None:
    store = MemoryStore()
    state = owner(store)
    # Two minutes: few enough to stay in the head, and they add up in a tile of five.
    feed(state, 0, 4)
    state.save(NOW_MS)
    lost: list[int] = []
    changed = Adder(Binnings({"m1": small_binning(6)}), on_lost=lambda: lost.append(1))
    take_over(store, 0, changed)
    assert lost
    assert merged(store, read_heads(store, [0]), NOON_MS, NOON_MS + FIVE_MS, changed) == {}
    assert stored(store).payments[0] > 0


def test_the_quiet_mark_waits_until_all_decisions_are_counted() -> None:
    store = MemoryStore()
    state = owner(store)
    for number in range(ROWS_MAX + 100):
        state.counts.add(number, decision(number % 5, NOON_MS))
    state.hand_over(NOW_MS)
    state.save(NOW_MS)
    assert read_heads(store, [0])[0].quiet_ms == 0
    state.save(NOW_MS)
    assert read_heads(store, [0])[0].quiet_ms == NOW_MS
