"""The interface between the gRPC front and the library that speaks HTTP/2.

    socket ─ Session.receive ─► on_request, on_data, … of the connection
    answers ─► Session.respond, refuse, … ─ Session.take ─► one write

1. Two libraries implement it: `scoring/grpc/http2_ngh2.py` (libnghttp2, the fast one) and
   `scoring/grpc/http2_hyper.py` (hyper-h2: pure Python, about twenty times slower, much older). The front and its tests
   import neither.
2. A session does no I/O and reads no clock.
3. A session refuses bytes that break HTTP/2. It only reports frames that ask for nothing (`on_idle_frame`, `on_gone`),
   and the front decides how many of them are too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# Error codes of HTTP/2 (RFC 9113, section 7).
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
ENHANCE_YOUR_CALM = 0xB

# The last stream in a GOAWAY that excludes no stream.
STREAM_ID_MAX = 2**31 - 1

Http2Headers = Sequence[tuple[bytes, bytes]]

# The same for every answer, so made once.
RESPONSE_HEAD: Http2Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK_TRAILERS: Http2Headers = ((b"grpc-status", b"0"),)

_GOAWAY_TYPE = 0x7
_SETTINGS_TYPE = 0x4


class BrokenConnection(Exception):
    """The connection cannot be used any further. `code` and `reason` go into the GOAWAY."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class SessionBounds:
    """The limits that a session enforces."""

    streams_max: int
    header_bytes_max: int
    header_count_max: int
    stream_window_bytes: int
    connection_window_bytes: int
    continuation_frames_max: int


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


class Http2Session(Protocol):
    """The server's side of one HTTP/2 connection. Calls about a stream that is gone do nothing."""

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer. Raises BrokenConnection; after that, `take` returns nothing."""

    def take(self) -> bytes:
        """Returns all bytes that may be sent now."""

    def respond(self, stream_id: int, message: bytes) -> None:
        """Send a whole answer: head, `message` as DATA, trailers with status OK."""

    def refuse(self, stream_id: int, headers: Http2Headers, *, reset: bool) -> None:
        """Send a whole answer without DATA. With `reset` the peer must send no more of its request."""

    def begin(self, stream_id: int) -> None:
        """Send the head of an answer that `send` and `end` complete."""

    def send(self, stream_id: int, message: bytes) -> None:
        """Send DATA of an answer that was begun."""

    def end(self, stream_id: int, trailers: Http2Headers) -> None:
        """End an answer that was begun."""

    def reset(self, stream_id: int, code: int) -> None:
        """End a stream without an answer."""

    def ping(self) -> None:
        """Send a PING; `on_pong` follows."""

    @property
    def closed(self) -> bool:
        """Whether nothing more is sent or received on this connection."""

    @property
    def queued_bytes(self) -> int:
        """Bytes of DATA that wait for the peer to open its window."""


def settings_of(limits: SessionBounds) -> dict[int, int]:
    """Returns our SETTINGS: the values by HTTP/2's numbers."""
    return {
        0x3: limits.streams_max,
        0x4: limits.stream_window_bytes,
        0x6: limits.header_bytes_max,
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
