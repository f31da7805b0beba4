"""A connection of a load: the interface, and its implementations for HTTP/1.1 and for gRPC over HTTP/2.

    Load ─ send ─► Channel ─ flush: one write ─► socket ─ data_received ─► Owner.answered, once each, then Owner.freed

Both are made for tens of thousands of requests a second from one process. All requests of one turn of the loop leave in
one write. Bytes that are the same in every request or answer are looked up, not built or parsed again.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol, cast

import httptools
import ngh2

from paywarden.ops.loadgen.target import LoadOptions, Target

# Most bytes of an answer that has come in part. An answer of ours is never as large.
_REST_BYTES_MAX = 4 << 20
_HEADS_MAX = 1024


class Asked(NamedTuple):
    """A request that is due or on its way. `due` is in seconds of `time.perf_counter`."""

    due: float
    number: int
    body: bytes


class Owner(Protocol):
    """The load that owns the channels; they call these methods."""

    def opened(self, channel: Channel) -> None:
        """The channel can be used from now on."""

    def answered(self, asked: Asked, status: int, body: bytes, now: float) -> None:
        """A request was answered. `status` is an HTTP status."""

    def freed(self, channel: Channel) -> None:
        """The channel has room again. Called after the answers, once for all that were read together."""

    def closed(self, channel: Channel, unanswered: Iterable[Asked]) -> None:
        """The connection is closed, and these requests get no answer."""


class Channel(asyncio.Protocol):
    """A connection that carries up to `capacity` requests at a time; 0 once it takes no more."""

    def __init__(self, owner: Owner, capacity: int) -> None:
        self.owner, self.capacity = owner, capacity
        self.in_flight = 0
        self._is_open = False
        # Whether the channel is in the owner's lists: kept here, because a search of the lists takes long.
        self.is_listed_idle = self.is_listed_shared = False
        self._transport: asyncio.Transport

    @abstractmethod
    def send(self, asked: Asked) -> None:
        """Take a request. It leaves with `flush`."""

    @abstractmethod
    def flush(self) -> None:
        """Send the requests taken so far in one write."""

    @abstractmethod
    def unanswered(self) -> list[Asked]:
        """Returns the requests without an answer, the oldest first."""

    def abort(self) -> None:
        """Close at once."""
        self.capacity = 0
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_open = True
        self.owner.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.capacity = 0
        if self._is_open:
            self._is_open = False
            self.owner.closed(self, self.unanswered())

    def _close_when_empty(self) -> None:
        self.capacity = 0
        if self.in_flight == 0:
            self._transport.close()


# HTTP/1.1


class _Head(NamedTuple):
    """The parts of an answer's head that the load needs. `body_bytes` is -1 if only a full parser can tell."""

    status: int
    body_bytes: int
    closes: bool


def _read_head(head: bytes) -> _Head:
    status_line, *lines = head.split(b"\r\n")
    version, _, rest = status_line.partition(b" ")
    status = int(rest[:3]) if version.startswith(b"HTTP/1.") and rest[:3].isdigit() else 0
    body_bytes, closes = -1, version != b"HTTP/1.1"
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"content-length" and value.strip().isdigit():
            body_bytes = int(value)
        elif name == b"transfer-encoding":
            return _Head(status, -1, closes)
        elif name == b"connection":
            closes = closes or b"close" in value.lower()
    if status == 0 or status < 200 or status in (204, 304):
        body_bytes = -1
    return _Head(status, body_bytes, closes)


class HttpChannel(Channel):
    """Answers come in the order of the requests. Known heads are looked up; anything unusual goes to httptools."""

    def __init__(self, owner: Owner, target: Target, options: LoadOptions) -> None:
        super().__init__(owner, 1)
        headers = {"Host": target.authority, "Content-Type": options.content_type, **options.headers}
        if options.token:
            headers["Authorization"] = f"Bearer {options.token}"
        lines = (f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()))
        self._head = "\r\n".join((*lines, "Content-Length: ")).encode()
        self._heads_by_length: dict[int, bytes] = {}
        self._known: dict[bytes, _Head] = {}
        self._asked: deque[Asked] = deque()
        self._out: list[bytes] = []
        self._rest = b""
        self._parser: httptools.HttpResponseParser | None = None
        self._body = b""

    def send(self, asked: Asked) -> None:
        self._asked.append(asked)
        self.in_flight += 1
        length = len(asked.body)
        head = self._heads_by_length.get(length)
        if head is None:
            head = self._heads_by_length[length] = b"%b%d\r\n\r\n" % (self._head, length)
        self._out.append(head + asked.body)

    def flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def unanswered(self) -> list[Asked]:
        return list(self._asked)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self._rest = self._read(self._rest + data if self._rest else data)
            if len(self._rest) > _REST_BYTES_MAX:
                self.abort()
        if self._parser is not None:
            self._parse(self._rest or data)
            self._rest = b""
        if self.capacity:
            self.owner.freed(self)
        else:
            self._close_when_empty()

    def _read(self, data: bytes) -> bytes:
        """Take the whole answers at the beginning; returns the bytes after them."""
        now = time.perf_counter()
        position = 0
        while True:
            end = data.find(b"\r\n\r\n", position)
            if end < 0:
                break
            text = data[position:end]
            head = self._known.get(text)
            if head is None:
                head = self._learn(text)
            if head.body_bytes < 0:
                self._parser = httptools.HttpResponseParser(self)
                break
            body_at, position_after = end + 4, end + 4 + head.body_bytes
            if position_after > len(data):
                break
            position = position_after
            self._answered(head.status, data[body_at:position], head.closes, now)
        return data[position:] if position else data

    def _learn(self, text: bytes) -> _Head:
        if len(self._known) >= _HEADS_MAX:
            self._known.clear()
        head = self._known[text] = _read_head(text)
        return head

    def _answered(self, status: int, body: bytes, closes: bool, now: float) -> None:
        if not self._asked:
            return  # a server may send this before it closes an unused connection
        self.in_flight -= 1
        self.owner.answered(self._asked.popleft(), status, body, now)
        if closes:
            # Other requests on the connection get no answer.
            self.capacity = 0
            self._transport.close()

    # Called by httptools

    def _parse(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status >= 200:
            self._answered(status, self._body, not self._parser.should_keep_alive(), time.perf_counter())


# gRPC

# gRPC's codes that have an HTTP status of ours; any other is a 500.
_HTTP_STATUS = {0: 200, 3: 400, 4: 504, 7: 403, 8: 429, 12: 501, 14: 503, 16: 401}
_WINDOW_BYTES = 8 << 20


class _Stream:
    __slots__ = ("asked", "body", "status")

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.body = b""
        # 0 until gRPC's status comes: a stream that ends without one is a failure.
        self.status = 0


class GrpcChannel(Channel):
    """Unary calls, many at a time on one HTTP/2 connection."""

    def __init__(self, owner: Owner, target: Target, options: LoadOptions) -> None:
        # 1 until the server names its limit: grpcio closes a connection that begins with too many streams.
        super().__init__(owner, 1)
        self._capacity_max = options.streams
        self._headers = [
            (b":method", b"POST"),
            (b":scheme", b"https" if target.is_tls else b"http"),
            (b":path", target.path.encode()),
            (b":authority", target.authority.encode()),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *((name.lower().encode(), value.encode()) for name, value in options.headers.items()),
        ]
        if options.token:
            self._headers.append((b"authorization", f"Bearer {options.token}".encode()))
        self._http2 = ngh2.Connection(ngh2.Role.CLIENT)
        self._streams: dict[int, _Stream] = {}
        self._is_touched = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        settings = {ngh2.Setting.ENABLE_PUSH: 0, ngh2.Setting.INITIAL_WINDOW_SIZE: _WINDOW_BYTES}
        self._http2.initiate_connection(settings)
        self._http2.set_local_window_size(_WINDOW_BYTES)
        self._write()
        super().connection_made(transport)

    def send(self, asked: Asked) -> None:
        body = asked.body
        try:
            stream = self._http2.send_request(self._headers)
        except ngh2.NGH2Error:
            # The server has just broken the protocol: the connection ends and takes no more.
            self._close_when_empty()
            self.owner.answered(asked, 502, b"", time.perf_counter())
            return
        # gRPC's prefix: a zero byte for "not compressed", then the size.
        self._http2.send_data(stream, b"\0" + len(body).to_bytes(4, "big") + body, end_stream=True)
        self._streams[stream] = _Stream(asked)
        self.in_flight += 1
        self._is_touched = True

    def flush(self) -> None:
        if self._is_touched:
            self._is_touched = False
            self._write()

    def unanswered(self) -> list[Asked]:
        return [stream.asked for stream in self._streams.values()]

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        try:
            self._http2.receive_data(data)
        except ngh2.NGH2Error:
            self.abort()
            return
        for event in self._http2.events():
            if isinstance(event, (ngh2.ResponseReceived, ngh2.TrailersReceived)):
                self._heed_headers(event)
            elif isinstance(event, ngh2.DataReceived):
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.body += event.data
            elif isinstance(event, ngh2.StreamReset):
                self._heed_reset(event)
            elif isinstance(event, ngh2.StreamClosed):
                self._ended(event.stream_id, now)
            elif isinstance(event, ngh2.SettingsReceived):
                streams = event.settings.get(ngh2.Setting.MAX_CONCURRENT_STREAMS, self._capacity_max)
                if self.capacity:
                    self.capacity = max(1, min(self._capacity_max, streams))
            elif isinstance(event, (ngh2.GoAwayReceived, ngh2.ConnectionClosed)):
                self.capacity = 0
        if not self._http2.can_send_request:
            self.capacity = 0
        if self.capacity:
            self.owner.freed(self)
        else:
            self._close_when_empty()
        self._is_touched = False
        self._write()

    def _heed_headers(self, event: ngh2.ResponseReceived | ngh2.TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        for name, value in event.headers:
            if name == b"grpc-status":
                stream.status = _HTTP_STATUS.get(int(value), 500) if value.isdigit() else 500

    def _heed_reset(self, event: ngh2.StreamReset) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None and event.error_code == ngh2.ErrorCode.REFUSED_STREAM:
            # Refused unread because there are too many: this is how grpcio refuses streams beyond its limit.
            stream.status = 429

    def _ended(self, stream_id: int, now: float) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self.in_flight -= 1
            self.owner.answered(stream.asked, stream.status or 502, stream.body[5:], now)

    def _write(self) -> None:
        data = self._http2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)
