"""The HTTP/1.1 front of a scoring worker: bytes from a socket in, one synchronous call, bytes out.

    socket ─ data_received ─► httptools ─► _Request ─► HttpServer.respond ─► Scorer ─► answer ─ one write

1. A `_Connection` feeds what arrives to the parser. A request is answered as soon as its last byte is
   there, in the same call; the answers of all requests that came in one read leave in one write.
2. No connection can hold up the others: a request has a time in which it must be complete, a caller who
   does not read his answers is not read from, and after `pipelined_max` answers the others get their turn
   (what is left waits, in order). One timer per server looks at all connections; none has its own.
3. Nothing grows without a limit: connections, head, headers, body, batch, answers not yet read.
4. A request that breaks the protocol is answered and the connection closed, since where the next request
   begins is not known. A request that is merely wrong (route, content type, values) keeps the connection.
5. To close, the sending half goes first and what still arrives is thrown away for `linger_ms`: closing at
   once would make the kernel send a reset, which can take the answer from under the caller.

An error is JSON whatever the request was: {"error": {"code": "invalid_argument", "field": "amount_minor",
"message": "…"}}; `field` is empty where none is to blame.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple, Protocol, cast

import httptools

from schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring import wire
from scoring.metrics import CONTENT_TYPE as METRICS_TEXT
from scoring.metrics import HttpMetrics
from scoring.wire import DeadlineExceeded, Overloaded, RequestLimits

_log = logging.getLogger(__name__)
_JSON = wire.JSON.content_type


class Scorer(Protocol):
    """What answers requests. Called from the event loop, so every microsecond of it delays all callers.

    May raise `Overloaded` (429), `DeadlineExceeded` (504), any other TemporaryFailure (503) and InvalidEvent
    (400). Anything else is a bug: answered 500, logged, and the worker serves on.
    """

    def score(self, request: ScoreRequest, now_ms: int) -> ScoreResponse:
        """The answer to a validated request; its decision is in the outbox when this returns."""

    def score_batch(self, requests: Sequence[ScoreRequest], now_ms: int) -> list[ScoreResponse]:
        """One answer for each request, in order."""

    def readiness(self) -> list[str]:
        """Empty when ready to score well; else one line for each thing that is missing."""


@dataclass(frozen=True)
class HttpSettings:
    """Where to listen, and every limit of the HTTP front."""

    host: str = "127.0.0.1"
    # 0 takes a free port.
    port: int = 8080
    backlog: int = 1024
    # Per worker. Each may hold a body, so this times `body_bytes_max` bounds the memory.
    connections_max: int = 1024
    # 256 requests of a batch, each a few times larger than usual.
    body_bytes_max: int = 512 * 1024
    head_bytes_max: int = 16 * 1024
    header_count_max: int = 64
    # Answers given to one connection before the others get their turn: about a millisecond.
    pipelined_max: int = 32
    # Longer than a gateway keeps a connection unused (60 s is usual), so that it is the gateway that closes.
    idle_timeout_ms: int = 75_000
    # From a request's first byte to its last.
    request_timeout_ms: int = 5_000
    # How long a caller may leave answers unread.
    write_timeout_ms: int = 5_000
    linger_ms: int = 1_000
    # Between "not ready" on /readyz and the end of accepting, so that a gateway can take the worker out first.
    drain_delay_ms: int = 0
    # What is in flight at a stop may take this long.
    stop_timeout_ms: int = 10_000


def reserve_port(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen: it holds the port for workers that `open_listener` it later.

    For the parent of the workers, who keeps it until they are gone; its `getsockname()[1]` is the port that
    port 0 found. Raises Misconfigured when the port is taken. SO_REUSEPORT alone would let a second server of
    the same user share the port unseen, and each would get half of the connections.
    """
    with _bound(host, port, reuse_port=False) as probe:
        free_port = probe.getsockname()[1]
    held = _bound(host, free_port, reuse_port=True)
    # Bound with SO_REUSEADDR it may follow a server that has just ended; without it, from now on, it is in
    # the way of another parent's probe.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return held


def open_listener(host: str, port: int, *, backlog: int) -> socket.socket:
    """A listening socket on a reserved port; the kernel spreads connections over all that listen on it."""
    listener = _bound(host, port, reuse_port=True)
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


def _bound(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return bound


class _Refusal(NamedTuple):
    """Why a request gets no answer of a route. `closes`: the connection cannot be used any further."""

    status: int
    code: str
    message: str
    closes: bool = False
    headers: bytes = b""


class _RefusedError(Exception):
    """Raised in a callback: the only way to stop the parser."""

    def __init__(self, refusal: _Refusal) -> None:
        self.refusal = refusal


_MALFORMED = _Refusal(400, "invalid_argument", "not an HTTP/1.1 request", closes=True)
_NO_HOST = _Refusal(400, "invalid_argument", "exactly one Host header is needed", closes=True)
_WRONG_VERSION = _Refusal(505, "unimplemented", "HTTP/1.1 is spoken here", closes=True)
_NO_TUNNEL = _Refusal(405, "unimplemented", "no tunnels", closes=True, headers=b"Allow: GET, HEAD, POST\r\n")
_EXPECTATION = _Refusal(417, "invalid_argument", "the only expectation met is 100-continue", closes=True)
_NOT_FOUND = _Refusal(404, "not_found", "no such route")
_CONTENT_TYPE = _Refusal(
    415, "invalid_argument", f"Content-Type must be {wire.PROTOBUF.content_type} or {_JSON}, not compressed"
)
_TOO_SLOW = _Refusal(408, "deadline_exceeded", "the request took too long to arrive", closes=True)
_TOO_MANY = _Refusal(503, "unavailable", "too many connections", closes=True)

Answer = tuple[int, str, bytes]


class _Route(NamedTuple):
    name: str
    methods: tuple[bytes, ...]
    answer: Callable[[_Request], Answer]

    @property
    def wrong_method(self) -> _Refusal:
        allow = b", ".join(self.methods)
        return _Refusal(405, "unimplemented", f"use {allow.decode()}", headers=b"Allow: " + allow + b"\r\n")


# Headers that matter here; of the others only the size does.
_KEPT_HEADERS = frozenset(
    b"host expect connection content-type content-length content-encoding transfer-encoding".split()
)


class _Request:
    """One request while it arrives and until it is answered."""

    def __init__(self) -> None:
        self.target = b""
        self.method = b""
        self.version = "1.1"
        self.headers: dict[bytes, bytes] = {}
        self.header_count = 0
        self.head_bytes = 0
        self.head_done = False
        # Bytes that came after the read the request began in, overhead of chunks included.
        self.wire_bytes = 0
        self.body: bytes | bytearray = b""
        self.route: _Route | None = None
        self.format: wire.Format | None = None
        self.refusal: _Refusal | None = None
        self.close = False
        self.continue_due = False
        self.upgrades = False
        self.arrived = 0.0

    def head_without_upgrade(self) -> bytes:
        """The head again, as if the caller had not asked for another protocol."""
        lines = [b"%b %b HTTP/1.1" % (self.method, self.target)]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers.items() if name != b"connection"]
        lines += [b"connection: close"] if self.close else []
        return b"\r\n".join(lines) + b"\r\n\r\n"


class _Connection(asyncio.Protocol):
    """One caller. `on_*` are the parser's callbacks; the only way to stop it is to raise in one."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._settings = server.settings
        self._loop = server.loop
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._request: _Request | None = None
        # Complete but not answered, because this connection has had its turn or does not read.
        self._waiting: deque[_Request] = deque()
        self._out: list[bytes] = []
        self._turn = 0
        self._arrived = 0.0
        # Loop time of the last event that the timeout of the current state counts from.
        self._since = 0.0
        self._blocked = False  # the caller does not read his answers
        self._reading = True
        self._last = False  # no request after those already read is answered
        self._lingering = False
        self._going_on = False

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._since = self._loop.time()
        if not self._server.admit(self):
            self._refuse(_TOO_MANY)
            self._flush()
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._last:
            return
        self._arrived = time.perf_counter()
        self._turn = 0
        unfinished = self._request
        try:
            self._feed(data)
        except _RefusedError as refused:
            self._refuse(refused.refusal)
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _RefusedError):
                raise
            self._refuse(error.__context__.refusal)
        except httptools.HttpParserError:
            # After a request that closes, what follows is of no interest, whatever it is.
            if not self._last:
                self._refuse(_MALFORMED)
        self._after_turn()

        if unfinished is not None and unfinished is self._request:
            self._check_wire_bytes(unfinished, len(data))

    def eof_received(self) -> bool:
        """Close: nothing waits, since the end is not read before all that was read is answered."""
        self._last = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._last = True
        self._waiting.clear()
        self._server.forget(self)

    def pause_writing(self) -> None:
        self._blocked = True
        self._since = self._loop.time()

    def resume_writing(self) -> None:
        self._blocked = False
        self._since = self._loop.time()
        self._after_turn()

    # The parser's side

    def on_message_begin(self) -> None:
        self._request = _Request()
        self._since = self._loop.time()

    def on_url(self, part: bytes) -> None:
        request = self._current
        request.target += part
        self._count_head(request, len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._current
        request.header_count += 1
        self._count_head(request, len(name) + len(value) + 4)
        lowered = name.lower()
        # A field after a chunked body comes too late to change anything: `decide` has been.
        if lowered in _KEPT_HEADERS:
            earlier = request.headers.get(lowered)
            request.headers[lowered] = value if earlier is None else earlier + b", " + value

    def on_headers_complete(self) -> None:
        request = self._current
        parser = self._parser
        request.head_done = True
        request.method = parser.get_method()
        request.close = not parser.should_keep_alive()
        if request.close or b"connection" in request.headers:
            request.version = parser.get_http_version()
            request.upgrades = parser.should_upgrade()
        self._server.decide(request)
        expects = b"expect" in request.headers
        if request.refusal is not None and (request.refusal.closes or expects):
            # A caller who waits for 100 may send the body after this answer, or not: the end is not known.
            raise _RefusedError(request.refusal._replace(closes=True))
        request.continue_due = expects and request.version == "1.1"

    def on_body(self, part: bytes) -> None:
        request = self._current
        request.continue_due = False
        if len(request.body) + len(part) > self._settings.body_bytes_max:
            raise _RefusedError(self._server.too_large)
        if not request.body:
            request.body = part
        else:
            if isinstance(request.body, bytes):
                # Appending to bytes copies all of it every time: a body of tiny chunks would cost seconds.
                request.body = bytearray(request.body)
            request.body += part

    def on_message_complete(self) -> None:
        request = self._current
        if request.upgrades:
            return  # the parser believes the rest is another protocol; see _feed
        self._request = None
        self._complete(request)

    @property
    def _current(self) -> _Request:
        assert self._request is not None, "the parser begins every message"
        return self._request

    def _feed(self, data: bytes) -> None:
        """Parse; a wish to upgrade (to h2c: Java's client asks on its first request) is ignored, as one may.

        The parser takes no body after such a head, so the head is given once more to a new one, without it.
        """
        rest = self._parse(data)
        if rest is None or self._last:
            return
        head = self._current.head_without_upgrade()
        self._parser = httptools.HttpRequestParser(self)
        if self._parse(head + rest) is not None:
            raise _RefusedError(_MALFORMED)  # once per connection: every time would cost a copy of `data`

    def _parse(self, data: bytes) -> bytes | None:
        """None, or what follows a head that asks for an upgrade."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return data[upgrade.args[0] :]
        return None

    def _count_head(self, request: _Request, size: int) -> None:
        request.head_bytes += size
        if request.head_bytes > self._settings.head_bytes_max or request.header_count > self._settings.header_count_max:
            raise _RefusedError(self._server.head_too_large)

    def _check_wire_bytes(self, request: _Request, size: int) -> None:
        """A header without end, or a chunk's, is collected in the parser, where callbacks do not see it grow."""
        request.wire_bytes += size
        settings = self._settings
        if not request.head_done and request.wire_bytes > settings.head_bytes_max:
            self._refuse(self._server.head_too_large)
            self._after_turn()
        elif request.wire_bytes > settings.head_bytes_max + 2 * settings.body_bytes_max:
            self._refuse(self._server.too_large)
            self._after_turn()

    # Answering, in order

    def _refuse(self, refusal: _Refusal) -> None:
        """Give up on what is arriving. The answer still comes after those of the requests before it."""
        request = self._request or _Request()
        self._request = None
        request.refusal = refusal
        self._complete(request)

    def _complete(self, request: _Request) -> None:
        if self._last:
            return
        request.arrived = self._arrived
        if request.refusal is not None and request.refusal.closes:
            request.close = True
        self._last = request.close
        # On a stop, all that was read is answered, and only the last answer says "close".
        wait = self._waiting or self._blocked or self._server.draining
        if wait or self._turn >= self._settings.pipelined_max:
            self._waiting.append(request)
        else:
            self._answer(request)

    def _answer(self, request: _Request) -> None:
        self._turn += 1
        self._since = self._loop.time()
        if self._server.draining and not self._waiting and self._request is None:
            request.close = self._last = True
        self._out.append(self._server.respond(request))

    def _go_on(self) -> None:
        self._going_on = False
        self._turn = 0
        while self._waiting and self._turn < self._settings.pipelined_max and not self._blocked:
            self._answer(self._waiting.popleft())
        self._after_turn()

    def _after_turn(self) -> None:
        """Send what is answered; then go on with what waits, or read on, or close."""
        if self._request is not None and self._request.continue_due and not self._waiting:
            self._request.continue_due = False
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._flush()
        if self._waiting:
            self._pause_reading()
            if not self._blocked and not self._going_on:
                self._going_on = True
                self._loop.call_soon(self._go_on)
        elif self._last:
            self._linger()
        elif not self._blocked and not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def _flush(self) -> None:
        if self._out:
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            self._out.clear()

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _linger(self) -> None:
        if self._lingering or self._transport.is_closing():
            return
        self._lingering = True
        self._since = self._loop.time()
        self._transport.write_eof()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    # The server's side

    def check_timeouts(self, now: float) -> None:
        """Close, or answer 408, when the current state has lasted too long. `now` is the loop's time."""
        settings = self._settings
        waited_ms = (now - self._since) * 1000
        if self._lingering:
            if waited_ms > settings.linger_ms:
                self._transport.abort()
        elif self._blocked:
            if waited_ms > settings.write_timeout_ms:
                self._transport.abort()
        elif self._request is not None:
            if waited_ms > settings.request_timeout_ms:
                self._arrived = time.perf_counter()
                self._refuse(_TOO_SLOW)
                self._after_turn()
        elif not self._waiting and waited_ms > settings.idle_timeout_ms:
            self._transport.close()

    def finish(self) -> None:
        """Close now if nothing is in flight; otherwise the last answer does."""
        if self._request is None and not self._waiting and not self._lingering:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


class HttpServer:
    """Serves one worker's listener. `metrics_text` is what /metrics shows; `currencies` the codes accepted."""

    def __init__(
        self,
        scorer: Scorer,
        settings: HttpSettings,
        *,
        limits: RequestLimits,
        currencies: frozenset[str],
        metrics: HttpMetrics,
        metrics_text: Callable[[], bytes],
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.settings = settings
        self.draining = False
        self.loop: asyncio.AbstractEventLoop
        self.too_large = _Refusal(
            413, "invalid_argument", f"body must be at most {settings.body_bytes_max} bytes", closes=True
        )
        self.head_too_large = _Refusal(
            431,
            "invalid_argument",
            f"at most {settings.header_count_max} headers and {settings.head_bytes_max} bytes of head",
            closes=True,
        )
        self._scorer = scorer
        self._limits = limits
        self._currencies = currencies
        self._metrics = metrics
        self._metrics_text = metrics_text
        self._now_ms = now_ms
        reads = (b"GET", b"HEAD")
        self._routes = {
            b"/v1/score": _Route("score", (b"POST",), self._score),
            b"/v1/score:batch": _Route("score_batch", (b"POST",), self._score_batch),
            b"/livez": _Route("livez", reads, self._livez),
            b"/readyz": _Route("readyz", reads, self._readyz),
            b"/metrics": _Route("metrics", reads, self._render_metrics),
        }
        self._connections: set[_Connection] = set()
        self._all_closed = asyncio.Event()
        self._heads: dict[tuple[int, str], bytes] = {}
        self._date = b""
        self._bugs_logged: set[tuple[str, str, int]] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept connections from `listener` (see `open_listener`), which now belongs to this server."""
        self.loop = asyncio.get_running_loop()
        self._sweep()
        self._server = await self.loop.create_server(
            lambda: _Connection(self), sock=listener, backlog=self.settings.backlog
        )

    async def stop(self) -> None:
        """Answer what is in flight, then close. Connections still open after `stop_timeout_ms` are cut."""
        assert self._server is not None, "start first"
        self.draining = True
        if self.settings.drain_delay_ms:
            await asyncio.sleep(self.settings.drain_delay_ms / 1000)
        self._server.close()
        for connection in list(self._connections):
            connection.finish()
        try:
            await asyncio.wait_for(self._wait_closed(), self.settings.stop_timeout_ms / 1000)
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            await self._wait_closed()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _wait_closed(self) -> None:
        while self._connections:
            self._all_closed.clear()
            await self._all_closed.wait()

    def _sweep(self) -> None:
        settings = self.settings
        now = self.loop.time()
        for connection in list(self._connections):
            connection.check_timeouts(now)
        # HTTP wants a Date in every answer; its second is computed here, not there.
        self._date = b"\r\nDate: " + formatdate(self._now_ms() / 1000, usegmt=True).encode() + b"\r\n"
        shortest_ms = min(
            *(settings.idle_timeout_ms, settings.request_timeout_ms),
            *(settings.write_timeout_ms, settings.linger_ms, 2_000),
        )
        self._sweeper = self.loop.call_later(shortest_ms / 4000, self._sweep)

    # For connections

    def admit(self, connection: _Connection) -> bool:
        """Whether one more connection fits; if so it is looked after until `forget`."""
        if len(self._connections) >= self.settings.connections_max:
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        """The connection is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()

    def decide(self, request: _Request) -> None:
        """Fill in `route` and `format`, or `refusal`, from the head."""
        headers = request.headers
        request.route = self._routes.get(request.target) or self._find_route(request.target)
        request.refusal = self._protocol_refusal(request)
        if request.refusal is not None:
            return
        route = request.route
        if route is None:
            request.refusal = _NOT_FOUND
        elif request.method not in route.methods:
            request.refusal = route.wrong_method
        if int(headers.get(b"content-length", b"0")) > self.settings.body_bytes_max:
            request.refusal = self.too_large
        if request.refusal is None and request.method == b"POST":
            request.format = wire.format_of(headers.get(b"content-type", b""))
            if request.format is None or headers.get(b"content-encoding", b"identity") != b"identity":
                request.refusal = _CONTENT_TYPE

    def respond(self, request: _Request) -> bytes:
        """The whole answer. Never raises: this is the top of a request."""
        refusal = request.refusal
        if refusal is not None:
            status, content_type = refusal.status, _JSON
            body = wire.render_error(refusal.code, refusal.message)
        else:
            assert request.route is not None
            status, content_type, body = self._answer_of(request.route, request)
        self._count(request, status)
        head = self._heads.get((status, content_type)) or self._make_head(status, content_type)
        connection = (
            b"Connection: close\r\n"
            if request.close
            else (b"Connection: keep-alive\r\n" if request.version == "1.0" else b"")
        )
        headers = refusal.headers + connection if refusal is not None else connection
        shown = b"" if request.method == b"HEAD" else body
        return b"%b%d%b%b\r\n%b" % (head, len(body), self._date, headers, shown)

    def _find_route(self, target: bytes) -> _Route | None:
        """For targets with a query, or in the absolute form that proxies may send."""
        try:
            return self._routes.get(httptools.parse_url(target).path or b"")
        except httptools.HttpParserInvalidURLError:
            return None

    def _protocol_refusal(self, request: _Request) -> _Refusal | None:
        host = request.headers.get(b"host")
        if request.version not in ("1.1", "1.0"):
            return _WRONG_VERSION
        if (host is None and request.version == "1.1") or (host is not None and b"," in host):
            return _NO_HOST
        if request.method == b"CONNECT":
            return _NO_TUNNEL
        if request.headers.get(b"expect", b"100-continue").lower() != b"100-continue":
            return _EXPECTATION
        return None

    def _answer_of(self, route: _Route, request: _Request) -> Answer:
        try:
            return route.answer(request)
        except InvalidEvent as error:
            return _error(400, "invalid_argument", wire.message_of(error), error.field)
        except Overloaded as error:
            return _error(429, "resource_exhausted", str(error))
        except DeadlineExceeded as error:
            return _error(504, "deadline_exceeded", str(error))
        except TemporaryFailure as error:
            return _error(503, "unavailable", str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one request must not end the worker for all others
            self._log_bug(route, error)
            return _error(500, "internal", "internal error")

    def _log_bug(self, route: _Route, error: Exception) -> None:
        """Once per place it is raised at, without the error's text: that may quote the payload."""
        frames = traceback.extract_tb(error.__traceback__)
        place = (type(error).__name__, frames[-1].filename, frames[-1].lineno or 0)
        if place not in self._bugs_logged:
            self._bugs_logged.add(place)
            trace = "".join(traceback.format_list(frames))
            _log.error("bug in route %s: %s at\n%s", route.name, type(error).__name__, trace)

    def _count(self, request: _Request, status: int) -> None:
        name = request.route.name if request.route is not None else "none"
        self._metrics.requests[name, status].add(1)
        seconds = self._metrics.seconds.get(name)
        if seconds is not None:
            seconds.observe(time.perf_counter() - request.arrived)

    def _make_head(self, status: int, content_type: str) -> bytes:
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}\r\nContent-Length: "
        return self._heads.setdefault((status, content_type), head.encode())

    # Routes

    def _score(self, request: _Request) -> Answer:
        form = request.format
        assert form is not None
        now_ms = self._now_ms()
        payment = form.parse(bytes(request.body))
        wire.validate(payment, now_ms=now_ms, limits=self._limits, currencies=self._currencies)
        return 200, form.content_type, form.render(self._scorer.score(payment, now_ms))

    def _score_batch(self, request: _Request) -> Answer:
        form = request.format
        assert form is not None
        now_ms = self._now_ms()
        payments = form.parse_batch(bytes(request.body), self._limits.batch_size_max)
        wire.validate_batch(payments, now_ms=now_ms, limits=self._limits, currencies=self._currencies)
        responses = self._scorer.score_batch(payments, now_ms)
        assert len(responses) == len(payments), "the scorer answers every request of a batch"
        return 200, form.content_type, form.render_batch(responses)

    def _livez(self, _: _Request) -> Answer:
        return 200, _JSON, b'{"live":true}'

    def _readyz(self, _: _Request) -> Answer:
        missing = self._scorer.readiness() + (["the worker is stopping"] if self.draining else [])
        body = json.dumps({"ready": not missing, "missing": missing}).encode()
        return (503 if missing else 200), _JSON, body

    def _render_metrics(self, _: _Request) -> Answer:
        return 200, METRICS_TEXT, self._metrics_text()


def _error(status: int, code: str, message: str, field: str = "") -> Answer:
    return status, _JSON, wire.render_error(code, message, field)
