"""Speaks HTTP/2 with hyper-h2. See `scoring/grpc/http2.py` for the interface.

hyper-h2 is slow, but pure Python and long proven: the alternative if ngh2 should ever fail. Its user must cut DATA to
the peer's window and frame size. DATA that does not fit waits in `_queue` until the window opens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from h2 import events, exceptions
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

from paywarden.scoring.grpc import http2
from paywarden.scoring.grpc.http2 import (
    OK_TRAILERS,
    RESPONSE_HEAD,
    BrokenConnection,
    Http2Headers,
    Receiver,
    SessionBounds,
)

_DEFAULT_WINDOW_BYTES = 65_535
_PREFACE_BYTES = 24
_FRAME_HEAD_BYTES = 9
_FRAME_BYTES_MAX = 16_384


class _Rest(NamedTuple):
    """The unsent part of an answer. `trailers` is None while more DATA may come."""

    data: bytes
    trailers: Http2Headers | None


class _FrameSizes:
    """Detects a frame that is too large by its head. hyper-h2 checks only the whole frame, which may have 16 MiB."""

    def __init__(self) -> None:
        self._head = b""
        self._rest_bytes = _PREFACE_BYTES

    def check(self, data: bytes) -> None:
        """Raises BrokenConnection when a frame in the stream of bytes is too large."""
        at = 0
        while at < len(data):
            step = min(self._rest_bytes, len(data) - at)
            at, self._rest_bytes = at + step, self._rest_bytes - step
            missing = _FRAME_HEAD_BYTES - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) == _FRAME_HEAD_BYTES:
                self._rest_bytes = int.from_bytes(self._head[:3], "big")
                self._head = b""
                if self._rest_bytes > _FRAME_BYTES_MAX:
                    raise BrokenConnection(http2.FRAME_SIZE_ERROR, f"a frame of over {_FRAME_BYTES_MAX} bytes")


class HyperSession:
    """A Session on hyper-h2."""

    def __init__(self, receiver: Receiver, limits: SessionBounds) -> None:
        self._receiver, self._limits = receiver, limits
        self.closed = False
        self._connection = connection = H2Connection(
            H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False)
        )
        wanted = {SettingCodes(number): value for number, value in http2.settings_of(limits).items()}
        connection.local_settings = Settings(client=False, initial_values=wanted)
        connection.decoder.max_header_list_size = limits.header_bytes_max
        connection.initiate_connection()
        connection.increment_flow_control_window(limits.connection_window_bytes - _DEFAULT_WINDOW_BYTES)
        self._queue: dict[int, _Rest] = {}
        self._frame_sizes = _FrameSizes()
        self._greeted = False

    def receive(self, data: bytes) -> None:
        """See Session."""
        try:
            new_events = self._connection.receive_data(data)
        except exceptions.ProtocolError as error:
            raise BrokenConnection(int(error.error_code), str(error)) from None
        self._frame_sizes.check(data)
        self._tell(new_events)

    def take(self) -> bytes:
        """See Session."""
        return self._connection.data_to_send()

    def respond(self, stream_id: int, message: bytes) -> None:
        """See Session."""
        self.begin(stream_id)
        self._queue[stream_id] = _Rest(message, OK_TRAILERS)
        self._pump(stream_id)

    def refuse(self, stream_id: int, headers: Http2Headers, *, reset: bool) -> None:
        """See Session."""
        try:
            self._connection.send_headers(stream_id, headers, end_stream=True)
        except exceptions.ProtocolError:
            return
        if reset:
            self.reset(stream_id, http2.NO_ERROR)

    def begin(self, stream_id: int) -> None:
        """See Session."""
        try:
            self._connection.send_headers(stream_id, RESPONSE_HEAD)
        except exceptions.ProtocolError:
            return

    def send(self, stream_id: int, message: bytes) -> None:
        """See Session."""
        before = self._queue.get(stream_id)
        self._queue[stream_id] = _Rest(message if before is None else before.data + message, None)
        self._pump(stream_id)

    def end(self, stream_id: int, trailers: Http2Headers) -> None:
        """See Session."""
        before = self._queue.get(stream_id)
        self._queue[stream_id] = _Rest(b"" if before is None else before.data, trailers)
        self._pump(stream_id)

    def reset(self, stream_id: int, code: int) -> None:
        """See Session."""
        self._queue.pop(stream_id, None)
        try:
            self._connection.reset_stream(stream_id, code)
        except exceptions.ProtocolError:
            return

    def ping(self) -> None:
        """See Session."""
        try:
            self._connection.ping(bytes(8))
        except exceptions.ProtocolError:
            return

    @property
    def queued_bytes(self) -> int:
        """See Session."""
        return sum(len(rest.data) for rest in self._queue.values())

    def _pump(self, stream_id: int) -> None:
        """Send as much as the peer's windows allow."""
        data, trailers = self._queue.pop(stream_id)
        connection = self._connection
        try:
            sent = 0
            while sent < len(data):
                size = min(connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)
                if size <= 0:
                    self._queue[stream_id] = _Rest(data[sent:], trailers)
                    return
                connection.send_data(stream_id, data[sent : sent + size])
                sent += size
            if trailers is not None:
                connection.send_headers(stream_id, trailers, end_stream=True)
        except exceptions.ProtocolError:
            return  # the stream or the connection is gone

    def _pump_all(self) -> None:
        for stream_id in list(self._queue):
            self._pump(stream_id)

    def _tell(self, new_events: Iterable[events.Event]) -> None:
        receiver = self._receiver
        for event in new_events:
            if not self._greeted and not isinstance(event, events.RemoteSettingsChanged):
                raise BrokenConnection(http2.PROTOCOL_ERROR, "SETTINGS must come first")
            self._greeted = True
            if isinstance(event, events.RequestReceived):
                headers = event.headers
                if len(headers) > self._limits.header_count_max:
                    raise BrokenConnection(http2.ENHANCE_YOUR_CALM, "too many header fields")
                # libnghttp2 gives plain tuples of bytes; these are of a class derived from tuple.
                plain = [(bytes(name), bytes(value)) for name, value in headers]
                receiver.on_request(event.stream_id, plain, event.stream_ended is not None)
            elif isinstance(event, events.DataReceived):
                if event.flow_controlled_length:
                    self._acknowledge(event.flow_controlled_length, event.stream_id)
                receiver.on_data(event.stream_id, event.data or b"", event.stream_ended is not None)
            else:
                self._tell_rare(event)

    def _tell_rare(self, event: events.Event) -> None:
        receiver = self._receiver
        if isinstance(event, events.TrailersReceived):
            receiver.on_data(event.stream_id, b"", True)
        elif isinstance(event, events.StreamReset):
            self._queue.pop(event.stream_id, None)
            receiver.on_gone(event.stream_id)
        elif isinstance(event, events.PingAckReceived):
            receiver.on_pong()
            receiver.on_idle_frame()
        elif isinstance(event, events.ConnectionTerminated):
            self.closed = True  # hyper-h2 sends nothing after the peer's GOAWAY
        elif isinstance(event, events.WindowUpdated):
            self._pump_all()
            receiver.on_idle_frame()
        elif isinstance(event, events.RemoteSettingsChanged):
            self._pump_all()
            receiver.on_greeting()
            receiver.on_idle_frame()
        elif not isinstance(event, events.StreamEnded | events.SettingsAcknowledged):
            receiver.on_idle_frame()

    def _acknowledge(self, size: int, stream_id: int) -> None:
        try:
            self._connection.acknowledge_received_data(size, stream_id)
        except exceptions.ProtocolError:
            return
