"""A challenger's two ways to get a core: what others leave, and a small share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from paywarden.streams.shadow.spare_time import SpareTime, take_low_priority, take_share
from tests.patience import PATIENCE_S


def way() -> tuple[int, int]:
    return os.sched_getscheduler(0), os.nice(0)


def in_a_child(work: Callable[[], bool]) -> bool:
    """Whether `work` holds in a process of its own, whose priority is nobody else's."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def test_spare_time_is_what_others_leave_and_its_threads_have_no_more() -> None:
    def works() -> bool:
        take_share()
        share, nested = way(), list[tuple[int, int]]()

        def start_another() -> None:
            thread = threading.Thread(target=lambda: nested.append(way()))
            thread.start()
            thread.join()

        spare = SpareTime()
        idle = spare.start(way).result(PATIENCE_S)
        spare.start(start_another).result(PATIENCE_S)
        return (
            (idle[0] == os.SCHED_IDLE or idle[1] == 19)
            and nested == [idle]
            # The other way is still there: no process without privileges may leave SCHED_IDLE.
            and way() == share
            and share[0] != os.SCHED_IDLE
        )

    assert in_a_child(works)


@pytest.mark.parametrize(("take", "niceness"), [(take_share, 5), (take_low_priority, 10)])
def test_a_process_that_is_nicer_already_stays_so(take: Callable[[], None], niceness: int) -> None:
    def works() -> bool:
        take()
        first = os.nice(0)
        os.nice(2)
        take()
        return first == max(niceness, first) and os.nice(0) == min(19, first + 2)

    assert in_a_child(works)
