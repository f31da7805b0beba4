"""Keeps the open connections of a front, up to a limit, and ends them when the front stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Abortable(Protocol):
    """A connection that can be aborted."""

    def abort(self) -> None:
        """Close at once, and drop what is in flight."""


_Connection = TypeVar("_Connection", bound=Abortable)


class Connections(Generic[_Connection]):
    """The open connections, at most `count_max`. Connections may end while a caller iterates over them."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._open: set[_Connection] = set()
        self._all_closed = asyncio.Event()

    def __iter__(self) -> Iterator[_Connection]:
        return iter(list(self._open))

    def admit(self, connection: _Connection) -> bool:
        """Register a connection until `forget`. Returns False when `count_max` are open."""
        if len(self._open) >= self._count_max:
            return False
        self._open.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        """Remove a connection that has ended."""
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()

    async def end(self, ask: Callable[[_Connection], None], timeout_s: float) -> None:
        """Call `ask` with every connection, so that it closes when it is done. Abort those open after `timeout_s`."""
        for connection in self:
            ask(connection)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wait_closed(), timeout_s)
        for connection in self:
            connection.abort()
        await self._wait_closed()

    async def _wait_closed(self) -> None:
        while self._open:
            self._all_closed.clear()
            await self._all_closed.wait()
