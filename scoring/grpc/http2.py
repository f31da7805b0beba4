"""Speaks HTTP/2 with ngh2, a binding of libnghttp2: the server's side of one connection.

    socket ─► Http2Session.receive ─► on_request, on_data, … of the connection
    answers ─► Http2Session.respond, refuse, … ─ Http2Session.take ─► one write

1. A session does no I/O and reads no clock.
2. A session refuses bytes that break HTTP/2. It only reports frames that ask for nothing (`on_idle_frame`, `on_gone`),
   and the connection decides how many of them are too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import ngh2
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    PingAcknowledged,
    RequestReceived,
    SettingsAcknowledged,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)

from paywarden.scoring.grpc.grpc_settings import GrpcSettings

# Error codes of HTTP/2 (RFC 9113, section 7).
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
REFUSED_STREAM = 0x7
ENHANCE_YOUR_CALM = 0xB

# The last stream in a GOAWAY that excludes no stream.
STREAM_ID_MAX = 2**31 - 1

Http2Headers = Sequence[tuple[bytes, bytes]]

# The same for every answer, so made once.
RESPONSE_HEAD: Http2Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK_TRAILERS: Http2Headers = ((b"grpc-status", b"0"),)

_GOAWAY_TYPE = 0x7
_SETTINGS_TYPE = 0x4

# libnghttp2 answers a flood of resets with INTERNAL_ERROR. The front's own allowances are lower and name the reason.
_NO_NATIVE_LIMIT = (2**32, 2**32)
# Acknowledgements of PING and SETTINGS that wait for `take`. A read holds at most 256 KiB, or 15,000 of them.
_ACKNOWLEDGEMENTS_MAX = 20_000


class BrokenConnection(Exception):
    """The connection cannot be used any further. `code` and `reason` go into the GOAWAY."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Receiver(Protocol):
    """The callbacks that a session calls in `receive`. They may raise BrokenConnection, which `receive` passes on."""

    def on_request(self, stream_id: int, headers: Http2Headers, ended: bool) -> None:
        """A new stream has begun. `ended`: no DATA follows."""

    def on_data(self, stream_id: int, data: bytes, ended: bool) -> None:
        """DATA of a stream has arrived, which may have been answered or reset meanwhile."""

    def on_gone(self, stream_id: int) -> None:
        """The stream was reset. It may have been answered, and the session may report it twice."""

    def on_idle_frame(self) -> None:
        """A frame arrived that needs no answer from the front: PING, SETTINGS, WINDOW_UPDATE, PRIORITY."""

    def on_greeting(self) -> None:
        """SETTINGS of the peer have arrived."""

    def on_pong(self) -> None:
        """The peer has answered our PING."""


class Http2Session:
    """The server's side of one HTTP/2 connection. Calls about a stream that is gone do nothing.

    `receive` parses all frames of a read, then calls the receiver back for all. `closed`: nothing more is sent or
    received on this connection.
    """

    def __init__(self, receiver: Receiver, settings: GrpcSettings) -> None:
        self._receiver = receiver
        self.closed = False
        connection = ngh2.Connection(
            ngh2.Role.SERVER,
            ngh2.Configuration(
                max_inbound_header_list_size=settings.header_bytes_max,
                max_inbound_header_count=settings.header_count_max,
                max_continuations=settings.continuation_frames_max,
                max_outbound_ack=_ACKNOWLEDGEMENTS_MAX,
                stream_reset_rate_limit=_NO_NATIVE_LIMIT,
            ),
        )
        connection.initiate_connection(_settings_of(settings))
        connection.set_local_window_size(settings.connection_window_bytes)
        self._connection = connection
        # Bound methods, kept because they run for every request.
        self._receive, self._events, self._take = connection.receive_data, connection.events, connection.data_to_send
        self._send_head, self._send_data = connection.send_response, connection.send_data
        self._send_trailers = connection.send_trailers
        self._resets: list[tuple[int, int]] = []

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer. Raises BrokenConnection; after that, `take` returns nothing."""
        try:
            self._receive(data)
        except ngh2.DenialOfServiceError as error:
            raise BrokenConnection(ENHANCE_YOUR_CALM, str(error)) from None
        except ngh2.ProtocolError as error:
            raise BrokenConnection(PROTOCOL_ERROR, str(error)) from None
        except ngh2.NGH2Error as error:
            raise BrokenConnection(INTERNAL_ERROR, str(error)) from None
        self._report(self._events())

    def take(self) -> bytes:
        """Returns all bytes that may be sent now."""
        try:
            data = self._take()
            if self._resets:
                data += self._take_resets()
        except ngh2.ConnectionStateError:
            return b""
        # These events include the end of every answered stream, which needs no action.
        self._report(self._events())
        return data

    def respond(self, stream_id: int, message: bytes) -> None:
        """Send a whole answer: head, `message` as DATA, trailers with status OK."""
        try:
            self._send_head(stream_id, RESPONSE_HEAD)
            self._send_data(stream_id, message)
            self._send_trailers(stream_id, OK_TRAILERS)
        except (ngh2.StreamProtocolError, ngh2.ConnectionStateError):
            return

    def refuse(self, stream_id: int, headers: Http2Headers, *, reset: bool) -> None:
        """Send a whole answer without DATA. With `reset` the peer must send no more of its request."""
        try:
            self._send_head(stream_id, headers, end_stream=True)
        except (ngh2.StreamProtocolError, ngh2.ConnectionStateError):
            return
        if reset:
            # Reset only after the answer is sent, because a reset stream sends nothing any more.
            self._resets.append((stream_id, NO_ERROR))

    def begin(self, stream_id: int) -> None:
        """Send the head of an answer that `send` and `end` complete."""
        _try(self._send_head, stream_id, RESPONSE_HEAD)

    def send(self, stream_id: int, message: bytes) -> None:
        """Send DATA of an answer that was begun."""
        _try(self._send_data, stream_id, message)

    def end(self, stream_id: int, trailers: Http2Headers) -> None:
        """End an answer that was begun."""
        _try(self._send_trailers, stream_id, trailers)

    def reset(self, stream_id: int, code: int) -> None:
        """End a stream without an answer."""
        _try(self._connection.reset_stream, stream_id, code)

    def ping(self) -> None:
        """Send a PING; `on_pong` follows."""
        _try(self._connection.ping)

    @property
    def queued_bytes(self) -> int:
        """Bytes of DATA that wait for the peer to open its window."""
        return self._connection.queued_body_size()

    def _take_resets(self) -> bytes:
        for stream_id, code in self._resets:
            self.reset(stream_id, code)
        self._resets.clear()
        return self._take()

    def _report(self, events: Iterable[ngh2.Event]) -> None:
        receiver = self._receiver
        for event in events:
            if isinstance(event, RequestReceived):
                receiver.on_request(event.stream_id, event.headers, event.end_stream)
            elif isinstance(event, DataReceived):
                receiver.on_data(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, StreamClosed):
                if event.error_code:
                    receiver.on_gone(event.stream_id)
            else:
                self._report_rare(event)

    def _report_rare(self, event: ngh2.Event) -> None:
        receiver = self._receiver
        if isinstance(event, StreamReset):
            receiver.on_gone(event.stream_id)
        elif isinstance(event, TrailersReceived):
            receiver.on_data(event.stream_id, b"", True)
        elif isinstance(event, PingAcknowledged):
            receiver.on_pong()
            receiver.on_idle_frame()
        elif isinstance(event, ConnectionClosed):
            self.closed = True
        elif isinstance(event, SettingsReceived):
            receiver.on_greeting()
            receiver.on_idle_frame()
        elif not isinstance(event, SettingsAcknowledged):
            receiver.on_idle_frame()


def _try(act: Callable[..., object], *arguments: object) -> None:
    """Do something about a stream, or a connection, that may be gone."""
    with suppress(ngh2.StreamProtocolError, ngh2.ConnectionStateError):
        act(*arguments)


def _settings_of(settings: GrpcSettings) -> dict[int, int]:
    """Returns our SETTINGS: the values by HTTP/2's numbers."""
    return {
        0x3: settings.streams_max,
        0x4: settings.stream_window_bytes,
        0x6: settings.header_bytes_max,
    }


def goaway(last_stream_id: int, code: int, reason: str) -> bytes:
    """Returns a GOAWAY frame. Write it between two frames, which is where every `take` ends."""
    debug = reason.encode()
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + debug
    return _frame_head(_GOAWAY_TYPE, len(payload)) + payload


# A server must send SETTINGS first, even if GOAWAY is next.
EMPTY_SETTINGS = (0).to_bytes(3, "big") + bytes([_SETTINGS_TYPE, 0]) + bytes(4)


def _frame_head(kind: int, payload_bytes: int) -> bytes:
    return payload_bytes.to_bytes(3, "big") + bytes([kind, 0]) + bytes(4)
