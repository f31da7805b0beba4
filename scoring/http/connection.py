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
from collections.abc import Callable
from typing import Protocol, cast

from paywarden.scoring.engine.batching.batcher import INVALID_ARGUMENT, TOO_LARGE, Call, Flushable, Refusal
from paywarden.scoring.engine.batching.caller_pauses import CallerPauses
from paywarden.scoring.http import refusals as refused
from paywarden.scoring.http.fast_path import FastPath
from paywarden.scoring.http.heads import Heads, RequestHead
from paywarden.scoring.http.reader import HeldBytes, RequestReader
from paywarden.scoring.http.refusals import HttpRefusal, status_of
from paywarden.scoring.http.send_call import NO_FILE
from paywarden.scoring.http.settings import HttpSettings
from paywarden.scoring.net.caller_names import name_of_certificate
from paywarden.scoring.requests.json_form import JSON, render_error
from paywarden.scoring.requests.trace_context import packed_trace

# The fast path reads a connection itself after this number of usual reads in turn. To begin and to end that costs some
# system calls.
USUAL_READS = 8


class HttpCall(Call):
    """A request in the queue of its connection. It is answered once `status` is not 0."""

    __slots__ = ("body", "content_type", "head", "headers", "status")

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
        # One code for all bodies that are too large: the reader and the batcher both refuse them.
        code = INVALID_ARGUMENT if refusal.code == TOO_LARGE else refusal.code
        self.give(status_of(refusal.code), JSON.content_type, render_error(code, refusal.message, refusal.field))

    def refuse_as(self, refusal: HttpRefusal) -> None:
        """Answer with the front's own refusal."""
        body = render_error(refusal.code, refusal.message, refusal.field)
        self.give(refusal.status, JSON.content_type, body)
        self.headers = refusal.headers

    def give(self, status: int, content_type: str, body: bytes) -> None:
        """Set the whole answer."""
        self.status, self.content_type, self.body = status, content_type, body


class HttpConnectionServer(Protocol):
    """The part of the server that a connection uses."""

    settings: HttpSettings
    loop: asyncio.AbstractEventLoop
    heads: Heads
    arriving: HeldBytes
    pauses: CallerPauses
    draining: bool
    fast_path: FastPath | None

    def admit(self, connection: HttpConnection) -> bool:
        """Register a new connection. Returns False when there are too many."""

    def prove(self, connection: HttpConnection, caller: bytes) -> None:
        """Note that a connection has sent a payment of this caller that may be scored."""

    def forget(self, connection: HttpConnection) -> None:
        """Remove a connection that has ended."""

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
        # Both in order: calls submitted and not yet sent, and calls read but not yet submitted.
        self._calls: deque[HttpCall] = deque()
        self._waiting: deque[HttpCall] = deque()
        self._arrived = 0.0
        # The name of the certificate that the caller has shown.
        self._caller = b""
        self._is_proven = False
        # The caller with whom this connection is held, if it has had only one.
        self._held_by: bytes | None = None
        self._held_callers = server.pauses.held
        self._is_shared = False
        self._is_waiting = False
        # Whether the next request need not ask whether its caller is held.
        self._may_go_on = False
        # Bytes that were received and, from `_unread_at` on, not read: the caller is held, or too much came at once.
        self._unread = b""
        self._unread_at = 0
        # The loop time from which the timeout of the current state counts.
        self._since = 0.0
        self._blocked = False  # the caller does not read answers
        self._reading = True
        self._last = False  # no further request will be taken
        self._ended = False  # the caller has ended his half
        self._lingering = False
        self._going_on = False
        # None: every request goes the ordinary way.
        self._fast_path: FastPath | None = None
        # How many of the last reads the fast path has taken, without another in between.
        self._usual_reads = 0
        self._file = NO_FILE

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._caller = name_of_certificate(transport.get_extra_info("peercert"))
        self._since = self._loop.time()
        self._find_file(transport)
        if not self._server.admit(self):
            self._arrived = time.perf_counter()
            self._reader.refuse(refused.TOO_MANY)
            self._send()
            self._transport.close()

    def _find_file(self, transport: asyncio.BaseTransport) -> None:
        """Let the fast path use this connection's socket if it is a file that one can read and write as it is."""
        plain = transport.get_extra_info("socket")
        fast_path = self._server.fast_path
        if fast_path is not None and plain is not None and transport.get_extra_info("ssl_object") is None:
            self._file, self._fast_path = plain.fileno(), fast_path
            fast_path.begin(self._file, self)

    def data_received(self, data: bytes) -> None:
        if self._fast_path is not None:
            if self._fast_path.holds(self._file):
                self._leave_fast_path()
            elif self._is_taken(self._fast_path, data):
                return
            self._usual_reads = 0
        if self._last:
            return
        if self._unread or (self._held_by is not None and self._is_held()):
            self._leave(self._drop_unread() + data, 0)
            self.flush()
            return
        self._arrived = time.perf_counter()
        self._read(data, 0)

    def _is_taken(self, fast_path: FastPath, data: bytes) -> bool:
        """Let the fast path take a read, if it can."""
        if (
            not self._is_proven
            or self._calls
            or self._waiting
            or self._unread
            or self._last
            or self._blocked
            or self._is_waiting
            or self._held_callers
            or self._reader.arriving is not None
            or (head := fast_path.take(self._file, data)) is None
        ):
            return False
        if head.caller and head.caller != self._held_by:
            self._note_caller(head.caller)
        self._usual_reads += 1
        if self._usual_reads == USUAL_READS and not (self._is_shared or self._transport.is_closing()):
            self._transport.pause_reading()
            if not fast_path.watch(self._file, head.caller):
                self._transport.resume_reading()
        return True

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
        """Leave data[at:] unread. Without room for it, its requests are read, and refused in their order."""
        if at == len(data):
            self._drop_unread()
            return
        if data is not self._unread:
            if not self._server.arriving.take(len(data)):
                self._reader.feed(data, at, wholly=True)
                return
            self._unread = data
        self._unread_at = at

    def _drop_unread(self) -> bytes:
        """Forget the unread bytes, and return them."""
        data, self._unread = self._unread, b""
        self._server.arriving.give_back(len(data))
        return data[self._unread_at :]

    def read_on(self) -> None:
        """Go on after the caller was held: with requests that wait, and with the bytes received meanwhile."""
        self._is_waiting = False
        if self._last or self._transport.is_closing():
            return
        # It is as if the bytes had waited in the socket.
        self._arrived = time.perf_counter()
        self._go_on()

    def is_full(self) -> bool:
        """Whether the reader must leave further requests unread for now."""
        return bool(
            self._waiting
            or self._blocked
            or self._is_waiting
            or len(self._calls) >= self._settings.pipelined_max
            or (self._held_callers and self._held_by is not None and self._is_held())
        )

    def _is_held(self) -> bool:
        """Whether this connection must wait for `read_on`, because its caller is held."""
        if not self._is_waiting:
            assert self._held_by is not None, "only a caller with a name is held"
            self._is_waiting = self._server.pauses.holds(self._held_by, self)
            self._may_go_on = not self._is_waiting
            if self._is_waiting:
                self._pause_reading()
        return self._is_waiting

    def eof_received(self) -> bool:
        """Answer the requests so far, as the caller may still read, then close."""
        self._leave_fast_path()
        if self._unread and not self._last:
            self._reader.feed(self._drop_unread(), 0, wholly=True)
        self._last = self._ended = True
        # TLS cannot keep half of a connection open.
        return bool(self._calls or self._waiting) and self._transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._last = True
        if self._fast_path is not None:
            self._fast_path.end(self._file)
        for call in self._calls:
            call.cancelled = True
        self._calls.clear()
        self._server.arriving.give_back(sum(len(call.payload) for call in self._waiting))
        self._waiting.clear()
        self._drop_unread()
        self._reader.drop()
        self._server.forget(self)

    def pause_writing(self) -> None:
        self._end_watch()
        self._blocked = True
        self._since = self._loop.time()

    def resume_writing(self) -> None:
        self._blocked = False
        self._since = self._loop.time()
        self.flush()

    # The fast path

    def _leave_fast_path(self) -> None:
        """Take the ordinary way with the request that waits in the fast path, if there is one."""
        if self._fast_path is not None and self._fast_path.holds(self._file):
            self.read_again(*self._fast_path.give_back(self._file))

    def read_again(self, data: bytes, arrived: float) -> None:
        """Take the ordinary way with a request that the fast path has given back, and that arrived then."""
        self._end_watch()
        self._arrived = arrived
        self._read(data, 0)

    def begin_call(self, head: RequestHead, payload: bytes, arrived: float) -> HttpCall:
        """Returns a call for a request that the fast path has had scored, in its place among the answers."""
        self._end_watch()
        call = HttpCall(self, head, payload, head.caller, arrived, head.deadline_s)
        self._calls.append(call)
        return call

    def take_over(self, data: bytes, *, ends_watch: bool) -> None:
        """Go on after a read of the fast path that was not usual. `ends_watch`: it reads no further."""
        fast_path = self._fast_path
        assert fast_path is not None, "it has read"
        if not (ends_watch or fast_path.holds(self._file)) and self._is_taken(fast_path, data):
            return
        self._end_watch()
        if data and not self._transport.is_closing():
            self.data_received(data)

    def _end_watch(self) -> None:
        """Let the transport read again, if the fast path does."""
        if self._fast_path is None or not self._fast_path.end_watch(self._file):
            return
        self._usual_reads = 0
        if self._reading and not self._transport.is_closing():
            self._transport.resume_reading()

    def has_unsent(self) -> bool:
        """Whether the transport holds bytes that are not sent."""
        return self._transport.get_write_buffer_size() > 0

    def write(self, data: bytes) -> None:
        """Send bytes after all that the transport holds."""
        if self._fast_path is not None:
            self._fast_path.note_written(self._file)
        self._transport.write(data)

    # Requests and answers, in order

    def take(self, head: RequestHead, body: bytes, deadline_s: float, trace: bytes = b"") -> None:
        """Take a request from the reader: submit it, or let it wait."""
        if self._last:
            return
        self._last = head.closes
        caller = head.caller or self._caller
        if not self._is_proven and head.refusal is None and head.route is not None and head.route.answer is None:
            self._is_proven = True
            self._server.prove(self, caller)
        call = HttpCall(self, head, body, caller, self._arrived, deadline_s, trace and packed_trace(trace))
        if caller and caller != self._held_by:
            self._note_caller(caller)
        may_go_on, self._may_go_on = self._may_go_on, False
        if (
            self._waiting
            or self._blocked
            or len(self._calls) >= self._settings.pipelined_max
            or (self._held_callers and not may_go_on and self._held_by is not None and self._is_held())
        ):
            self._wait(call)
        else:
            self._calls.append(call)
            self._server.submit(call)

    def _note_caller(self, caller: bytes) -> None:
        """Note whose connection this is. A gateway's, with requests of several callers, is never held."""
        if self._held_by is None and not self._is_shared:
            self._held_by = caller
        else:
            self._held_by, self._is_shared = None, True

    def _wait(self, call: HttpCall) -> None:
        if not self._server.arriving.take(len(call.payload)):
            # It keeps its place in the order of answers, but not its body.
            call.payload = b""
            call.refuse_as(refused.NO_ROOM_NOW)
        self._waiting.append(call)

    def flush(self) -> None:
        """Send the answers that are due. Then submit waiting requests, read on, or close."""
        calls = self._calls
        if calls and calls[0].status:
            self._send()
        if self._waiting or self._unread or len(calls) >= self._settings.pipelined_max:
            self._pause_reading()
            if (self._waiting or self._unread) and len(calls) < self._settings.pipelined_max:
                self._go_on_later()
        elif calls:
            if not self._reading:
                self._resume_reading()
        elif self._last:
            self._end()
        else:
            if self._reader.arriving is not None and self._reader.takes_continue():
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not self._reading:
                self._resume_reading()

    def _go_on_later(self) -> None:
        """Go on in the loop's next turn, so that other connections come in between."""
        if not self._blocked and not self._going_on and not self._is_waiting:
            self._going_on = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        if self._held_by is not None and self._is_held():
            return
        while self._waiting and len(self._calls) < self._settings.pipelined_max and not self._blocked:
            call = self._waiting.popleft()
            self._server.arriving.give_back(len(call.payload))
            self._calls.append(call)
            if not call.status:
                self._server.submit(call)
        if self._unread and not self._last and not self.is_full():
            self._read(self._unread, self._unread_at)
        else:
            self.flush()

    def _send(self) -> None:
        """Send the answers that are due. There is at least one."""
        calls, server = self._calls, self._server
        now = time.perf_counter()
        out = []
        while calls and calls[0].status:
            call = calls.popleft()
            closes = call.head.closes
            # At a stop every request that was read is answered, and only the last answer says "close".
            if server.draining and not calls and self._has_read_all():
                closes = self._last = True
            out.append(server.render(call, closes=closes))
            server.count(call, now)
        if not self._blocked:
            self._since = self._loop.time()
        self.write(out[0] if len(out) == 1 else b"".join(out))

    def _has_read_all(self) -> bool:
        """Whether no request is incomplete, unread or not submitted yet."""
        return self._reader.arriving is None and not self._waiting and not self._unread

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not (self._reading or self._blocked or self._is_waiting or self._transport.is_closing()):
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
        settings, since = self._settings, self._since
        if self._fast_path is not None:
            since = max(since, self._fast_path.answered_s(self._file))
        waited_ms = (now - since) * 1000
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
        is_in_fast_path = self._fast_path is not None and self._fast_path.holds(self._file)
        return bool(self._waiting or self._calls or self._unread or is_in_fast_path)

    def finish(self) -> None:
        """Close now if nothing is in flight; otherwise the connection closes after the last answer."""
        self._leave_fast_path()
        if self._has_read_all() and not self._calls and not self._lingering:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, and drop the requests in flight."""
        self._transport.abort()
