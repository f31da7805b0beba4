"""Serves one gRPC connection: its streams, its writes, its limits and its end.

    bytes ─► Session ─ on_request, on_data ─► ScoreCall ─► MicroBatcher ─► answers ─ flush ─► one write

1. The session parses a read whole, and every complete call goes to `MicroBatcher`. Nothing is written yet, unless the
   read needs another reply. `flush` writes all answers in one write after this turn of the loop.
2. Back-pressure: the front does not read from a caller that does not read. While a caller's flow-control window stays
   closed, the front refuses its further calls.
3. Frames that ask for nothing (PING, SETTINGS, empty DATA, …) and reset calls use up allowances (token buckets). Time
   and answered calls refill them. A caller without allowance gets ENHANCE_YOUR_CALM and the connection ends.
4. A stop takes two GOAWAY frames. The first excludes no stream, and a PING follows it. When the PING is answered, every
   call sent before the first GOAWAY has arrived, so the second GOAWAY names the last stream. The connection answers the
   calls in flight and closes its sending half. A connection that was idle for long ends in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ssl import SSLObject
from typing import Protocol, cast

from paywarden.scoring.engine.batching.batcher import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAUTHENTICATED, Refusal
from paywarden.scoring.grpc import http2
from paywarden.scoring.grpc import messages as grpc_messages
from paywarden.scoring.grpc.calls import (
    TOO_SLOW,
    Arriving,
    CallKind,
    CallServer,
    HealthStream,
    Method,
    ScoreCall,
    ServiceCall,
)
from paywarden.scoring.grpc.http2 import BrokenConnection, Http2Headers, Http2Session
from paywarden.scoring.net.caller_names import name_of_certificate
from paywarden.scoring.net.connections import Connections, longer, unread_of
from paywarden.scoring.requests.trace_context import packed_trace

_NO_METHOD = Refusal(grpc_messages.UNIMPLEMENTED, "no such method")
_UNAUTHENTICATED = Refusal(UNAUTHENTICATED, "authorization is missing or not valid")
_UNREAD = Refusal(RESOURCE_EXHAUSTED, "answers are not read")
_METHOD_NOT_ALLOWED = grpc_messages.http_error(405)
_WRONG_CONTENT_TYPE = grpc_messages.http_error(415)
# Bytes that are read in one turn of the loop: some 250 calls. A read may bring four times as much, and other
# connections wait for it.
_READ_BYTES = 65_536
# A single call rarely has more.
_ONE_CALL_BYTES = 1024


class _Allowance:
    """A token bucket: how many frames of a kind may still come. Time and answered calls refill it."""

    __slots__ = ("_answered", "_burst", "_filled", "_left", "_per_answer", "_per_second")

    def __init__(self, burst: int, per_second: int, per_answer: int, now: float) -> None:
        self._burst, self._per_second, self._per_answer = burst, per_second, per_answer
        self._left = float(burst)
        self._filled, self._answered = now, 0

    def spend(self, now: Callable[[], float], answered: int) -> bool:
        """Take one token. Returns False when there is none. Reads the clock only when the bucket seems empty."""
        self._left -= 1
        if self._left < 0:
            at = now()
            more = (at - self._filled) * self._per_second + (answered - self._answered) * self._per_answer
            self._left = min(self._left + more, self._burst)
            self._filled, self._answered = at, answered
        return self._left >= 0


class GrpcConnectionServer(CallServer, Protocol):
    """The part of the server that a connection uses."""

    methods: dict[bytes, Method]
    caller_of: Callable[[bytes | None], bytes | None] | None

    @property
    def connections(self) -> Connections[GrpcConnection]:
        """The open connections of the server."""

    def count(self, method: str, code: str) -> None:
        """Count a request that was refused before it became a call."""


class GrpcConnection(asyncio.Protocol):
    """One caller's connection. The methods `on_*` are the session's callbacks."""

    def __init__(self, server: GrpcConnectionServer) -> None:
        self.server = server
        self.session = Http2Session(self, server.settings)
        self.watches: dict[int, HealthStream] = {}
        # About the current read: whether it submitted calls, and whether it needs a write before their answers.
        self.submitted = self.write_now = False
        self.read_at = now = server.now_s()
        self._streams: dict[int, Arriving] = {}
        self._transport: asyncio.Transport
        self._caller = b""  # the name of the certificate that the caller has shown
        self._is_proven = False
        # Bytes that were received and not read: too much came at once.
        self._unread = b""
        self._is_held = False  # the worker reads nothing for a moment
        self._stale_bytes = 0  # that have waited while it was held
        self._is_stale = False  # bytes of the current read have
        self._answered = 0
        self._last_stream_id = 0
        settings = server.settings
        self._idle_frames = _Allowance(
            settings.idle_frames_burst, settings.idle_frames_per_second, settings.idle_frames_per_answer, now
        )
        self._resets = _Allowance(settings.resets_burst, settings.resets_per_second, 1, now)
        # Frames made here and not by the session; they are written before the session's.
        self._own_frames = b""
        self._greeted = False
        self._blocked_since: float | None = None
        self._unread_bytes = 0  # DATA waiting for the caller's window, as of the last flush
        self._unread_since = (0, now)  # their last different count, and since when
        self._used = now  # when the last stream was opened or answered
        self._pinged: float | None = None
        self._draining_since: float | None = None
        self._final = False  # the last GOAWAY is out
        self._over_since: float | None = None  # since then nothing is read or answered

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._caller = name_of_certificate(transport.get_extra_info("peercert"))
        tls: SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._over_since = self.read_at
            self._transport.abort()
        elif not self.server.connections.admit(self):
            self._over_since = self.read_at
            refusal = http2.goaway(0, http2.ENHANCE_YOUR_CALM, "too many connections")
            self._transport.write(http2.EMPTY_SETTINGS + refusal)
            self._transport.close()
        else:
            self.flush()
            if self.server.batcher.is_overloaded:
                # The connection has waited to be accepted, and so have its first calls.
                found = unread_of(transport)
                if found.size and self.server.batcher.is_too_late(found.silent_s):
                    self._note_stale(found.size)
                    self.hold()

    def data_received(self, data: bytes) -> None:
        if self._over_since is not None:
            return
        if self._unread or self._is_held:
            self._unread += data
            return
        self.read_at = self.server.now_s()
        if len(data) > _READ_BYTES:
            data, self._unread = data[:_READ_BYTES], data[_READ_BYTES:]
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)
        self._pinged = None
        self.submitted = self.write_now = False
        self._is_stale, self._stale_bytes = self._stale_bytes > 0, max(0, self._stale_bytes - len(data))
        try:
            self.session.receive(data)
        except BrokenConnection as broken:
            self._fail(broken)
            return
        if self.write_now or not self.submitted:
            self.flush()

    def _read_on(self) -> None:
        """Go on after others had their turn, with the bytes received meanwhile."""
        if self._is_held or self._over_since is not None or self._transport.is_closing():
            return
        data, self._unread = self._unread, b""
        self._resume_reading()
        if data:
            self.data_received(data)

    def _resume_reading(self) -> None:
        if self._blocked_since is None and not (self._is_held or self._unread):
            self._transport.resume_reading()

    def hold(self) -> None:
        """See Flushable."""
        if not self._is_held and self._over_since is None and self.server.connections.hold(self, self.read_at):
            self._is_held = True
            self._transport.pause_reading()

    def end_hold(self, held_s: float) -> float | None:
        """Read again. If a late call waits, hold on as long as the overload lasts, or reset it unread.

        Few bytes are one caller who did not wait. Many are those of a gateway, and all that wait are reset: the age of
        the last of them says nothing of the others.
        """
        if self._over_since is not None or self._transport.is_closing():
            return None
        found = unread_of(self._transport)
        waiting = len(self._unread) + found.size
        are_many = waiting > _ONE_CALL_BYTES
        waited_s = self.server.now_s() - self.read_at if are_many else found.silent_s
        if waiting and self.server.batcher.is_too_late(waited_s):
            is_held_on = self.server.batcher.is_overloaded and not (are_many or found.has_gone)
            if is_held_on and (more_s := longer(held_s)):
                return more_s
            self._note_stale(waiting)
        self._is_held = False
        self._read_on()
        return None

    def _note_stale(self, waiting: int) -> None:
        # TLS gives all records that wait in one read, of fewer bytes than those in the socket.
        self._stale_bytes = 1 if self._transport.get_extra_info("ssl_object") else waiting

    def eof_received(self) -> bool:
        """Close, since a caller who has ended the connection reads no answers."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._over_since = self.server.now_s()
        self._give_up_streams()
        self.server.connections.forget(self)

    def pause_writing(self) -> None:
        self._blocked_since = self.server.now_s()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._blocked_since = None
        if not self._transport.is_closing():
            self._resume_reading()
            self.flush()

    # The session's side

    def on_request(self, stream_id: int, headers: Http2Headers, ended: bool) -> None:
        """See Receiver."""
        self._last_stream_id = stream_id
        if self._final:
            # The last GOAWAY is out. REFUSED_STREAM lets the caller try another server.
            self.session.reset(stream_id, http2.REFUSED_STREAM)
            self.write_now = True
            return
        if self._is_stale:
            # Callers see RESOURCE_EXHAUSTED. Another connection would cost both sides more than the next call.
            self.session.reset(stream_id, http2.ENHANCE_YOUR_CALM)
            self.write_now = True
            self.done(stream_id)
            self.server.count("none", RESOURCE_EXHAUSTED)
            return
        self._used = self.read_at
        field = dict(headers).get
        method = self.server.methods.get(field(b":path", b""))
        timeout = field(b"grpc-timeout")
        timeout_s = None if timeout is None else grpc_messages.parse_timeout_s(timeout)
        encoding = field(b"grpc-encoding", b"identity")
        caller: bytes | None = b""
        if (caller_of := self.server.caller_of) is not None and method is not None and not method.is_open:
            caller = caller_of(field(b"authorization"))
        if field(b":method") != b"POST":
            self._refuse_http(stream_id, _METHOD_NOT_ALLOWED, reset=not ended)
        elif (kind := field(b"content-type")) != b"application/grpc" and not grpc_messages.is_grpc(kind):
            self._refuse_http(stream_id, _WRONG_CONTENT_TYPE, reset=not ended)
        elif method is None:
            self._refuse_early(stream_id, _NO_METHOD, ended)
        elif caller is None:
            self._refuse_early(stream_id, _UNAUTHENTICATED, ended, method.name)
        elif encoding not in grpc_messages.ENCODINGS:
            self._refuse_early(stream_id, grpc_messages.UNKNOWN_ENCODING, ended, method.name)
        elif timeout is not None and timeout_s is None:
            self._refuse_early(stream_id, grpc_messages.BAD_TIMEOUT, ended, method.name)
        elif self._unread_bytes > self.server.settings.unread_bytes_max:
            self._refuse_early(stream_id, _UNREAD, ended, method.name)
        else:
            call: Arriving
            if method.kind is CallKind.SCORE:
                caller = caller or self._caller
                if not self._is_proven:
                    self._is_proven = True
                    self.server.connections.prove(self, caller)
                trace = field(b"traceparent", b"")
                call = ScoreCall(self, stream_id, method, encoding, timeout_s, caller, trace and packed_trace(trace))
            else:
                call = ServiceCall(self, stream_id, method, encoding)
            self._streams[stream_id] = call
            if ended:
                call.on_data(b"", True)

    def on_data(self, stream_id: int, data: bytes, ended: bool) -> None:
        """See Receiver."""
        call = self._streams.get(stream_id)
        if call is None:
            self.on_idle_frame()
        else:
            call.on_data(data, ended)

    def on_gone(self, stream_id: int) -> None:
        """See Receiver."""
        call = self._streams.pop(stream_id, None)
        self.watches.pop(stream_id, None)
        self.write_now = True
        if call is None:
            self.on_idle_frame()
            return
        call.give_up()
        if not self._resets.spend(self.server.now_s, self._answered):
            raise BrokenConnection(http2.ENHANCE_YOUR_CALM, "too many resets")

    def on_idle_frame(self) -> None:
        """See Receiver."""
        self.write_now = True
        if not self._idle_frames.spend(self.server.now_s, self._answered):
            raise BrokenConnection(http2.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def on_greeting(self) -> None:
        """See Receiver."""
        self._greeted = True

    def on_pong(self) -> None:
        """See Receiver."""
        if self._draining_since is not None and not self._final:
            self._final = True
            self._own_frames += http2.goaway(self._last_stream_id, http2.NO_ERROR, "")

    # The calls' side

    def done(self, stream_id: int) -> None:
        """Forget an answered stream."""
        self._streams.pop(stream_id, None)
        if self.watches:
            self.watches.pop(stream_id, None)
        self._answered += 1
        self._used = self.read_at

    def refuse(self, stream_id: int, refusal: Refusal, *, reset: bool) -> None:
        """Answer with a status."""
        self.session.refuse(stream_id, grpc_messages.refusal_headers(refusal), reset=reset)
        self.write_now = True
        self.done(stream_id)

    def flush(self) -> None:
        """Send all answers since the last flush in one write."""
        if self._over_since is not None or self._blocked_since is not None:
            return
        try:
            data = self.session.take()
        except BrokenConnection as broken:
            self._fail(broken)
            return
        if self._own_frames:
            data = self._own_frames + data
            self._own_frames = b""
        if data:
            self._transport.write(data)
        self._unread_bytes = self.session.queued_bytes
        if self.session.closed or (self._final and not self._streams and not self._unread_bytes):
            self._finish()

    # The server's side

    def drain(self) -> None:
        """Take only the calls that are on their way, answer them, close."""
        if self._over_since is not None:
            return
        if not self._greeted:
            # The caller has never spoken HTTP/2, so nobody would answer a PING.
            self._own_frames += http2.goaway(0, http2.NO_ERROR, "")
            self._final = True
            self.flush()
        elif self._draining_since is None:
            self._draining_since = self.server.now_s()
            for watch in list(self.watches.values()):
                watch.finish()
            for call in list(self._streams.values()):
                if isinstance(call, ServiceCall):
                    call.finish()
            self._own_frames += http2.goaway(http2.STREAM_ID_MAX, http2.NO_ERROR, "")
            self.session.ping()
            self.flush()

    def abort(self) -> None:
        self._transport.abort()

    def look(self, now: float) -> None:
        """Send changes to watchers, and end calls and connections that have lasted too long."""
        for watch in list(self.watches.values()):
            watch.look()
        reason = self._overdue(now)
        if reason is not None:
            self._fail(BrokenConnection(http2.ENHANCE_YOUR_CALM, reason), now)
            return
        if self._over_since is None:
            # Most connections of an overload have no call: a look at thousands of them must not delay the others.
            if is_used := bool(self._streams):
                self._look_at_streams(now)
            self._look_at_silence(now)
            if is_used:
                self.flush()

    def _overdue(self, now: float) -> str | None:
        """Returns why the connection must end, or None. Aborts a connection that does not finish closing."""
        settings = self.server.settings
        if self._over_since is not None:
            if (now - self._over_since) * 1000 > settings.linger_ms:
                self._transport.abort()
            return None
        unread_bytes = self._unread_bytes
        if unread_bytes == 0 or unread_bytes != self._unread_since[0]:
            self._unread_since = (unread_bytes, now)
        elif (now - self._unread_since[1]) * 1000 > settings.write_timeout_ms:
            return "answers are not read"
        if self._blocked_since is not None and (now - self._blocked_since) * 1000 > settings.write_timeout_ms:
            self._transport.abort()
        elif not self._greeted and (now - self._used) * 1000 > settings.request_timeout_ms:
            return "no HTTP/2 within the time for it"
        elif self._draining_since is not None and (now - self._draining_since) * 1000 > settings.stop_timeout_ms:
            return "not closed within the time for it"
        return None

    def _look_at_streams(self, now: float) -> None:
        settings = self.server.settings
        for call in list(self._streams.values()):
            limit_ms = settings.request_timeout_ms if isinstance(call, ScoreCall) else settings.idle_timeout_ms
            if call.is_arriving and (now - call.opened) * 1000 > limit_ms:
                call.refuse(TOO_SLOW)

    def _look_at_silence(self, now: float) -> None:
        settings = self.server.settings
        if self._pinged is not None:
            if (now - self._pinged) * 1000 > settings.keepalive_timeout_ms:
                self._transport.abort()
        elif not self._streams and (now - self._used) * 1000 > settings.idle_timeout_ms:
            self.drain()
        elif self._streams and (now - self.read_at) * 1000 > settings.keepalive_ms:
            self._pinged = now
            self.session.ping()

    # Ends

    def _refuse_early(self, stream_id: int, refusal: Refusal, ended: bool, method: str = "none") -> None:
        self.refuse(stream_id, refusal, reset=not ended)
        self.server.count(method, refusal.code)

    def _refuse_http(self, stream_id: int, headers: Http2Headers, *, reset: bool) -> None:
        self.session.refuse(stream_id, headers, reset=reset)
        self.write_now = True
        self.server.count("none", INVALID_ARGUMENT)

    def _fail(self, broken: BrokenConnection, now: float | None = None) -> None:
        """End the connection with a GOAWAY that says why. Calls in flight are dropped."""
        if self._over_since is None:
            self._over_since = self.read_at if now is None else now
            self._give_up_streams()
            self._transport.write(self._own_frames + http2.goaway(self._last_stream_id, broken.code, broken.reason))
            self._half_close()

    def _finish(self) -> None:
        self._over_since = self.server.now_s()
        self._give_up_streams()
        self._half_close()

    def _half_close(self) -> None:
        """Close only the sending half: closing at once would reset the connection and could lose the last frames."""
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _give_up_streams(self) -> None:
        streams, self._streams = self._streams, {}
        self.watches.clear()
        for call in streams.values():
            call.give_up()
