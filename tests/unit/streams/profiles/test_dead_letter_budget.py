from __future__ import annotations

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.streams.profiles.dead_letter_budget import COUNT_MIN, RefusalLimit


def test_single_bad_records_never_stop_the_stream() -> None:
    limit = RefusalLimit(window=100, share_max=0.2)
    for _ in range(1000):
        limit.note(10, 2)


def test_a_batch_of_bad_records_stops_it_at_once() -> None:
    with pytest.raises(Misconfigured, match="60 of the last 100 records cannot be used"):
        RefusalLimit(window=1000, share_max=0.2).note(100, 60)


def test_a_few_bad_records_are_not_a_share_of_anything() -> None:
    RefusalLimit(window=1000, share_max=0.2).note(COUNT_MIN - 1, COUNT_MIN - 1)


def test_what_was_good_long_ago_does_not_count_for_what_is_bad_now() -> None:
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
