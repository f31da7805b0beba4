from __future__ import annotations

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.streams.profiles.guards.dead_letter_budget import COUNT_MIN, RefusalLimit


def test_single_bad_records_never_stop_the_stream() -> None:
    limit = RefusalLimit(window=100, share_max=0.2)
    for _ in range(1000):
        limit.note(10, 2)


def test_a_batch_of_bad_records_stops_the_stream_at_once() -> None:
    with pytest.raises(Misconfigured, match="60 of the last 100 records cannot be used"):
        RefusalLimit(window=1000, share_max=0.2).note(100, 60)


def test_the_field_that_most_records_are_refused_for_is_told_and_no_text_of_a_record() -> None:
    """An operator saw a count, and nothing was on the topic of dead letters yet."""
    reasons = ["event_time_ms: is too old; wanted 2 days"] * 40 + ["country: is empty; wanted a country"] * 20
    with pytest.raises(Misconfigured) as caught:
        RefusalLimit(window=1000, share_max=0.2).note(100, 60, reasons)
    assert "allows, 40 of them in this batch such as `event_time_ms: is too old; wanted 2 days`: " in str(caught.value)
    with pytest.raises(Misconfigured) as caught:
        RefusalLimit(window=1000, share_max=0.2).note(100, 60, ["cannot be decoded: 4111111111111111"] * 60)
    assert "4111" not in str(caught.value)


def test_a_few_bad_records_never_reach_the_minimum_count() -> None:
    RefusalLimit(window=1000, share_max=0.2).note(COUNT_MIN - 1, COUNT_MIN - 1)


def test_old_good_records_do_not_excuse_new_bad_ones() -> None:
    limit = RefusalLimit(window=200, share_max=0.2)
    for _ in range(100):
        limit.note(100, 0)
    limit.note(100, 40)
    with pytest.raises(Misconfigured):
        limit.note(100, 40)


def test_bad_records_in_small_batches_add_up() -> None:
    limit = RefusalLimit(window=500, share_max=0.5)
    for _ in range(COUNT_MIN - 1):
        limit.note(1, 1)
    with pytest.raises(Misconfigured):
        limit.note(1, 1)
