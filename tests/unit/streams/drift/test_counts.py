"""Each decision is counted in its cell, regardless of the other decisions of its batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from paywarden.streams.drift.drift_counts import (
    CELLS_MAX,
    KEPT_MS,
    MINUTE_MS,
    OTHER_VERSION,
    ROWS_MAX,
    Binnings,
    CountCell,
    CountingProgress,
    PartitionCounts,
    counted,
)
from paywarden.streams.drift.drift_settings import DriftSettings
from tests.worlds.drift.drifting import NOON_MS, decision, small_binning

SETTINGS = DriftSettings(versions_max=2)
BINNINGS = Binnings({"m1": small_binning(), "m2": small_binning(6)})


def fresh(progress: CountingProgress | None = None) -> PartitionCounts:
    return PartitionCounts(progress or CountingProgress(), BINNINGS, SETTINGS)


def take_all(counts: PartitionCounts, now_ms: int = NOON_MS) -> Counter[CountCell]:
    """Return how many decisions each cell gets."""
    counts.hand_over()
    found: Counter[CountCell] = Counter()
    while counts.progress.next_offset < counts.handed_to:
        for cell, rows in counts.take(now_ms).items():
            found[cell] += len(rows)
    return found


def count_of(*records: dict[str, Any], now_ms: int = NOON_MS) -> tuple[Counter[CountCell], CountingProgress]:
    counts = fresh()
    for offset, record in enumerate(records):
        counts.add(offset, record)
    return take_all(counts, now_ms), counts.progress


moments = st.one_of(st.integers(-60, 10), st.integers(-4000, 5)).map(lambda minutes: NOON_MS + minutes * MINUTE_MS)
versions = st.sampled_from(["m1", "m2", "m3", "m4", ""])
streams = st.lists(st.tuples(moments, versions), max_size=60)


@given(streams, st.lists(st.integers(0, 60), max_size=8), st.lists(st.integers(0, 60), max_size=8))
def test_counts_do_not_depend_on_batches_restarts_or_repetitions(
    stream: list[tuple[int, str]], cuts: list[int], restarts: list[int]
) -> None:
    records = [decision(number, at, version=version) for number, (at, version) in enumerate(stream)]
    # The offsets have gaps, as transactions leave them.
    offsets = [2 * number + 5 for number in range(len(records))]
    whole = fresh()
    for offset, record in zip(offsets, records, strict=True):
        whole.add(offset, record)
    wanted = take_all(whole)
    counts, found = fresh(), Counter[CountCell]()
    for number, (offset, record) in enumerate(zip(offsets, records, strict=True)):
        counts.add(offset, record)
        if number in cuts:
            found += take_all(counts)
        if number in restarts:
            # The progress was saved; then some decisions that were read already come again.
            found += take_all(counts)
            counts = fresh(counts.progress.copy())
            for again in range(max(0, number - 7), number + 1):
                counts.add(offsets[again], records[again])
    found += take_all(counts)
    assert found == wanted
    assert counts.progress == whole.progress
    assert sum(found.values()) + counts.progress.totals.future + counts.progress.totals.old == len(records)


def test_a_record_that_is_no_decision_is_skipped() -> None:
    counts = fresh()
    counts.skip(3)
    assert not take_all(counts)
    assert counts.progress.next_offset == 4


def test_no_more_is_taken_at_once_than_a_record_holds() -> None:
    counts = fresh()
    for number in range(ROWS_MAX + 1):
        counts.add(number, decision(0, NOON_MS))
    for number in range(CELLS_MAX):
        counts.add(ROWS_MAX + 1 + number, decision(0, NOON_MS - number * MINUTE_MS))
    counts.add(ROWS_MAX + CELLS_MAX + 1, decision(0, NOON_MS - 100 * MINUTE_MS))
    counts.hand_over()
    assert [len(rows) for rows in counts.take(NOON_MS).values()] == [ROWS_MAX]
    assert counts.progress.next_offset == ROWS_MAX
    assert len(counts.take(NOON_MS)) == CELLS_MAX
    assert counts.progress.next_offset == ROWS_MAX + CELLS_MAX + 1
    assert len(counts.take(NOON_MS)) == 1
    assert len(counts) == 0


def test_a_decision_from_the_future_is_counted_only_as_future() -> None:
    ahead = SETTINGS.future_ms_max
    cells, progress = count_of(decision(1, NOON_MS + ahead), decision(2, NOON_MS + ahead + 1))
    assert sum(cells.values()) == 1
    assert (progress.totals.decisions, progress.totals.future) == (2, 1)
    assert progress.newest_ms == NOON_MS + ahead


def test_a_decision_older_than_all_tiles_is_counted_only_as_old() -> None:
    cells, progress = count_of(decision(1, NOON_MS), decision(2, NOON_MS - KEPT_MS), decision(3, NOON_MS - KEPT_MS - 1))
    assert sum(cells.values()) == 2
    assert (progress.totals.old, progress.totals.late) == (1, 1)
    assert progress.first_ms == NOON_MS - KEPT_MS


def test_a_late_decision_is_counted_in_its_own_minute() -> None:
    late_ms = NOON_MS - 10 * MINUTE_MS
    cells, progress = count_of(decision(1, NOON_MS), decision(2, late_ms + 7))
    assert {cell.minute_ms for cell in cells} == {NOON_MS, late_ms}
    assert progress.totals.late == 1


def test_a_version_without_a_bundle_has_only_scores_and_actions_counted() -> None:
    cells, progress = count_of(decision(1, NOON_MS, version="new"))
    (cell,) = cells
    binning = BINNINGS.binning_of(cell.model)
    assert binning is not None
    assert cell.model.version == "new"
    assert binning.feature_count == 0
    assert progress.totals.unknown == 1
    counts = fresh()
    counts.add(0, decision(1, NOON_MS, version="new"))
    counts.hand_over()
    (rows,) = counts.take(NOON_MS).values()
    found = counted(binning, rows)
    assert (found.payments[0], found.scores[0].sum(), found.actions[0].sum()) == (1, 1, 1)


def test_a_vector_of_another_catalogue_is_not_counted_as_the_bundles() -> None:
    cells, _ = count_of(decision(1, NOON_MS, features=2), decision(2, NOON_MS))
    assert {cell.model.version for cell in cells} == {"m1"}
    assert len(cells) == 2


def test_versions_beyond_the_limit_are_one_until_a_place_is_idle() -> None:
    later = NOON_MS + 61 * MINUTE_MS
    cells, progress = count_of(
        decision(1, NOON_MS, version="m1"),
        decision(2, NOON_MS, version="m2"),
        decision(3, NOON_MS, version="m3"),
        decision(4, later, version="m2"),
        decision(5, later, version="m3"),
        now_ms=later,
    )
    by_time = {(cell.minute_ms, cell.model.version) for cell in cells}
    assert by_time == {(NOON_MS, "m1"), (NOON_MS, "m2"), (NOON_MS, OTHER_VERSION), (later, "m2"), (later, "m3")}
    assert progress.totals.other == 1
    assert set(progress.versions) == {"m2", "m3"}


def test_counts_of_two_binnings_are_never_mixed() -> None:
    (before,), _ = count_of(decision(1, NOON_MS))
    changed = Binnings({"m1": small_binning(7)})
    assert not changed.is_current(before.model)
    assert BINNINGS.is_current(before.model)
    assert changed.binning_of(before.model) is None
