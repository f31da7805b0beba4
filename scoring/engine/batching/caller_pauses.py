"""Leaves the requests of a caller unread for a moment when many of them have just been refused.

A refusal costs a worker some microseconds, and a caller can send faster than a worker can refuse. So after REFUSALS_MAX
refusals within PAUSE_S, the fronts read no more from that caller's connections for PAUSE_S: his requests wait in the
sockets, and TCP slows him down. That bounds what the noisiest caller takes from the others, whatever the number of his
connections.

    noisy   8 refused ─► held: 2 ms, connections 1, 2, … unread ─► read on ─► 8 refused ─► …
    quiet   not held

It happens only while another caller is there, too. A caller alone is refused at once, however fast he sends.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

_log = logging.getLogger(__name__)

# After a pause come all payments at once that the caller may send by then, and the next ones that are refused. Short
# pauses keep that small (`python -m perf.callers`).
PAUSE_S = 0.002
REFUSALS_MAX = 8
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

    def __init__(self) -> None:
        self.held: dict[bytes, list[Held]] = {}
        """The callers that are held, with their connections. Always the same object."""
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
        """Note that a request was refused for what its caller has sent already; hold him when that is too often."""
        if not self.has_company(now) or caller in self.held:
            return
        count, since = self._refused.get(caller, (0, now))
        if now - since > PAUSE_S:
            count, since = 0, now
        if len(self._refused) >= _COUNTED_MAX:
            self._refused.clear()
        self._refused[caller] = count + 1, since
        if count + 1 >= REFUSALS_MAX:
            del self._refused[caller]
            self.held[caller] = []
            self._tell(caller, now)
            asyncio.get_running_loop().call_later(PAUSE_S, self._end, caller)

    def holds(self, caller: bytes, connection: Held) -> bool:
        """Whether a caller is held now. If so, `connection.read_on` follows. Call it again only after that."""
        held = self.held.get(caller) if self.held else None
        if held is None:
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
        self._let_go(caller, self.held.pop(caller))

    def _let_go(self, caller: bytes, connections: list[Held]) -> None:
        """Let connections go on, one in each turn of the loop: all at once would keep others waiting."""
        if caller in self.held:
            # Those that went on have used up all that the caller may send. The others go before them next time.
            self.held[caller][:0] = connections
        elif connections:
            connections[0].read_on()
            asyncio.get_running_loop().call_soon(self._let_go, caller, connections[1:])
