"""A thread that loads a bundle leaves most of the core to the calls."""

from __future__ import annotations

import pytest

from paywarden.scoring.server.worker_swap import Rests


@pytest.mark.parametrize(("step_s", "rest_s"), [(0.00001, 0.001), (0.0005, 0.002), (0.003, 0.012), (2.0, 0.05)])
def test_a_rest_is_several_times_as_long_as_the_step_before_it(step_s: float, rest_s: float) -> None:
    now, slept = 7.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    rests = Rests(lambda: now, sleep)
    for _ in range(3):
        now += step_s
        rests.rest()
    assert slept == pytest.approx([rest_s] * 3)
