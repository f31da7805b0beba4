"""Serves one HTTP connection: reads requests, and writes their answers in the order of the requests.

    read ─ RequestReader ─► take ─► HttpCall ─► MicroBatcher, or answered at once
                                        │
    write ◄─ flush ◄─ queue of calls: the answered ones at its front

1. A call gets its place in the queue when it is read. An early answer waits for the answers before it, and `flush`
   sends all that are due in one write. Example: of requests 1, 2, 3, number 2 is answered first; nothing is sent. When
   number 1 is answered, answers 1 and 2 leave together.
2. At most `pipelined_max` calls are unanswered. A read may bring many more requests, a thousand say. The connection
   looks at no byte of those, and reads nothing more, until all other connections have had their turn. That limits how
   much one connection takes from the others at once.
3. After a request with "Connection: close", and at a stop of the server, the connection closes once all its answers
   are sent (`_end`). Timeouts close it in any state (`check_timeouts`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Protocol, cast

from paywarden.scoring.engine.batching.batcher import INVALID_ARGUMENT, TOO_LARGE, Call, Flushable, Refusal
from paywarden.scoring.http import refusals as refused
from paywarden.scoring.http.heads import Heads, RequestHead
from paywarden.scoring.http.http_reader import HeldBytes, RequestReader
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.http.refusals import HttpRefusal, status_of
from paywarden.scoring.net.caller_names import name_of_certificate
from paywarden.scoring.net.connections import Connections, longer, unread_of
from paywarden.scoring.requests.json_form import JSON, render_error
from paywarden.scoring.requests.trace_context import packed_trace


class HttpCall(Call):
    """A request in the queue of its connection. It is answered once `status` is not 0."""

    __slots__ = ("body", "content_type", "head", "headers", "status")

    refusal_s = 25e-6

    def __init__(
        self,
        connection: Flushable,
        head: RequestHead,
        payload: bytes,
        caller: bytes,
        arrived: float,
        deadline_s: float,
        trace: bytes = b"",
    ) -> None:
        self.trace = trace
        self.connection, self.head, self.payload = connection, head, payload
        self.form = form = head.form
        self.is_batch = head.route is not None and head.route.is_batch
        self.caller, self.arrived, self.deadline = caller, arrived, arrived + deadline_s
        self.cancelled = False
        self.status = 0
        self.body = b""
        self.content_type = form.content_type
        self.headers = b""

    def answer(self, body: bytes) -> None:
        self.body, self.status = body, 200

    def refuse(self, refusal: Refusal) -> None:
        self.status, self.body = _refused(refusal)
        self.content_type = JSON.content_type

    def refuse_as(self, refusal: HttpRefusal) -> None:
        """Answer with the front's own refusal."""
        body = render_error(refusal.code, refusal.message, refusal.field)
        self.give(refusal.status, JSON.content_type, body)
        self.headers = refusal.headers

    def give(self, status: int, content_type: str, body: bytes) -> None:
        """Set the whole answer."""
        self.status, self.content_type, self.body = status, content_type, body


@lru_cache(maxsize=256)
def _refused(refusal: Refusal) -> tuple[int, bytes]:
    """Return the status and the body of a refusal. Under overload the same few leave again and again."""
    # One code for all bodies that are too large: the reader and the batcher both refuse them.
    code = INVALID_ARGUMENT if refusal.code == TOO_LARGE else refusal.code
    return status_of(refusal.code), render_error(code, refusal.message, refusal.field)


class HttpConnectionServer(Protocol):
    """The part of the server that a connection uses."""

    settings: HttpSettings
    loop: asyncio.AbstractEventLoop
    heads: Heads
    arriving: HeldBytes
    draining: bool

    @property
    def connections(self) -> Connections[HttpConnection]:
        """The open connections of the server."""

    def is_overloaded(self) -> bool:
        """Return whether more is asked than can be answered."""

    def is_too_late(self, waited_s: float) -> bool:
        """Return whether a call that has waited unread for `waited_s` is too late."""

    @property
    def render(self) -> Callable[..., bytes]:
        """`render(call, closes=…)` returns an answer as bytes on the wire."""

    def submit(self, call: HttpCall) -> None:
        """Have a call answered, now or later."""

    def count(self, call: HttpCall, now: float) -> None:
        """Count an answer that leaves; `now` is in seconds of `time.perf_counter`."""


class HttpConnection(asyncio.Protocol):
    """One caller's connection. Nothing here blocks, so a slow caller delays nobody else."""

    def __init__(self, server: HttpConnectionServer) -> None:
        self._server = server
        self._settings = server.settings
        self._loop = server.loop
        self._transport: asyncio.Transport
        self._reader = RequestReader(server.heads, server.settings, self, server.arriving)
        # In order: calls submitted and not yet sent.
        self._calls: deque[HttpCall] = deque()
        self._arrived = 0.0
        # The name of the certificate that the caller has shown.
        self._caller = b""
        self._is_proven = False
        # Bytes that were received and, from `_unread_at` on, not read: too much came at once.
        self._unread = b""
        self._unread_at = 0
        # The loop time from which the timeout of the current state counts.
        self._since = 0.0
        self._blocked = False  # the caller does not read answers
        self._reading = True
        self._last = False  # no further request will be taken
        self._ended = False  # the caller has ended its half
        self._lingering = False
        self._going_on = False
        self._is_held = False  # the worker reads nothing for a moment

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._caller = name_of_certificate(transport.get_extra_info("peercert"))
        self._since = self._loop.time()
        if not self._server.connections.admit(self):
            self._arrived = time.perf_counter()
            self._reader.refuse(refused.TOO_MANY)
            self._send()
            self._transport.close()
        elif self._server.is_overloaded():
            # The connection has waited to be accepted, and so has its first call.
            found = unread_of(transport)
            if found.size and self._server.is_too_late(found.silent_s):
                self._arrived = time.perf_counter()
                self.hold()

    def data_received(self, data: bytes) -> None:
        if self._last:
            return
        if not self._unread:
            self._arrived = time.perf_counter()
        if self._unread or self.is_full():
            self._leave(self._drop_unread() + data, 0)
            self.flush()
            return
        if not self._calls and self._reader.arriving is None:
            head = self._server.heads.usual(data)
            if head is not None:
                self.take(head, data[-head.content_length :], head.deadline_s)
                if self._calls[0].status or self._settings.pipelined_max == 1 or self._last:
                    self.flush()
                return
        self._read(data, 0)

    def hold(self) -> None:
        """See Flushable."""
        if not (self._is_held or self._last) and self._server.connections.hold(self, self._arrived):
            self._is_held = True
            self._pause_reading()

    def end_hold(self, held_s: float) -> float | None:
        """Read again. If a call waits that comes too late, hold on as long as the overload lasts, or close."""
        if self._transport.is_closing():
            return None
        found = unread_of(self._transport)
        waits = bool(self._unread or found.size)
        is_late = waits and self._server.is_too_late(found.silent_s)
        if is_late and not found.has_gone and self._server.is_overloaded() and (more_s := longer(held_s)):
            return more_s
        self._is_held = False
        if is_late:
            self._server.connections.note_closed_unread()
            self._transport.abort()
        else:
            self.flush()
        return None

    def _read(self, data: bytes, at: int) -> None:
        """Read requests from data[at:] until as many are unanswered as may be; leave the rest unread."""
        reader = self._reader
        before = reader.arriving
        end = reader.feed(data, at)
        if end < len(data) or self._unread:
            self._leave(data, end)
        if reader.arriving is not None and reader.arriving is not before:
            self._since = self._loop.time()
        self.flush()

    def _leave(self, data: bytes, at: int) -> None:
        """Leave data[at:] unread. Without room for it, the next request is refused, and no further one is taken."""
        if at == len(data):
            self._drop_unread()
            return
        if data is not self._unread:
            if not self._server.arriving.take(len(data)):
                self._reader.refuse(refused.NO_ROOM)
                return
            self._unread = data
        self._unread_at = at

    def _drop_unread(self) -> bytes:
        """Forget the unread bytes, and return them."""
        data, self._unread = self._unread, b""
        self._server.arriving.give_back(len(data))
        return data[self._unread_at :]

    def is_full(self) -> bool:
        """Whether the reader must leave further requests unread for now."""
        return self._blocked or self._is_held or len(self._calls) >= self._settings.pipelined_max

    def eof_received(self) -> bool:
        """Answer the requests so far, as the caller may still read, then close."""
        self._ended = True
        # TLS cannot keep half of a connection open.
        return self._is_busy() and self._transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._last = True
        for call in self._calls:
            call.cancelled = True
        self._calls.clear()
        self._drop_unread()
        self._reader.drop()
        self._server.connections.forget(self)

    def pause_writing(self) -> None:
        self._blocked = True
        self._since = self._loop.time()

    def resume_writing(self) -> None:
        self._blocked = False
        self._since = self._loop.time()
        self.flush()

    # Requests and answers, in order

    def take(self, head: RequestHead, body: bytes, deadline_s: float, trace: bytes = b"") -> None:
        """Take a request from the reader, and submit it."""
        if self._last:
            return
        self._last = head.closes
        caller = head.caller or self._caller
        if not self._is_proven and head.refusal is None and head.route is not None and head.route.answer is None:
            self._is_proven = True
            self._server.connections.prove(self, caller)
        call = HttpCall(self, head, body, caller, self._arrived, deadline_s, trace and packed_trace(trace))
        self._calls.append(call)
        self._server.submit(call)

    def flush(self) -> None:
        """Send the answers that are due. Then read on, or close."""
        calls = self._calls
        if calls and calls[0].status:
            self._send()
        if (self._unread and not self._last) or len(calls) >= self._settings.pipelined_max:
            self._pause_reading()
            if self._unread and not self.is_full():
                self._go_on_later()
        elif calls:
            if not self._reading:
                self._resume_reading()
        elif self._last or self._ended:
            self._end()
        else:
            if self._reader.arriving is not None and self._reader.takes_continue():
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not self._reading:
                self._resume_reading()

    def _go_on_later(self) -> None:
        """Go on in the loop's next turn, so that other connections come in between."""
        if not self._going_on:
            self._going_on = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        if self._unread and not self._last and not self.is_full():
            self._read(self._unread, self._unread_at)
        else:
            self.flush()

    def _send(self) -> None:
        """Send the answers that are due. There is at least one."""
        calls, server, now = self._calls, self._server, time.perf_counter()
        if len(calls) == 1 and not server.draining:
            call = calls.popleft()
            data = server.render(call, closes=call.head.closes)
            server.count(call, now)
        else:
            data = b"".join(self._rendered(now))
        if not self._blocked:
            self._since = self._loop.time()
        self._transport.write(data)

    def _rendered(self, now: float) -> Iterator[bytes]:
        """Yield the answers that are due."""
        calls, server = self._calls, self._server
        while calls and calls[0].status:
            call = calls.popleft()
            closes = call.head.closes
            # At a stop every request that was read is answered, and only the last answer says "close".
            if server.draining and not calls and self._has_read_all():
                closes = self._last = True
            server.count(call, now)
            yield server.render(call, closes=closes)

    def _has_read_all(self) -> bool:
        """Whether no request is incomplete or unread."""
        return self._reader.arriving is None and not self._unread

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not (self._reading or self._blocked or self._is_held or self._transport.is_closing()):
            self._reading = True
            self._transport.resume_reading()

    def _end(self) -> None:
        """Close after the last answer, in a way that lets the caller read it."""
        if self._lingering or self._transport.is_closing():
            return
        if self._ended:
            self._transport.close()
            return
        self._lingering = True
        self._since = self._loop.time()
        # TLS cannot close half of a connection.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    # The server's side

    def check_timeouts(self, now: float) -> None:
        """Close or answer 408 if the current state has lasted too long. `now` is the loop's time."""
        settings, waited_ms = self._settings, (now - self._since) * 1000
        if self._lingering:
            if waited_ms > settings.linger_ms:
                self._transport.abort()
        elif self._blocked:
            if waited_ms > settings.write_timeout_ms:
                self._transport.abort()
        elif self._reader.arriving is not None and not self._unread:
            if waited_ms > settings.request_timeout_ms:
                self._arrived = time.perf_counter()
                self._reader.refuse(refused.TOO_SLOW)
                self.flush()
        elif not self._is_busy() and waited_ms > settings.idle_timeout_ms:
            self._transport.close()

    def _is_busy(self) -> bool:
        """Whether a request is not answered yet."""
        return bool(self._calls or self._unread)

    def finish(self) -> None:
        """Close now if nothing is in flight; otherwise the connection closes after the last answer."""
        if self._has_read_all() and not self._calls and not self._lingering:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, and drop the requests in flight."""
        self._transport.abort()
