"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from .answers import BUSY, CLOSED, FAILED, LATE, Decision
from .attempts import BROKEN, REFUSED
from .calls import SHADOW, Call, Core, Met
from .connections import Address, Addresses, literal, resolve
from .errors import PaywardenError, WrongRequest
from .http1 import AnswerError, AnswerReader
from .payments import Payment
from .reconciling import APART_S, DEADLINE_MS
from .settings import ClientSettings, Hooks, Target

Own = TypeVar("Own")
# Turns of the loop in which the news of a socket becomes a connection. Without TLS one was enough; more cost nothing.
_TURNS_OF_CONNECTING = 10
# The loop's timers are up to a millisecond late.
_EARLY_S = 0.001


class _Connection(asyncio.Protocol):
    """One connection. `answer` is the future of the call that has it: an answer, or a failure of calls.py."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._reader: AnswerReader | None = None
        self._answer: asyncio.Future[AnswerReader | str] | None = None
        self.is_stale = False
        self.used_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, answer: asyncio.Future[AnswerReader | str]) -> None:
        self._reader, self._answer = AnswerReader(), answer
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._reader is None:
            # Nobody asked for it, and more of it would keep the loop busy.
            self.close()
            return
        try:
            if self._reader.feed(data):
                self._give(self._reader)
        except AnswerError:
            self._give(FAILED)

    def eof_received(self) -> bool:
        self.is_stale = True
        if self._reader is not None:
            self._give(self._reader if self._reader.end() else BROKEN)
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.is_stale = True
        self._give(BROKEN)

    def _give(self, met: AnswerReader | str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(met)
        self._reader = self._answer = None

    def close(self) -> None:
        self.is_stale = True
        self._transport.abort()


class _NoConnection(Exception):
    """No connection could be made."""


class _Host:
    """The connections to one host."""

    def __init__(self, target: Target, settings: ClientSettings) -> None:
        self.target = target
        self._idle_s = settings.idle_ms / 1000.0
        self._free_count = int(settings.connections_max)
        self._kept: list[_Connection] = []
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self.addresses = Addresses()
        self.addresses.set(literal(target))
        self.is_named = not self.addresses
        self.resolved: asyncio.Future[None] | None = None

    def set_addresses(self, addresses: list[Address]) -> None:
        self.addresses.set(addresses)
        if addresses and self.resolved is not None and not self.resolved.done():
            self.resolved.set_result(None)

    def take_kept(self) -> _Connection | None:
        """Returns a kept connection that can be used."""
        while self._kept:
            kept = self._kept.pop()
            if not kept.is_stale and time.monotonic() - kept.used_s < self._idle_s:
                return kept
            kept.close()
        return None

    def keep(self, connection: _Connection) -> None:
        connection.used_s = now_s = time.monotonic()
        self._kept.append(connection)
        while now_s - self._kept[0].used_s >= self._idle_s:
            self._kept.pop(0).close()

    async def take_place(self, deadline_s: float) -> bool:
        """Wait until one connection more may be in use. Returns False if that is after the deadline."""
        if self._free_count > 0:
            self._free_count -= 1
            return True
        loop = asyncio.get_running_loop()
        place: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(place)
        timer = loop.call_later(max(deadline_s - time.monotonic() - _EARLY_S, 0.0), _set, place, False)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result():
                self.give_place()
            raise
        finally:
            timer.cancel()

    def give_place(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(True)
                return
        self._free_count += 1

    def close(self) -> None:
        kept, self._kept = self._kept, []
        for connection in kept:
            connection.close()


class AsyncClient:
    """Asks the service for decisions. It belongs to the event loop of its first call.

        async with AsyncClient(ClientSettings("https://paywarden:8443", token=key, route_key=route_key)) as client:
            decision = await client.score(payment)

    Raises WrongSettings.
    """

    def __init__(self, settings: ClientSettings, hooks: Hooks | None = None) -> None:
        self._tls = settings.tls()
        self._core = Core(settings, hooks or Hooks())
        self._hosts = [_Host(target, settings) for target in self._core.targets]
        self._tasks: set[asyncio.Task[None]] = set()
        self._resolver: asyncio.Task[None] | None = None
        self._reconciler: asyncio.Task[None] | None = None
        self._wakes_resolver = asyncio.Event()
        self._shadows = 0

    async def score(
        self, payment: Payment, *, deadline_ms: float | None = None, traceparent: str | None = None
    ) -> Decision:
        """Returns the service's decision, or a stand-in, by the deadline. Raises WrongRequest."""
        call = self._core.begin(payment, deadline_ms, traceparent)
        try:
            end = await self._end_of(call)
        except WrongRequest:
            self._core.refused(call)
            raise
        decision = self._core.finish(call, end)
        if decision.stand_in and self._reconciler is None and len(self._core.queue):
            self._reconciler = self._start(self._reconcile())
        return decision

    def shadow(self, payment: Payment, own: Own, *, traceparent: str | None = None) -> Own:
        """Returns `own` at once, and asks the service in the background: `on_shadow` gets both. Never raises."""
        if self._core.is_closed or self._shadows >= self._core.settings.shadow_max:
            self._core.shadowed(own, None, CLOSED if self._core.is_closed else BUSY)
            return own
        self._shadows += 1
        self._start(self._shadow(payment, own, traceparent))
        return own

    def waiting_count(self) -> int:
        """Returns how many stand-ins wait to be asked about again."""
        return len(self._core.queue)

    async def close(self) -> None:
        """Close the connections; `on_reconciled` gets the stand-ins that wait. Calls from now on are stand-ins."""
        self._core.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for host in self._hosts:
            host.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # A call

    async def _end_of(self, call: Call) -> Decision | str:
        while True:
            end = self._core.after(call, await self._attempt(call))
            if not isinstance(end, float):
                return end
            if end:
                await asyncio.sleep(end)

    async def _attempt(self, call: Call) -> Met:
        if self._core.is_closed:
            return CLOSED
        plan = call.plan
        host = self._hosts[plan.host]
        if not await host.take_place(call.deadline_s):
            return BUSY
        connection: _Connection | None = None
        try:
            connection = None if plan.attempts > 1 else host.take_kept()
            if connection is None:
                made = await self._connect(host, call.deadline_s)
                if isinstance(made, str):
                    if made == REFUSED:
                        self._core.avoid(plan.host)
                        self._wakes_resolver.set()
                    return made
                connection = made
            met = await self._exchange(connection, call)
            if isinstance(met, str):
                return met
            if met.says_close:
                self._core.avoid(plan.host)
            if met.keeps and not connection.is_stale and not self._core.is_closed:
                host.keep(connection)
                connection = None
            return met.status, met.body
        finally:
            if connection is not None:
                connection.close()
            host.give_place()

    async def _exchange(self, connection: _Connection, call: Call) -> AnswerReader | str:
        """Returns the whole answer, or a failure of calls.py."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[AnswerReader | str] = loop.create_future()
        try:
            request = self._core.request(call)
        except PaywardenError:
            return FAILED
        timer = loop.call_later(max(call.deadline_s - time.monotonic() - _EARLY_S, 0.0), _set, answer, LATE)
        try:
            connection.ask(request, answer)
            return await answer
        finally:
            timer.cancel()

    async def _connect(self, host: _Host, deadline_s: float) -> _Connection | str:
        """Returns a new connection, or REFUSED or LATE."""
        until_s = min(time.monotonic() + self._core.settings.connect_timeout_ms / 1000.0, deadline_s - _EARLY_S)
        if host.is_named and self._resolver is None:
            for each in self._hosts:
                each.resolved = asyncio.get_running_loop().create_future()
            self._resolver = self._start(self._resolve([each for each in self._hosts if each.is_named]))
        connecting = asyncio.get_running_loop().create_task(self._make(host))
        try:
            await asyncio.wait((connecting,), timeout=max(until_s - time.monotonic(), 0.0))
            # After a time in which the loop stood still, a connection that was made long ago has not been heard of yet.
            # A loop that did not would only be kept from other calls, whose deadlines pass, too.
            turns = _TURNS_OF_CONNECTING if time.monotonic() - until_s > _EARLY_S else 1
            for _ in range(turns):
                if connecting.done():
                    break
                await asyncio.sleep(0)
        finally:
            if not connecting.done():
                connecting.cancel()
                connecting.add_done_callback(_close_late)
        if not connecting.done() or connecting.cancelled():
            return REFUSED if time.monotonic() < deadline_s - _EARLY_S else LATE
        error = connecting.exception()
        if error is None:
            return connecting.result()
        if isinstance(error, (OSError, _NoConnection)):
            return REFUSED
        raise error

    async def _make(self, host: _Host) -> _Connection:
        """Raises OSError, _NoConnection."""
        if not host.addresses and host.resolved is not None:
            await asyncio.shield(host.resolved)
        if not host.addresses:
            raise _NoConnection
        address = host.addresses.take(time.monotonic())
        name, port = cast(tuple[str, int], address[1][:2])
        tls = self._tls if host.target.is_tls else None
        server_name = host.target.host if tls else None
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, name, port, family=address[0], ssl=tls, server_hostname=server_name
            )
        except (OSError, asyncio.CancelledError):
            # Cancelled: it took longer than it may.
            host.addresses.failed(address, time.monotonic())
            raise
        return connection

    # In the background

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _shadow(self, payment: Payment, own: object, traceparent: str | None) -> None:
        call: Call | None = None
        end: Decision | str
        try:
            call = self._core.begin(payment, None, traceparent, SHADOW)
            end = await self._end_of(call)
        except WrongRequest:
            end = "refused"
        except asyncio.CancelledError:
            end = CLOSED
        except Exception:  # noqa: BLE001 - shadow mode changes nothing for the caller
            end = FAILED
        finally:
            self._shadows -= 1
        self._core.shadowed(own, call, end)

    async def _reconcile(self) -> None:
        core = self._core
        while not core.is_closed:
            waiting = core.due()
            if waiting is None:
                due_s = core.next_due_s()
                # A stand-in that comes meanwhile is due in a second at the earliest.
                await asyncio.sleep(1.0 if due_s is None else min(max(due_s - time.monotonic(), 0.0), 1.0))
                continue
            try:
                call = core.begin_again(waiting, DEADLINE_MS)
                end: Decision | str | WrongRequest = await self._end_of(call)
            except WrongRequest as error:
                end = error
            core.reconciled(waiting, call, end)
            await asyncio.sleep(APART_S)

    async def _resolve(self, hosts: list[_Host]) -> None:
        loop = asyncio.get_running_loop()
        while not self._core.is_closed:
            self._wakes_resolver.clear()
            for host in hosts:
                host.set_addresses(await loop.run_in_executor(None, resolve, host.target))
            # At most ten times a second, however many connections fail.
            await asyncio.sleep(0.1)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wakes_resolver.wait(), self._core.settings.resolve_s)


def _set(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _close_late(connecting: asyncio.Task[_Connection]) -> None:
    """Close a connection that was made after nobody waited for it."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()
