"""Keeps the event loop polling its sockets for a short time after each chunk, before the process sleeps.

    without   chunk │ sleep … wake up │ chunk
    with      chunk │ poll, poll, poll │ chunk

An idle loop sleeps in the kernel, and its core sleeps too. Under load the next request is some microseconds away, and
waking up takes as long as answering it: an interrupt to another core, a context switch, on a virtual machine an exit to
the host, and cold caches. A callback that is always due makes the loop poll its sockets instead of sleeping.

It is off by default. A worker that polls fills its core from half load on, and other threads of the machine need some
of it: Linux gives it to them for up to 50 ms at once, even if the worker has a real-time priority.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable

from paywarden.schemas.errors import Misconfigured


class BusyPoll:
    """Keeps the running event loop awake for a fixed time after the last `extend`."""

    def __init__(self, duration_us: int, now_s: Callable[[], float] = time.perf_counter) -> None:
        """`duration_us`: microseconds; 0 lets the loop sleep at once. Raises Misconfigured when it is negative."""
        if duration_us < 0:
            raise Misconfigured(f"[serve] busy_poll_us: wanted at least 0, got {duration_us}")
        self._duration_s, self._now_s = duration_us / 1e6, now_s
        self._until = 0.0
        self._is_polling = False
        self._loop: asyncio.AbstractEventLoop
        # A poll takes two thirds of the time if it neither asks for the running loop, which is a system call, nor has
        # the loop copy a context.
        self._context = contextvars.copy_context()
        self._again = self._poll

    def extend(self, now_s: float) -> None:
        """Note that the loop has just worked; `now_s` is in seconds of the same clock."""
        if self._duration_s <= 0.0:
            return
        self._until = now_s + self._duration_s
        if not self._is_polling:
            self._is_polling = True
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._again, context=self._context)

    def _poll(self) -> None:
        if self._now_s() < self._until:
            self._loop.call_soon(self._again, context=self._context)
        else:
            self._is_polling = False
