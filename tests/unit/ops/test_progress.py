"""Progress where there is no terminal: few lines, each with how much is left."""

from __future__ import annotations

import pytest

from paywarden.ops.progress import ProgressLines, spoken_duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_less_often_the_longer_the_work_takes() -> None:
    clock, said = Clock(), list[str]()
    lines = ProgressLines("features", 3600, write=said.append, clock=clock)
    for _ in range(3600):
        clock.now += 1
        lines.advance(1)
    lines.finish()
    assert 15 <= len(said) <= 30
    assert said[0] == "features: 5 of 3,600 (0%)", "too early to say how long it takes"
    assert said[-1] == "features: 3,600 done in 1 h 0 min"


@pytest.mark.parametrize(("seconds", "spoken"), [(0.4, "0 s"), (59.4, "59 s"), (72, "1 min 12 s"), (7500, "2 h 5 min")])
def test_durations_are_spoken_in_the_two_largest_units(seconds: float, spoken: str) -> None:
    assert spoken_duration(seconds) == spoken
