"""Leaves the requests of a caller unread for a moment when many of them have just been refused.

A refusal costs a worker some microseconds, and a caller can send faster than a worker can refuse. After REFUSALS_MAX
refusals within PAUSE_S, the fronts read no more from that caller's connections for PAUSE_S: his requests wait in the
sockets, and TCP slows him down.

After the pause his connections stand in line, and a slice of some payments is read in each turn of the loop. The others
wait for the slice and its scoring. A slice is therefore small, although small chunks are dear. The next refusal begins
the next pause. Without another refusal the slices grow, because the caller may send more than small slices hold. After
30 ms, or when nobody stands in it, the line ends and the fronts read as usual.

    noisy   8 refused ─► held 2 ms ─► in line: 2 read ─► turn ─► 2 read ─► turn ─► … 1 refused ─► held 2 ms ─► …
    quiet   not held

That limits how much the noisiest caller takes from the others, with any number of connections. It happens only while
another caller is there, too. A caller alone is refused at once, however fast he sends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

_log = logging.getLogger(__name__)

# Event loops count whole milliseconds, and a longer pause has more payments come after it.
PAUSE_S = 0.002
REFUSALS_MAX = 8
# Payments in a slice, and after how long in line it doubles, up to how many. With two payments a chunk a worker does
# some 25,000 a second.
SLICE, SLICE_MAX = 2, 16
_SLICE_GROWS_S = 0.004
# For how long a line lasts without a refusal. To stand in line costs a request some microseconds.
_LINE_S_MAX = 0.03
# For how long a caller counts as being there after his last request.
_COMPANY_S = 1.0
# How often a line about one caller may be logged.
_TOLD_EVERY_S = 60.0
# The most callers whose refusals are counted. Beyond it counting begins anew.
_COUNTED_MAX = 4096


class Held(Protocol):
    """A connection that can be held."""

    def read_on(self) -> None:
        """Go on: the pause is over."""


class CallerPauses:
    """Knows which callers are held, and their connections. For one event loop."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self.held: dict[bytes, list[Held]] = {}
        """The callers that are held or in line, with the connections that wait. Always the same object."""
        self.slice_payments = SLICE
        """The payments of the slice that is being read, or of the last one."""
        self._now_s = now_s
        # Those in a pause, and since when the others of `held` are in line.
        self._paused: set[bytes] = set()
        self._in_line_since: dict[bytes, float] = {}
        # Those in line for whom `_go` is due.
        self._scheduled: set[bytes] = set()
        # The connection in line that is being read, and how many more of its requests may be.
        self._going: Held | None = None
        self._left = 0
        # Refusals of each caller, and since when they are counted.
        self._refused: dict[bytes, tuple[int, float]] = {}
        # When a line about a caller was logged, and how often he was held since.
        self._told: dict[bytes, tuple[float, int]] = {}
        # When a request came from another caller than the one before it.
        self._changed_at = float("-inf")

    def note(self, now: float) -> None:
        """Note that a request is of another caller than the one before it. `now`: seconds of `time.perf_counter`."""
        self._changed_at = now

    def has_company(self, now: float) -> bool:
        """Whether requests of more than one caller have come within the last second."""
        return now - self._changed_at <= _COMPANY_S

    def note_refused(self, caller: bytes, now: float) -> None:
        """Note that a request was refused because its caller has sent too much; hold him when that is too often."""
        if not self.has_company(now) or caller in self._paused:
            return
        if caller not in self.held:
            count, since = self._refused.get(caller, (0, now))
            if now - since > PAUSE_S:
                count, since = 0, now
            if len(self._refused) >= _COUNTED_MAX:
                self._refused.clear()
            self._refused[caller] = count + 1, since
            if count + 1 < REFUSALS_MAX:
                return
            del self._refused[caller]
            self.held[caller] = []
        # A caller in the line was refused too often a moment ago: once is enough.
        self._paused.add(caller)
        self._tell(caller, now)
        asyncio.get_running_loop().call_later(PAUSE_S, self._end, caller)

    def holds(self, caller: bytes, connection: Held) -> bool:
        """Whether a connection must leave its next request unread. If so, `connection.read_on` follows.

        Ask for each request, and not again between that answer and `read_on`.
        """
        held = self.held.get(caller) if self.held else None
        if held is None:
            return False
        if connection is self._going and self._left > 0 and caller not in self._paused:
            self._left -= 1
            return False
        held.append(connection)
        return True

    def _tell(self, caller: bytes, now: float) -> None:
        told_at, count = self._told.get(caller, (float("-inf"), 0))
        if now - told_at < _TOLD_EVERY_S:
            self._told[caller] = told_at, count + 1
            return
        if len(self._told) >= _COUNTED_MAX:
            self._told.clear()
        self._told[caller] = now, 0
        _log.warning(
            "%s sends more than its share and is refused; left unread for %g ms, %d times since the last such line",
            caller.decode(errors="replace") or "a caller without a name",
            PAUSE_S * 1000,
            count + 1,
        )

    def _end(self, caller: bytes) -> None:
        """End a pause: the connections stand in line."""
        self._paused.discard(caller)
        self._in_line_since[caller] = self._now_s()
        # After the loop's present work: connections that go on by themselves stand in line, too.
        self._go_soon(caller)

    def _go_soon(self, caller: bytes) -> None:
        if caller not in self._scheduled:
            self._scheduled.add(caller)
            asyncio.get_running_loop().call_soon(self._go, caller)

    def _go(self, caller: bytes) -> None:
        """Read a slice from the first connections in line; the next ones follow in the loop's next turn."""
        self._scheduled.discard(caller)
        if caller in self._paused:
            return
        connections, now = self.held[caller], self._now_s()
        if not connections or not self.has_company(now):
            # Nothing waits, or nobody is there who could be kept waiting.
            del self.held[caller], self._in_line_since[caller]
            for connection in connections:
                connection.read_on()
            return
        in_line_s = now - self._in_line_since[caller]
        if in_line_s > _LINE_S_MAX:
            del self.held[caller], self._in_line_since[caller]
            self._let_go(caller, connections)
            return
        doublings = int(in_line_s / _SLICE_GROWS_S)
        self._left = self.slice_payments = min(SLICE_MAX, SLICE << min(doublings, SLICE_MAX))
        try:
            for _ in range(self.slice_payments):
                if not connections or self._left <= 0 or caller in self._paused:
                    break
                self._going = connections.pop(0)
                self._going.read_on()
        finally:
            self._going = None
            if caller not in self._paused:
                self._go_soon(caller)

    def _let_go(self, caller: bytes, connections: list[Held]) -> None:
        """End a line: its connections go on, one in each turn of the loop, as others are there."""
        if caller in self.held:
            self.held[caller][:0] = connections
        elif connections:
            connections[0].read_on()
            asyncio.get_running_loop().call_soon(self._let_go, caller, connections[1:])
