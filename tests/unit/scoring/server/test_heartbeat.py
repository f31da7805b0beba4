"""When a worker counts as hung: looks of the supervisor without a beat of the worker's heart."""

from __future__ import annotations

import os

import pytest

from paywarden.scoring.server.heartbeat import LOOK_S, HangDetector, Heartbeats


def looks_until_hung(detector: HangDetector, beats: int, most: int) -> int | None:
    return next((look for look in range(1, most + 1) if detector.look(beats)), None)


def test_a_worker_that_has_beaten_is_hung_after_the_timeout_without_a_beat() -> None:
    detector = HangDetector(3.0)
    detector.begin(7)
    for beats in (8, 9, 9, 9, 10, 11):
        assert not detector.look(beats)
    assert looks_until_hung(detector, 11, 100) == 3.0 / LOOK_S


def test_a_worker_that_starts_has_a_minute_for_its_first_beat() -> None:
    detector = HangDetector(3.0)
    detector.begin(7)
    assert looks_until_hung(detector, 7, 1000) == 60 / LOOK_S
    detector.begin(7)
    assert not detector.look(8)
    assert looks_until_hung(detector, 8, 1000) == 3.0 / LOOK_S


def test_with_0_no_worker_is_taken_for_hung() -> None:
    detector = HangDetector(0)
    assert looks_until_hung(detector, 0, 1000) is None
    assert not detector.look(1)
    assert looks_until_hung(detector, 1, 1000) is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_beats_of_a_forked_process_are_seen() -> None:
    hearts = Heartbeats(2)
    child = os.fork()
    if child == 0:
        hearts.beat(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert [hearts.count(0), hearts.count(1)] == [0, 1]
