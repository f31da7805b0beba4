"""gRPC calls from their first byte until they are answered.

    ScoreCall     Score, ScoreBatch: one message ─► MicroBatcher ─► one answer
    ServiceCall   health and reflection: every message is answered at once
    Watch         health's Watch: a message for every change

1. The connection creates a call for a new stream and passes it the stream's DATA (`on_data`).
2. A ScoreCall usually gets its message in one frame, and submits it to `MicroBatcher`. Otherwise it collects the parts
   within a limit per call and one per worker.
3. The call ends by `answer`, `refuse` or `give_up`; the last one when the caller is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from paywarden.scoring.engine.batching.batcher import (
    DEADLINE_EXCEEDED,
    RESOURCE_EXHAUSTED,
    TOO_LARGE,
    Call,
    Flushable,
    MicroBatcher,
    Refusal,
)
from paywarden.scoring.grpc import messages as grpc_messages
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.grpc.http2 import OK_TRAILERS, Http2Session
from paywarden.scoring.grpc.messages import HEAD_BYTES, NOT_ONE_MESSAGE, TRUNCATED, frame
from paywarden.scoring.grpc.services import GrpcHealth, render_status
from paywarden.scoring.metrics.shared_metrics import Counter, MetricHistogram
from paywarden.scoring.requests.protobuf_form import PROTOBUF

TOO_SLOW = Refusal(DEADLINE_EXCEEDED, "the request took too long to arrive")
_NO_ROOM = Refusal(RESOURCE_EXHAUSTED, "too much is arriving at once: try again later")
_UNREAD = Refusal(RESOURCE_EXHAUSTED, "answers are not read")
_TOO_MANY_WATCHES = Refusal(RESOURCE_EXHAUSTED, "too many watches on this connection")


class CallKind(Enum):
    """The number of messages in each direction: one or many."""

    SCORE = auto()
    ONE = auto()  # one message, one answer
    EACH = auto()  # an answer to each of many messages
    WATCH = auto()  # one message, answers as things change


@dataclass(frozen=True, slots=True)
class Method:
    """A method that can be called. `counts` are by status code; `handle` answers a message of a standard service."""

    name: str
    kind: CallKind
    counts: dict[str, Counter]
    bytes_max: int
    is_open: bool = False  # needs no token
    is_batch: bool = False
    seconds: MetricHistogram | None = None
    handle: Callable[[bytes], bytes | Refusal] | None = None

    def count(self, code: str) -> None:
        """Count the end of one call. A code that gRPC does not have counts as "unknown"."""
        (self.counts.get(code) or self.counts["unknown"]).add(1)


class Arriving(Protocol):
    """A stream that is not answered yet, as its connection sees it."""

    @property
    def opened(self) -> float:
        """The time at which its headers arrived; for many messages, that of the last one."""

    @property
    def is_arriving(self) -> bool:
        """Whether the request is incomplete."""

    def on_data(self, data: bytes, ended: bool) -> None:
        """Take a part of the request; `ended`: it is the last."""

    def give_up(self) -> None:
        """Drop the call, because the caller or the connection is gone."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer with a status."""


class CallServer(Protocol):
    """The part of the server that a call uses."""

    batcher: MicroBatcher
    settings: GrpcSettings
    now_s: Callable[[], float]
    deadline_s: float
    health: GrpcHealth
    arriving_bytes: int


class CallLink(Flushable, Protocol):
    """The part of the connection that a call uses."""

    session: Http2Session
    read_at: float
    submitted: bool
    write_now: bool
    watches: dict[int, HealthStream]

    @property
    def server(self) -> CallServer:
        """The server that the connection belongs to."""

    def done(self, stream_id: int) -> None:
        """Note that the call of this stream is answered."""

    def refuse(self, stream_id: int, refusal: Refusal, *, reset: bool) -> None:
        """Answer the stream with a status. `reset`: read no more of its request."""

    def on_idle_frame(self) -> None:
        """Count a frame that asks for nothing."""


class ScoreCall(Call):
    """Score or ScoreBatch."""

    __slots__ = ("_encoding", "_method", "_parts", "_stream_id", "_timeout_s", "is_arriving", "opened")

    refusal_s = 90e-6
    connection: CallLink
    form = PROTOBUF

    def __init__(
        self,
        link: CallLink,
        stream_id: int,
        method: Method,
        encoding: bytes,
        timeout_s: float | None,
        caller: bytes = b"",
        trace: bytes = b"",
    ) -> None:
        self.trace = trace
        self.connection = link
        self._stream_id, self._method, self._encoding, self._timeout_s = stream_id, method, encoding, timeout_s
        self._parts: bytearray | None = None
        self.is_batch = method.is_batch
        self.caller = caller
        self.opened = link.read_at
        self.is_arriving = True
        self.cancelled = False

    def on_data(self, data: bytes, ended: bool) -> None:
        """See Arriving. A usual request arrives in one frame."""
        if self._parts is not None or not ended:
            if not self._collect(data, ended):
                return
            assert self._parts is not None
            data = bytes(self._parts)
            self._drop_parts()
        link, method = self.connection, self._method
        self.is_arriving = False
        self.arrived = link.read_at
        size = len(data) - HEAD_BYTES
        if 0 <= size <= method.bytes_max and data[0] == 0 and int.from_bytes(data[1:HEAD_BYTES], "big") == size:
            self.payload = data[HEAD_BYTES:]
        else:
            message = grpc_messages.read_only_message(data, self._encoding, method.bytes_max)
            if isinstance(message, Refusal):
                self.refuse(message)
                return
            self.payload = message
        deadline = self.arrived + link.server.deadline_s
        if self._timeout_s is not None and self.opened + self._timeout_s < deadline:
            deadline = self.opened + self._timeout_s
        self.deadline = deadline
        link.submitted = True
        link.server.batcher.submit(self)

    def answer(self, body: bytes) -> None:
        """See Call."""
        link, method = self.connection, self._method
        link.session.respond(self._stream_id, b"\0" + len(body).to_bytes(4, "big") + body)
        link.done(self._stream_id)
        method.counts["ok"].add(1)
        if method.seconds is not None:
            method.seconds.observe(link.server.now_s() - self.arrived)

    def refuse(self, refusal: Refusal) -> None:
        """See Call."""
        link, method = self.connection, self._method
        if refusal.code == TOO_LARGE:
            refusal = refusal._replace(code=RESOURCE_EXHAUSTED)
        link.refuse(self._stream_id, refusal, reset=self.is_arriving)
        method.count(refusal.code)
        if method.seconds is not None and not self.is_arriving:
            method.seconds.observe(link.server.now_s() - self.arrived)
        self._drop_parts()

    def give_up(self) -> None:
        """See Arriving."""
        self.cancelled = True
        self._method.count("cancelled")
        self._drop_parts()

    def _collect(self, data: bytes, ended: bool) -> bool:
        """Keep a part of the request. Returns whether it is complete."""
        server, bytes_max = self.connection.server, self._method.bytes_max
        if not data and not ended:
            self.connection.on_idle_frame()
        parts = self._parts
        if parts is None:
            parts = self._parts = bytearray()
        parts += data
        server.arriving_bytes += len(data)
        size = grpc_messages.message_size(parts)
        if (size is not None and size > bytes_max) or len(parts) > bytes_max + HEAD_BYTES:
            self.refuse(grpc_messages.too_large(bytes_max))
            return False
        if server.arriving_bytes > server.settings.arriving_bytes_max:
            self.refuse(_NO_ROOM)
            return False
        return ended

    def _drop_parts(self) -> None:
        if self._parts is not None:
            self.connection.server.arriving_bytes -= len(self._parts)
            self._parts = None


class ServiceCall:
    """A call of health or reflection: small, rare, answered at once."""

    def __init__(self, link: CallLink, stream_id: int, method: Method, encoding: bytes) -> None:
        self._link, self._stream_id, self._method, self._encoding = link, stream_id, method, encoding
        self._buffer = bytearray()
        self._held_bytes = 0
        self._message_count = 0
        self._begun = False
        self.opened = link.read_at
        self.is_arriving = True

    def on_data(self, data: bytes, ended: bool) -> None:
        """See Arriving."""
        link = self._link
        link.write_now = True
        if not data and not ended:
            link.on_idle_frame()
        self._buffer += data
        while (message := self._next_message()) is not None:
            self.opened = link.read_at
            self._message_count += 1
            refusal = message if isinstance(message, Refusal) else self._answer(message)
            if refusal is not None:
                self.refuse(refusal)
                return
        self._hold(len(self._buffer))
        if ended:
            self.is_arriving = False
            self._end_of_request()
        elif link.server.arriving_bytes > link.server.settings.arriving_bytes_max:
            self.refuse(_NO_ROOM)

    def refuse(self, refusal: Refusal) -> None:
        """See Arriving."""
        if self._begun:
            self._link.session.end(self._stream_id, grpc_messages.status_trailers(refusal))
            self._link.done(self._stream_id)
        else:
            self._link.refuse(self._stream_id, refusal, reset=self.is_arriving)
        self._method.count(refusal.code)
        self._hold(0)

    def give_up(self) -> None:
        """See Arriving."""
        self._method.count("cancelled")
        self._hold(0)

    def finish(self) -> None:
        """End a call that would go on for ever, with status OK, unless half a message has arrived."""
        if self._begun and not self._buffer:
            self._end()

    def send(self, message: bytes) -> None:
        """Send one message of the answer."""
        session = self._link.session
        if not self._begun:
            self._begun = True
            session.begin(self._stream_id)
        session.send(self._stream_id, frame(message))

    def _next_message(self) -> bytes | Refusal | None:
        buffer = self._buffer
        size = grpc_messages.message_size(buffer)
        if size is None:
            return None
        bytes_max = self._method.bytes_max
        if size > bytes_max:
            return grpc_messages.too_large(bytes_max)
        if len(buffer) < HEAD_BYTES + size:
            return None
        flag, body = buffer[0], bytes(buffer[HEAD_BYTES : HEAD_BYTES + size])
        del buffer[: HEAD_BYTES + size]
        return grpc_messages.open_message(flag, body, self._encoding, bytes_max)

    def _answer(self, message: bytes) -> Refusal | None:
        method = self._method
        if method.kind is not CallKind.EACH and self._message_count > 1:
            return NOT_ONE_MESSAGE
        if self._link.session.queued_bytes > self._link.server.settings.unread_bytes_max:
            return _UNREAD
        if method.kind is CallKind.WATCH:
            return self._watch(message)
        assert method.handle is not None
        answer = method.handle(message)
        if isinstance(answer, Refusal):
            return answer
        self.send(answer)
        return None

    def _watch(self, message: bytes) -> Refusal | None:
        link = self._link
        service = link.server.health.service_of(message)
        if isinstance(service, Refusal):
            return service
        if len(link.watches) >= link.server.settings.watches_max:
            return _TOO_MANY_WATCHES
        link.watches[self._stream_id] = HealthStream(self, service, link.server.health)
        return None

    def _end_of_request(self) -> None:
        if self._buffer:
            self.refuse(TRUNCATED)
        elif self._method.kind is not CallKind.EACH and self._message_count != 1:
            self.refuse(NOT_ONE_MESSAGE)
        elif self._method.kind is not CallKind.WATCH:
            if not self._begun:
                self._begun = True
                self._link.session.begin(self._stream_id)
            self._end()

    def _hold(self, size: int) -> None:
        """Count the bytes kept for an incomplete message."""
        self._link.server.arriving_bytes += size - self._held_bytes
        self._held_bytes = size

    def _end(self) -> None:
        self._link.session.end(self._stream_id, OK_TRAILERS)
        self._link.done(self._stream_id)
        self._method.count("ok")


class HealthStream:
    """Sends every change of a service's health to one caller."""

    def __init__(self, call: ServiceCall, service: str, health: GrpcHealth) -> None:
        self._call, self._service, self._health = call, service, health
        self._last_sent: object = None
        self.look()

    def look(self) -> None:
        """Send the status if it has changed."""
        status = self._health.status_of(self._service)
        if status != self._last_sent:
            self._last_sent = status
            self._call.send(render_status(status))

    def finish(self) -> None:
        """Send the last change and end with status OK."""
        self.look()
        self._call.finish()
