"""The connections of a front, from their first moment to the front's last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Abortable(Protocol):
    """A connection, as far as it matters here."""

    def abort(self) -> None:
        """Close without a word, whatever is in flight."""


_Connection = TypeVar("_Connection", bound=Abortable)


class Connections(Generic[_Connection]):
    """Those that are open, at most so many. Iterated over, they may go meanwhile."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._open: set[_Connection] = set()
        self._all_closed = asyncio.Event()

    def __iter__(self) -> Iterator[_Connection]:
        return iter(list(self._open))

    def admit(self, connection: _Connection) -> bool:
        """Whether one more fits; if so it is looked after until `forget`."""
        if len(self._open) >= self._count_max:
            return False
        self._open.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        """The connection is gone."""
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()

    async def end(self, ask: Callable[[_Connection], None], timeout_s: float) -> None:
        """Ask each of them to close when it is done. What is open after `timeout_s` is cut."""
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
