from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.streams.profiles.watermarks import CopyProgress, RoutedProgress, SourceProgress, progress_key


@pytest.fixture
def source() -> SourceProgress:
    progress = SourceProgress()
    progress.assigned([0, 1])
    return progress


def test_nothing_is_known_of_a_partition_that_was_just_assigned(source: SourceProgress) -> None:
    assert source.complete_to_ms(1000) == {0: 0, 1: 0}


def test_a_partition_with_more_behind_is_complete_to_its_last_record(source: SourceProgress) -> None:
    source.consumed(0, 500)
    assert source.complete_to_ms(1000) == {0: 500, 1: 0}


def test_a_partition_read_to_its_end_is_complete_to_when_that_was_asked(source: SourceProgress) -> None:
    source.consumed(0, 500)
    source.reached_end(0)
    source.reached_end(1)
    assert source.complete_to_ms(1000) == {0: 1000, 1: 1000}


def test_a_record_newer_than_the_question_counts(source: SourceProgress) -> None:
    source.consumed(0, 1500)
    source.reached_end(0)
    assert source.complete_to_ms(1000)[0] == 1500


def test_a_record_after_the_end_takes_the_end_back(source: SourceProgress) -> None:
    source.reached_end(0)
    source.consumed(0, 500)
    assert source.complete_to_ms(1000)[0] == 500


def test_timestamps_out_of_order_do_not_turn_it_back(source: SourceProgress) -> None:
    source.consumed(0, 500)
    source.consumed(0, 400)
    assert source.complete_to_ms(1000)[0] == 500


def test_a_revoked_partition_is_not_spoken_of(source: SourceProgress) -> None:
    source.reached_end(0)
    source.revoked([0])
    assert source.complete_to_ms(1000) == {1: 0}


@pytest.mark.parametrize("late_news", ["end", "record"])
def test_what_is_heard_of_a_revoked_partition_does_not_count_when_it_comes_back(
    source: SourceProgress, late_news: str
) -> None:
    """Its end may be in the queue when it is revoked; what came meanwhile has not been read."""
    source.revoked([0])
    if late_news == "end":
        source.reached_end(0)
    else:
        source.consumed(0, 500)
    assert 0 not in source.complete_to_ms(1000)
    source.assigned([0])
    assert source.complete_to_ms(1000)[0] == 0


def test_a_partition_assigned_anew_starts_anew(source: SourceProgress) -> None:
    source.consumed(0, 500)
    source.reached_end(0)
    source.assigned([0])
    assert source.complete_to_ms(1000)[0] == 0


def test_what_is_sent_on_is_complete_to_the_smallest_moment_of_all_partitions_of_payments() -> None:
    routed = RoutedProgress([0, 1])
    routed.heard("card", 3, {0: 500})
    assert routed.news() == {}
    routed.heard("card", 3, {1: 400})
    assert routed.news() == {b"progress:card:3": 400}


def test_news_is_told_once_and_each_owner_for_itself() -> None:
    routed = RoutedProgress([0])
    routed.heard("card", 0, {0: 500})
    routed.heard("merchant", 0, {0: 300})
    assert routed.news() == {b"progress:card:0": 500, b"progress:merchant:0": 300}
    routed.heard("merchant", 0, {0: 400})
    assert routed.news() == {b"progress:merchant:0": 400}


def test_what_a_new_owner_of_a_payments_partition_says_takes_nothing_back() -> None:
    routed = RoutedProgress([0, 1])
    routed.heard("card", 0, {0: 500, 1: 500})
    assert routed.news() == {b"progress:card:0": 500}
    routed.heard("card", 0, {0: 100, 1: 600})
    assert routed.news() == {}


def test_a_partition_that_has_gone_is_not_spoken_of_and_comes_back_knowing_nothing() -> None:
    routed = RoutedProgress([0])
    routed.heard("card", 0, {0: 500})
    routed.revoked("card", 0)
    assert routed.news() == {}
    routed.heard("card", 0, {0: 200})
    assert routed.news() == {b"progress:card:0": 200}


def copy_of(*seen: tuple[int, int, int], partitions: int = 2) -> int:
    """complete_to_ms after (changelog partition, partition of cards, T) records; there are cards in two."""
    progress = CopyProgress(range(partitions), [progress_key("card", 0), progress_key("card", 1)])
    for changelog_partition, card_partition, complete_to_ms in seen:
        progress.saw(changelog_partition, progress_key("card", card_partition), complete_to_ms)
    return progress.complete_to_ms()


def test_a_copy_that_heard_nothing_is_not_complete() -> None:
    assert copy_of() == 0


def test_a_copy_is_not_complete_before_all_progress_is_heard_in_every_changelog_partition() -> None:
    assert copy_of((0, 0, 500), (1, 0, 500), (0, 1, 500)) == 0
    assert copy_of((0, 0, 500), (1, 0, 500), (0, 1, 500), (1, 1, 300)) == 300


def test_the_newest_word_of_a_partition_counts() -> None:
    assert copy_of((0, 0, 500), (0, 1, 900), (0, 0, 600), partitions=1) == 600


def test_progress_of_a_partition_that_there_is_none_of_any_more_is_passed_over() -> None:
    progress = CopyProgress([0], [progress_key("card", 0)])
    progress.saw(0, b"progress:7", 100)
    progress.saw(0, progress_key("card", 0), 500)
    assert progress.complete_to_ms() == 500


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 100)), max_size=40))
def test_a_copy_never_claims_more_than_any_partition_has_said(seen: list[tuple[int, int, int]]) -> None:
    complete = copy_of(*seen, partitions=3)
    last = {(changelog, cards): time_ms for changelog, cards, time_ms in seen}
    assert complete == (min(last.values()) if len(last) == 6 else 0)
