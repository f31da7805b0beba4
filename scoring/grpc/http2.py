"""The narrow seam between the gRPC front and the library that speaks HTTP/2: bytes in, calls out; and back.

    socket ─ Session.receive ─► on_request, on_data, … of the connection
    answers ─► Session.respond, refuse, … ─ Session.take ─► one write

Two libraries fill it: `scoring/grpc/http2_ngh2.py` (libnghttp2, the fast one) and `scoring/grpc/http2_hyper.py`
(hyper-h2, pure
Python, some twenty times slower, much older). The front and its tests know neither. A session does no I/O and
knows no time. It refuses what breaks HTTP/2; what merely asks for nothing it reports (`on_idle_frame`,
`on_gone`), and the front decides how much of that is too much.
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

# In a GOAWAY: nothing that was sent so far is excluded.
STREAM_ID_MAX = 2**31 - 1

Http2Headers = Sequence[tuple[bytes, bytes]]

# Of every answer; made once.
RESPONSE_HEAD: Http2Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK_TRAILERS: Http2Headers = ((b"grpc-status", b"0"),)

_GOAWAY_TYPE = 0x7
_SETTINGS_TYPE = 0x4


class BrokenConnection(Exception):
    """The connection cannot be used any further; `code` is for the GOAWAY."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class SessionBounds:
    """What a session is told to enforce."""

    streams_max: int
    header_bytes_max: int
    header_count_max: int
    stream_window_bytes: int
    connection_window_bytes: int
    continuation_frames_max: int


class Receiver(Protocol):
    """What a session calls from within `receive`. May raise BrokenConnection, which `receive` lets through."""

    def on_request(self, stream_id: int, headers: Http2Headers, ended: bool) -> None:
        """A new stream; `ended`: there will be no DATA."""

    def on_data(self, stream_id: int, data: bytes, ended: bool) -> None:
        """DATA of a stream, perhaps of one that was answered or reset meanwhile."""

    def on_gone(self, stream_id: int) -> None:
        """The stream was reset; may be one that was answered, and may be told twice."""

    def on_idle_frame(self) -> None:
        """A frame that asks for no answer from the front: PING, SETTINGS, WINDOW_UPDATE, PRIORITY."""

    def on_greeting(self) -> None:
        """The peer's first SETTINGS, or later ones."""

    def on_pong(self) -> None:
        """Our PING was answered."""


class Session(Protocol):
    """The HTTP/2 of one connection, on the server's side. Calls about streams that are gone do nothing."""

    def receive(self, data: bytes) -> None:
        """Bytes of the peer. Raises BrokenConnection; `take` gives nothing any more then."""

    def take(self) -> bytes:
        """All that is to be sent and may be sent now."""

    def respond(self, stream_id: int, message: bytes) -> None:
        """A whole answer: head, `message` as DATA, trailers that say OK."""

    def refuse(self, stream_id: int, headers: Http2Headers, *, reset: bool) -> None:
        """A whole answer without DATA; with `reset` the peer is told to send no more of its request."""

    def begin(self, stream_id: int) -> None:
        """The head of an answer that `send` and `end` complete."""

    def send(self, stream_id: int, message: bytes) -> None:
        """DATA of an answer that was begun."""

    def end(self, stream_id: int, trailers: Http2Headers) -> None:
        """The end of an answer that was begun."""

    def reset(self, stream_id: int, code: int) -> None:
        """No answer."""

    def ping(self) -> None:
        """Ask for `on_pong`."""

    @property
    def closed(self) -> bool:
        """Whether there is nothing more to say or hear on this connection."""

    @property
    def queued_bytes(self) -> int:
        """DATA that waits for the peer to open its window."""


def settings_of(limits: SessionBounds) -> dict[int, int]:
    """Our SETTINGS: HTTP/2's numbers and our values."""
    return {
        0x3: limits.streams_max,
        0x4: limits.stream_window_bytes,
        0x6: limits.header_bytes_max,
    }


def goaway(last_stream_id: int, code: int, reason: str) -> bytes:
    """A GOAWAY frame. For use between frames, which is where every `take` ends."""
    debug = reason.encode()
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + debug
    return _frame_head(_GOAWAY_TYPE, len(payload)) + payload


# What a server must say first, even if GOAWAY is next.
EMPTY_SETTINGS = (0).to_bytes(3, "big") + bytes([_SETTINGS_TYPE, 0]) + bytes(4)


def _frame_head(kind: int, payload_bytes: int) -> bytes:
    return payload_bytes.to_bytes(3, "big") + bytes([kind, 0]) + bytes(4)
