"""Speaks HTTP/2 with ngh2, a binding of libnghttp2. See `scoring/grpc/http2.py` for the interface."""

from __future__ import annotations

from collections.abc import Iterable

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

from paywarden.scoring.grpc import http2
from paywarden.scoring.grpc.http2 import (
    OK_TRAILERS,
    RESPONSE_HEAD,
    BrokenConnection,
    Http2Headers,
    Receiver,
    SessionBounds,
)

# libnghttp2 answers a flood of resets with INTERNAL_ERROR. The front's own allowances are lower and name the reason.
_NO_NATIVE_LIMIT = (2**32, 2**32)
# Acknowledgements of PING and SETTINGS that wait for `take`. A read holds at most 256 KiB, or 15,000 of them.
_ACKNOWLEDGEMENTS_MAX = 20_000


class Ngh2Session:
    """A Session on ngh2, which reports all frames of a read at once: `receive` parses all, then calls back for all."""

    def __init__(self, receiver: Receiver, limits: SessionBounds) -> None:
        self._receiver = receiver
        self.closed = False
        connection = ngh2.Connection(
            ngh2.Role.SERVER,
            ngh2.Configuration(
                max_inbound_header_list_size=limits.header_bytes_max,
                max_inbound_header_count=limits.header_count_max,
                max_continuations=limits.continuation_frames_max,
                max_outbound_ack=_ACKNOWLEDGEMENTS_MAX,
                stream_reset_rate_limit=_NO_NATIVE_LIMIT,
            ),
        )
        connection.initiate_connection(http2.settings_of(limits))
        connection.set_local_window_size(limits.connection_window_bytes)
        self._connection = connection
        # Bound methods, kept because they run for every request.
        self._receive, self._events, self._take = connection.receive_data, connection.events, connection.data_to_send
        self._send_head, self._send_data = connection.send_response, connection.send_data
        self._send_trailers = connection.send_trailers
        self._resets: list[tuple[int, int]] = []

    def receive(self, data: bytes) -> None:
        """See Session."""
        try:
            self._receive(data)
        except ngh2.DenialOfServiceError as error:
            raise BrokenConnection(http2.ENHANCE_YOUR_CALM, str(error)) from None
        except ngh2.ProtocolError as error:
            raise BrokenConnection(http2.PROTOCOL_ERROR, str(error)) from None
        except ngh2.NGH2Error as error:
            raise BrokenConnection(http2.INTERNAL_ERROR, str(error)) from None
        self._tell(self._events())

    def take(self) -> bytes:
        """See Session."""
        try:
            data = self._take()
            if self._resets:
                data += self._take_resets()
        except ngh2.ConnectionStateError:
            return b""
        # These events include the end of every answered stream, which needs no action.
        self._tell(self._events())
        return data

    def respond(self, stream_id: int, message: bytes) -> None:
        """See Session."""
        try:
            self._send_head(stream_id, RESPONSE_HEAD)
            self._send_data(stream_id, message)
            self._send_trailers(stream_id, OK_TRAILERS)
        except (ngh2.StreamProtocolError, ngh2.ConnectionStateError):
            return

    def refuse(self, stream_id: int, headers: Http2Headers, *, reset: bool) -> None:
        """See Session."""
        try:
            self._send_head(stream_id, headers, end_stream=True)
        except (ngh2.StreamProtocolError, ngh2.ConnectionStateError):
            return
        if reset:
            # Reset only after the answer is sent, because a reset stream sends nothing any more.
            self._resets.append((stream_id, http2.NO_ERROR))

    def begin(self, stream_id: int) -> None:
        """See Session."""
        try:
            self._send_head(stream_id, RESPONSE_HEAD)
        except (ngh2.StreamProtocolError, ngh2.ConnectionStateError):
            return

    def send(self, stream_id: int, message: bytes) -> None:
        """See Session."""
        try:
            self._send_data(stream_id, message)
        except (ngh2.StreamProtocolError, ngh2.ConnectionStateError):
            return

    def end(self, stream_id: int, trailers: Http2Headers) -> None:
        """See Session."""
        try:
            self._send_trailers(stream_id, trailers)
        except (ngh2.StreamProtocolError, ngh2.ConnectionStateError):
            return

    def reset(self, stream_id: int, code: int) -> None:
        """See Session."""
        try:
            self._connection.reset_stream(stream_id, code)
        except (ngh2.StreamProtocolError, ngh2.ConnectionStateError):
            return

    def ping(self) -> None:
        """See Session."""
        try:
            self._connection.ping()
        except ngh2.ConnectionStateError:
            return

    @property
    def queued_bytes(self) -> int:
        """See Session."""
        return self._connection.queued_body_size()

    def _take_resets(self) -> bytes:
        for stream_id, code in self._resets:
            self.reset(stream_id, code)
        self._resets.clear()
        return self._take()

    def _tell(self, events: Iterable[ngh2.Event]) -> None:
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
                self._tell_rare(event)

    def _tell_rare(self, event: ngh2.Event) -> None:
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
