"""The time of the next try after failures."""

from __future__ import annotations

import math

from paywarden.schemas.retry_times import RetryTimes


def test_each_failure_doubles_the_pause_up_to_the_longest() -> None:
    times = RetryTimes(5.0, 12.0)
    assert times.at == math.inf
    tried = []
    now_s = 100.0
    for _ in range(4):
        times.note_failure(now_s)
        tried.append(times.at - now_s)
        now_s = times.at
    assert tried == [5.0, 10.0, 12.0, 12.0]


def test_a_try_that_is_made_keeps_the_pause_and_a_change_shortens_it() -> None:
    times = RetryTimes(5.0, 600.0)
    times.note_failure(0.0)
    times.clear()
    assert times.at == math.inf
    times.note_failure(0.0)
    assert times.at == 10.0
    times.shorten()
    times.note_failure(0.0)
    assert times.at == 5.0
