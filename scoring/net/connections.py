"""Accepts the connections of a front, keeps them up to a limit, and ends them when the front stops.

    front full, 4,096 open: proven 4,000 │ never sent a payment 96, oldest first ─► the oldest gives way to a new one
                              proven 4,096                                      ─► the new one is refused

A connection is *proven* when it has sent a payment that may be scored. Connections that say nothing, or only ask for
health, cannot keep others out: the oldest of them is aborted when a new one comes and the front is full.

A caller with a name keeps at most three quarters of the connections. Its further connections work, too, but give way:
it cannot keep other callers out.

Under overload a front *holds* connections: it reads nothing from them for a moment. `hold` paces that and has the
timers. If the worker waits for work all the same, the front ends the oldest holds: nobody waits for an idle worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import random
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

from paywarden.scoring.metrics.worker_metrics import ConnectionMetrics
from paywarden.scoring.net.listeners import Acceptor


class Holdable(Protocol):
    """A connection that can be aborted and held."""

    def abort(self) -> None:
        """Close at once, and drop the requests in flight."""

    def end_hold(self, held_s: float) -> float | None:
        """Read again, or drop what waits if it is late. Returns for how many seconds to hold on instead; None: not."""


_Connection = TypeVar("_Connection", bound=Holdable)

# The beginning of Linux's struct tcp_info: tcpi_state, and tcpi_last_data_recv in milliseconds.
_LAST_DATA_RECEIVED = struct.Struct("@B51xI")
_ESTABLISHED = 1
# How long a connection is held at first. Drawn evenly, so that held callers do not come back together.
HOLD_S = 0.5, 1.0
# A connection that would be held for longer than this is closed.
_HOLD_S_MAX = 4.0
# A front takes at least this long to hold all of its connections, and catches up on at most this much in a turn.
_HOLD_ALL_S, _HOLD_TURN_S = 0.1, 0.01
# While a front holds connections, it looks this often whether the worker waits. Each time it releases 1/32 of them.
_LOOK_S, _RELEASED_PART = 0.001, 32


class Connections(Generic[_Connection]):
    """The open connections, at most `count_max`. Connections may end while a caller iterates over them."""

    def __init__(
        self,
        count_max: int,
        metrics: ConnectionMetrics,
        *,
        is_idle: Callable[[], bool],
        sweep: Callable[[], object],
        sweep_s: float,
    ) -> None:
        """`is_idle` says whether the worker has nothing to do. `sweep` looks at all connections, every `sweep_s`."""
        self._count_max, self._metrics, self._is_idle = count_max, metrics, is_idle
        self._sweep_all, self._sweep_s = sweep, sweep_s
        self.acceptors: list[Acceptor] = []
        """The front adds one for each listener."""
        # None while no connection is open: then the process sleeps.
        self._sweeper: asyncio.TimerHandle | None = None
        self._open: set[_Connection] = set()
        # Those that are not proven, the oldest first.
        self._unproven: dict[_Connection, None] = {}
        # The caller of each proven connection, and how many connections each caller with a name has.
        self._proven: dict[_Connection, bytes] = {}
        self._counts: dict[bytes, int] = {}
        self._proven_max = max(1, count_max * 3 // 4)
        self._all_closed = asyncio.Event()
        # From when the next connection may be held, and the ends of the holds, the oldest hold first.
        self._hold_from = 0.0
        self._held: dict[_Connection, asyncio.TimerHandle] = {}
        self._is_looking = False

    @property
    def count(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def __iter__(self) -> Iterator[_Connection]:
        return iter(list(self._open))

    def close_listeners(self) -> None:
        """Accept nothing more."""
        for acceptor in self.acceptors:
            acceptor.close()

    @property
    def are_coming(self) -> bool:
        """Whether a connection was accepted that is not made yet."""
        return any(acceptor.is_busy for acceptor in self.acceptors)

    def admit(self, connection: _Connection) -> bool:
        """Register a connection until `forget`. Returns False when `count_max` are open and all of them are proven."""
        if len(self._open) >= self._count_max:
            oldest = next(iter(self._unproven), None)
            if oldest is None:
                self._metrics.refused.add(1)
                for acceptor in self.acceptors:
                    acceptor.rest()
                return False
            self._metrics.evicted.add(1)
            self.forget(oldest)
            oldest.abort()
        self._open.add(connection)
        self._unproven[connection] = None
        if self._sweeper is None:
            self._sweep()
        return True

    def _sweep(self) -> None:
        if not self._open:
            self._sweeper = None
            return
        self._sweep_all()
        self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def prove(self, connection: _Connection, caller: bytes) -> None:
        """Note that a connection has sent a payment of this caller that may be scored: it gives way to no other."""
        if caller:
            count = self._counts.get(caller, 0)
            if count >= self._proven_max or connection not in self._unproven:
                return
            self._counts[caller] = count + 1
            self._proven[connection] = caller
        self._unproven.pop(connection, None)

    def forget(self, connection: _Connection) -> None:
        """Remove a connection that has ended."""
        self._open.discard(connection)
        self._unproven.pop(connection, None)
        if (end := self._held.pop(connection, None)) is not None:
            end.cancel()
        caller = self._proven.pop(connection, None)
        if caller is not None:
            self._counts[caller] -= 1
            if self._counts[caller] == 0:
                del self._counts[caller]
        if not self._open:
            self._all_closed.set()

    def hold(self, connection: _Connection, now: float) -> bool:
        """Hold a connection until its `end_hold`, or return False: not all are held at once. `now`: seconds."""
        if now < self._hold_from:
            return False
        self._hold_from = max(self._hold_from, now - _HOLD_TURN_S) + _HOLD_ALL_S / max(1, len(self._open))
        self._hold_for(connection, random.uniform(*HOLD_S))
        if not self._is_looking:
            self._look_later()
        return True

    def _hold_for(self, connection: _Connection, seconds: float) -> None:
        self._held[connection] = asyncio.get_running_loop().call_later(seconds, self._end_hold, connection, seconds)

    def _end_hold(self, connection: _Connection, held_s: float) -> None:
        # While it ends, it may be held again.
        del self._held[connection]
        more_s = connection.end_hold(held_s)
        if more_s is not None:
            self._hold_for(connection, more_s)

    def _look_later(self) -> None:
        self._is_looking = bool(self._held)
        if self._is_looking:
            asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """End some holds if the worker waits for work."""
        if self._is_idle():
            for connection in list(islice(self._held, len(self._held) // _RELEASED_PART + 1)):
                self._held[connection].cancel()
                self._end_hold(connection, math.inf)
        self._look_later()

    def note_closed_unread(self) -> None:
        """Count a connection that is closed with unread bytes."""
        self._metrics.closed_unread.add(1)

    async def end(self, ask: Callable[[_Connection], None], timeout_s: float) -> None:
        """Call `ask` with every connection, so that it closes when it is done. Abort those open after `timeout_s`."""
        for connection in self:
            ask(connection)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wait_closed(), timeout_s)
        for connection in self:
            connection.abort()
        await self._wait_closed()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _wait_closed(self) -> None:
        while self._open:
            self._all_closed.clear()
            await self._all_closed.wait()


def longer(held_s: float) -> float | None:
    """Return for how many seconds to hold a connection that was held for `held_s` seconds before; None to close it."""
    return 2 * held_s if 2 * held_s <= _HOLD_S_MAX else None


class Unread(NamedTuple):
    """The bytes that wait in the socket of a held connection."""

    size: int
    """Bytes."""
    silent_s: float
    """Seconds since the last of them came. Infinite where the system does not say it: Linux says it of TCP alone."""
    has_gone: bool
    """Whether the caller has ended its side. False where the system does not say it."""


def unread_of(transport: asyncio.BaseTransport) -> Unread:
    """Return what waits in a transport's socket; nothing for a socket that is no file."""
    plain = transport.get_extra_info("socket")
    if plain is None:
        return Unread(0, math.inf, has_gone=False)
    size: int = struct.unpack("@i", fcntl.ioctl(plain.fileno(), termios.FIONREAD, bytes(4)))[0]
    if plain.family == socket.AF_UNIX or sys.platform != "linux":
        return Unread(size, math.inf, has_gone=False)
    info = plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
    state, last_ms = _LAST_DATA_RECEIVED.unpack(info)
    return Unread(size, last_ms / 1000, has_gone=state != _ESTABLISHED)
