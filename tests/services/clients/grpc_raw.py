"""gRPC clients over plain sockets, for tests that break the protocol as no real client would."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import ngh2

from paywarden.scoring.grpc.messages import frame
from tests.worlds.endpoint.grpc_served import WAIT_S, GrpcServed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SCORE = b"/paywarden.scoring.v1.Scoring/Score"
BATCH = b"/paywarden.scoring.v1.Scoring/ScoreBatch"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4

Headers = Sequence[tuple[bytes, bytes]]


def call_headers(path: bytes = SCORE, *more: tuple[bytes, bytes], content_type: bytes = b"application/grpc") -> Headers:
    """Returns the headers with which a client begins a call."""
    return (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"content-type", content_type),
        (b"te", b"trailers"),
        *more,
    )


def raw_frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Returns the bytes of a frame, valid or not."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def pack_headers(headers: Headers) -> bytes:
    """Returns a block of headers that uses no compression table."""
    block = b""
    for name, value in headers:
        block += b"\x00" + _pack_text(name) + _pack_text(value)
    return block


def _pack_text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, size = len(text) - 127, b"\x7f"
    while rest >= 128:
        size += bytes([rest % 128 + 128])
        rest //= 128
    return size + bytes([rest]) + text


class FrameClient:
    """A connection that sends hand-made frames and collects the replies."""

    def __init__(self, served: GrpcServed, opening: bytes = PREFACE + raw_frame(SETTINGS, 0, 0)) -> None:
        self.socket = socket.create_connection(("127.0.0.1", served.port), timeout=WAIT_S)
        self._received = b""
        self.send(opening)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @staticmethod
    def call_frames(stream_id: int, data: bytes, headers: Headers | None = None) -> bytes:
        """Returns the frames of a whole call."""
        block = pack_headers(headers or call_headers())
        return raw_frame(HEADERS, END_HEADERS, stream_id, block) + raw_frame(DATA, END_STREAM, stream_id, data)

    def send(self, data: bytes) -> None:
        """Send bytes. If the server has closed, only reading reports it."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def read(self) -> bool:
        """Read once. Returns False at the end."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        self._received += data
        return data != b""

    def read_to_end(self) -> None:
        """Read until the server has closed."""
        while self.read():
            pass

    def wait_for(self, kind: int, stream_id: int | None = None) -> bytes:
        """Read until a frame of this kind arrives. Returns its payload."""
        while True:
            for found in self.frames():
                if found[0] == kind and stream_id in (None, found[2]):
                    return found[3]
            assert self.read(), f"closed: {self.frames()}"

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Returns all whole frames so far: kind, flags, stream, payload."""
        data, found = self._received, []
        while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
            found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
            data = data[9 + size :]
        return found

    def goaways(self) -> list[tuple[int, int]]:
        """Returns last stream and code of each GOAWAY."""
        return [
            (int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big"))
            for kind, _, _, payload in self.frames()
            if kind == GOAWAY
        ]


@dataclass
class Answer:
    """Everything received on one stream."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytes = b""
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int((self.headers | self.trailers)[b"grpc-status"])

    @property
    def message(self) -> bytes:
        return (self.headers | self.trailers)[b"grpc-message"]


class RawClient:
    """One connection. It makes calls with ngh2; `send_raw` sends bytes that ngh2 never would."""

    def __init__(self, served: GrpcServed, *, settings: dict[int, int] | None = None, greets: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", served.port), timeout=WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=False))
        self._http2.initiate_connection(settings or {})
        self._http2.set_local_window_size(2**30)
        self.answers: dict[int, Answer] = {}
        self.goaways: list[tuple[int, int, bytes]] = []
        self.pongs = 0
        self.closed = False
        self.read_count = 0
        if greets:
            self.push()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # Calls

    def open(self, headers: Headers = (), *, ended: bool = False) -> int:
        """Begin a call. `push` sends it."""
        stream_id = self._http2.send_request(headers or call_headers(), end_stream=ended)
        self.answers[stream_id] = Answer()
        return stream_id

    def data(self, stream_id: int, data: bytes, *, ended: bool = True) -> None:
        self._http2.send_data(stream_id, data, end_stream=ended)

    def call(self, message: bytes, headers: Headers = ()) -> int:
        """Make a whole call. `push` sends it."""
        stream_id = self.open(headers)
        self.data(stream_id, frame(message))
        return stream_id

    def ask(self, message: bytes, headers: Headers = ()) -> Answer:
        """Make a call and wait for its answer."""
        stream_id = self.call(message, headers)
        self.push()
        return self.answer(stream_id)

    def reset(self, stream_id: int, code: int = 8) -> None:
        self._http2.reset_stream(stream_id, code)

    def ping(self) -> None:
        self._http2.ping()

    def open_window(self, size: int, stream_id: int) -> None:
        """Open the stream's window, so that the server may send this much in total."""
        self._http2.set_local_window_size(size, stream_id=stream_id)
        self.push()

    def push(self) -> None:
        """Send all waiting bytes in one write."""
        data = self._http2.data_to_send()
        if data:
            self.socket.sendall(data)

    def pending(self) -> bytes:
        """Returns the bytes that `push` would send."""
        return self._http2.data_to_send()

    def send_raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    # Answers

    def answer(self, stream_id: int) -> Answer:
        """Wait until the stream has ended."""
        answer = self.answers[stream_id]
        self.wait(lambda: answer.ended or answer.reset is not None)
        return answer

    def wait(self, condition: Callable[[], bool]) -> None:
        """Read until the condition holds. Fails if the connection ends before."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert not self.closed, f"closed: {self.goaways}"
            assert time.monotonic() < deadline
            self.read()

    def wait_closed(self) -> None:
        """Read until the server has closed."""
        while not self.closed:
            self.read()

    def read(self) -> None:
        """Read once and process the events."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return
        self.read_count += 1
        try:
            self._http2.receive_data(data)
        except ngh2.ConnectionStateError:
            return  # after GOAWAY
        for event in self._http2.events():
            self._take_in(event)
        self.push()

    def _take_in(self, event: ngh2.Event) -> None:
        match event:
            case ngh2.ResponseReceived():
                answer = self.answers[event.stream_id]
                answer.headers, answer.ended = dict(event.headers), event.end_stream
            case ngh2.DataReceived():
                self.answers[event.stream_id].data += event.data
            case ngh2.TrailersReceived():
                answer = self.answers[event.stream_id]
                answer.trailers, answer.ended = dict(event.headers), True
            case ngh2.StreamReset():
                self.answers[event.stream_id].reset = event.error_code
            case ngh2.GoAwayReceived():
                self.goaways.append((event.last_stream_id, event.error_code, event.debug_data))
            case ngh2.PingAcknowledged():
                self.pongs += 1
            case _:
                pass
