from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.streams.profiles.progress.watermarks import CopyProgress, RoutedProgress, SourceProgress, progress_key


class Source(SourceProgress):
    """Partitions 0 and 1 of payments."""

    def __init__(self) -> None:
        super().__init__()
        self.assigned([0, 1])

    def after(self, asked_ms: int) -> dict[int, int]:
        """Returns the watermarks after a batch that was asked for at `asked_ms`."""
        self.written(asked_ms)
        return self.complete_to_ms()


@pytest.fixture
def source() -> Source:
    return Source()


def test_a_newly_assigned_partition_has_no_progress(source: Source) -> None:
    assert source.after(1000) == {0: 0, 1: 0}


def test_a_partition_with_more_records_is_complete_to_its_last_one(source: Source) -> None:
    source.consumed(0, 500)
    assert source.after(1000) == {0: 500, 1: 0}


def test_a_partition_at_its_end_is_complete_to_the_time_of_asking(source: Source) -> None:
    source.consumed(0, 500)
    source.reached_end(0)
    source.reached_end(1)
    assert source.after(1000) == {0: 1000, 1: 1000}


def test_an_end_that_was_reached_counts_after_more_records_came(source: Source) -> None:
    """A busy partition has more records nearly always, and is at its end for moments between them."""
    source.reached_end(0)
    source.written(1000)
    source.consumed(0, 500)
    assert source.after(1500) == {0: 1000, 1: 0}


def test_a_record_newer_than_the_time_of_asking_counts(source: Source) -> None:
    source.consumed(0, 1500)
    source.reached_end(0)
    assert source.after(1000)[0] == 1500


def test_a_record_after_the_end_cancels_the_end(source: Source) -> None:
    source.reached_end(0)
    source.consumed(0, 500)
    assert source.after(1000)[0] == 500


def test_timestamps_out_of_order_do_not_move_progress_back(source: Source) -> None:
    source.consumed(0, 500)
    source.consumed(0, 400)
    assert source.after(1000)[0] == 500


def test_a_revoked_partition_has_no_progress(source: Source) -> None:
    source.reached_end(0)
    source.revoked([0])
    assert source.after(1000) == {1: 0}


@pytest.mark.parametrize("late_news", ["end", "record"])
def test_an_end_reported_while_revoked_does_not_count_later(source: Source, late_news: str) -> None:
    """The report of its end may be queued when it is revoked; later records have not been read."""
    source.revoked([0])
    if late_news == "end":
        source.reached_end(0)
    else:
        source.consumed(0, 500)
    assert 0 not in source.after(1000)
    source.assigned([0])
    assert source.after(1000)[0] == 0


def test_a_partition_assigned_again_starts_again(source: Source) -> None:
    source.consumed(0, 500)
    source.reached_end(0)
    source.assigned([0])
    assert source.after(1000)[0] == 0


def test_routed_progress_is_the_minimum_over_partitions_of_payments() -> None:
    routed = RoutedProgress([0, 1])
    routed.heard("card", 3, {0: 500})
    assert routed.news() == {}
    routed.heard("card", 3, {1: 400})
    assert routed.news() == {b"progress:card:3": 400}


def test_news_is_returned_once_and_by_each_owner() -> None:
    routed = RoutedProgress([0])
    routed.heard("card", 0, {0: 500})
    routed.heard("merchant", 0, {0: 300})
    assert routed.news() == {b"progress:card:0": 500, b"progress:merchant:0": 300}
    routed.heard("merchant", 0, {0: 400})
    assert routed.news() == {b"progress:merchant:0": 400}


def test_a_new_owner_of_payments_does_not_move_progress_back() -> None:
    routed = RoutedProgress([0, 1])
    routed.heard("card", 0, {0: 500, 1: 500})
    assert routed.news() == {b"progress:card:0": 500}
    routed.heard("card", 0, {0: 100, 1: 600})
    assert routed.news() == {}


def test_a_revoked_partition_is_forgotten_and_returns_empty() -> None:
    routed = RoutedProgress([0])
    routed.heard("card", 0, {0: 500})
    routed.revoked("card", 0)
    assert routed.news() == {}
    routed.heard("card", 0, {0: 200})
    assert routed.news() == {b"progress:card:0": 200}


def copy_of(*seen: tuple[int, int, int], partitions: int = 2) -> int:
    """Returns complete_to_ms after records of (changelog partition, partition of cards, T); cards have two."""
    progress = CopyProgress(range(partitions), [progress_key("card", 0), progress_key("card", 1)])
    for changelog_partition, card_partition, complete_to_ms in seen:
        progress.saw(changelog_partition, progress_key("card", card_partition), complete_to_ms)
    return progress.complete_to_ms({}, 100_000)


def test_progress_of_a_removed_partition_is_ignored() -> None:
    progress = CopyProgress([0], [progress_key("card", 0)])
    progress.saw(0, b"progress:7", 100)
    progress.saw(0, progress_key("card", 0), 500)
    assert progress.complete_to_ms({}, 100_000) == 500


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 100)), max_size=40))
def test_a_copy_never_claims_more_than_any_partition_has_told(seen: list[tuple[int, int, int]]) -> None:
    complete = copy_of(*seen, partitions=3)
    last = {(changelog, cards): time_ms for changelog, cards, time_ms in seen}
    assert complete == (min(last.values()) if len(last) == 6 else 0)
