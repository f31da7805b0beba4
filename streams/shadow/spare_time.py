"""Lets a challenger work in the time that all others leave, and in a small share of a core when that is not enough.

    spare time    a thread of its own in SCHED_IDLE: the kernel runs it where nobody else wants a core
    a share       the calling thread, nice 5 in SCHED_BATCH: a third of what a usual process gets, and it takes its core
                  from nobody when it wakes

A process without privileges may not leave SCHED_IDLE again, so each way has a thread. Only one of them works at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

_Answer = TypeVar("_Answer")

# In place of SCHED_IDLE where the kernel has none, or a sandbox forbids it.
_IDLE_NICENESS = 19
_SHARE_NICENESS = 5
_LOW_NICENESS = 10


class SpareTime:
    """Runs calls in a thread that gets only spare time. Threads that a call starts get no more."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "spare-time", initializer=_be_idle)

    def start(self, work: Callable[[], _Answer]) -> Future[_Answer]:
        """Start a call, behind earlier calls."""
        return self._thread.submit(work)


def take_share() -> None:
    """Let the calling thread and its later ones have a share of the cores, which is less than that of others."""
    _be_nice(_SHARE_NICENESS)
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def take_low_priority() -> None:
    """Let the calling thread and its later ones run after others."""
    _be_nice(_LOW_NICENESS)


def _be_idle() -> None:
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    _be_nice(_IDLE_NICENESS)


def _be_nice(niceness: int) -> None:
    """Be at least as nice as that. Its parent may have made it nicer already."""
    os.nice(max(0, niceness - os.nice(0)))
