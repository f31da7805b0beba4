"""Looking for the next request a little longer before the process goes to sleep.

A loop with nothing to do sleeps in the kernel, and so does its core. Under load the next request is some microseconds
away, and waking up takes as long as answering: an interrupt to another core, a context switch, on a virtual machine an
exit to its host, and caches that have gone cold. So for a while after each chunk the loop asks its sockets again and
again instead, which it does whenever a callback is due. A worker has its core to itself; what this takes is time in
which it would do nothing else, at most the setting for each chunk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from paywarden.schemas.errors import Misconfigured


class BusyPoll:
    """Keeps the running event loop awake until so long after the last `extend`."""

    def __init__(self, duration_us: int, now_s: Callable[[], float] = time.perf_counter) -> None:
        """With a duration of 0 the loop sleeps as it likes. Raises Misconfigured for less."""
        if duration_us < 0:
            raise Misconfigured(f"[serve] busy_poll_us: wanted at least 0, got {duration_us}")
        self._duration_s, self._now_s = duration_us / 1e6, now_s
        self._until = 0.0
        self._is_polling = False

    def extend(self, now_s: float) -> None:
        """There was work just now."""
        if self._duration_s <= 0.0:
            return
        self._until = now_s + self._duration_s
        if not self._is_polling:
            self._is_polling = True
            asyncio.get_running_loop().call_soon(self._poll)

    def _poll(self) -> None:
        if self._now_s() < self._until:
            asyncio.get_running_loop().call_soon(self._poll)
        else:
            self._is_polling = False
