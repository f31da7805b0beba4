"""The fast path of single payments in protobuf: from the sockets to the sockets without Python objects for each.

    sockets ─ read_ready ─► requests that wait ─ once a turn ─► OneCall.decide ─► send_answers ─► sockets
                  └─ not usual ─► connection        └─ not usual ─► connection, as if just read

Between a socket and the answer a worker took the bytes from the event loop, made a call, queued it, took bytes out of
the records, put a head in front of them, and gave the result to the loop's transport. That took longer than the system
calls.

1. A request is taken if one read brings exactly that request: a known head that would be scored, in protobuf, with the
   server's own deadline, and its whole body. Nothing of its connection may be waiting: no earlier request, no unsent
   answer. Only one caller may be there, because several take turns in the batcher's queues.
2. A connection whose requests are usual is *watched*: its transport reads no more, and `read_ready`
   (scoring/http/read_call.py) reads all watched connections that have bytes. It compares heads with those that were
   taken before. Any other read goes to its connection, with the bytes; unless `take` takes it, the watch ends then, and
   the transport reads again. The end of a connection and its failures come to light in the same way.
3. The batcher has the fast path answer a chunk at a time (`MicroBatcher.take_turns`). Payments that wait here count for
   admission like those that wait there.
4. `OneCall.decide` leaves the responses where the records are. `send_answers` (scoring/http/send_call.py) puts a head
   in front of each, and sends it with one system call.
5. Bytes that a socket does not take go to the connection's transport, which waits for the socket.
6. If anything else happens to a connection meanwhile (more bytes, its end, a stop), `give_back` comes first: its
   request is then read again in the ordinary way. The same happens to all requests of a chunk that the one call leaves
   to the scorer, that is late, or that waits when the server stops.

The answers have the same bytes either way. Without epoll nothing is watched: transports read, and `take` takes.
"""

from __future__ import annotations

import asyncio
import ctypes
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.scoring.engine.batching.batcher import Call, MicroBatcher, Refusal
from paywarden.scoring.engine.bugs import BugLog
from paywarden.scoring.engine.one_call import IN_RECORDS, OneCall
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.http import read_call as reads
from paywarden.scoring.http import send_call as loop
from paywarden.scoring.http.heads import Heads, RequestHead
from paywarden.scoring.http.waiting_requests import KNOWN_HEADS_BYTES, NOBODY, WaitingChunk, WaitingRequests, address_of
from paywarden.scoring.metrics.worker import RouteMetrics

_HEAD_BYTES_MAX = 512


class FastPathServer(Protocol):
    """The part of the server that the fast path uses."""

    draining: bool
    loop: asyncio.AbstractEventLoop


class FastConnection(Protocol):
    """A connection of the fast path."""

    def read_again(self, data: bytes, arrived: float) -> None:
        """Take the ordinary way with a request that was in the fast path and arrived then."""

    def begin_call(self, head: RequestHead, payload: bytes, arrived: float) -> Call:
        """Returns a call for a request that was in the fast path, and is scored."""

    def take_over(self, data: bytes, *, ends_watch: bool) -> None:
        """Go on after a read of a watched connection that is not usual. `ends_watch`: it is not watched further."""

    def abort(self) -> None:
        """Close at once, and drop the requests in flight."""

    def has_unsent(self) -> bool:
        """Whether the transport holds bytes that are not sent."""

    def write(self, data: bytes) -> None:
        """Send bytes after all that was not sent so far."""


class _Request(NamedTuple):
    """A request that was taken out of those that wait."""

    connection: FastConnection
    data: bytes
    body_bytes: int
    arrived: float


class FastPath:
    """The requests of all connections of a server that wait in the fast path. See the module. Not thread-safe."""

    def __init__(
        self,
        server: FastPathServer,
        batcher: MicroBatcher,
        whole: OneCall,
        *,
        heads: Heads,
        begun: Callable[[], bytes],
        counted: RouteMetrics,
    ) -> None:
        """`begun` returns the beginning of each answer up to its size. `counted` is the route of single payments."""
        self._server, self._batcher, self._whole = server, batcher, whole
        self._heads, self._begun, self._counted = heads, begun, counted
        self._chunk = min(batcher.settings.chunk_payments, ROWS_MAX)
        self._deadline_s = batcher.settings.deadline_ms / 1000
        self._connections: dict[int, FastConnection] = {}
        # The connections, by file, whose transports may hold bytes that are not sent.
        self._unsent: set[int] = set()
        # The caller of all requests that wait.
        self._caller = b""
        self._caller_numbers: dict[bytes, int] = {b"": 0}
        # How many may wait.
        self._room = 0
        # Whether the last chunk went through the one call. Then the next one nearly always does.
        self._was_usual = False
        self._bugs = BugLog()
        seconds = counted.seconds
        assert seconds is not None, "the times of single payments are measured"
        self._seconds = seconds
        files = np.zeros(ROWS_MAX, dtype=np.int64)
        self._arrays: dict[str, NDArray[Any]] = {
            "numbers": np.zeros(loop.NUMBER_COUNT, dtype=np.int64),
            "head": np.zeros(_HEAD_BYTES_MAX, dtype=np.uint8),
            "files": files,
            "bounds": np.array(seconds.bounds),
            "unit": np.array([seconds.per_unit]),
            "out": np.zeros(1, dtype=np.uint8),
            "ends": np.zeros(ROWS_MAX, dtype=np.int64),
            "sent": np.zeros(ROWS_MAX, dtype=np.int64),
        }
        self._frame = Frame(loop.SLOT, self._arrays)
        self._numbers, self._files = self._arrays["numbers"].data, files.data
        library = ctypes.CDLL(None)
        self._numbers[loop.SEND] = address_of(library.send)
        # Where there is no MSG_NOSIGNAL, Python ignores the signal.
        self._numbers[loop.FLAGS] = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
        # The objects that the frame points at.
        self._head: bytes | None = None
        self._written_bytes = 0
        self._counted_slots: memoryview | None = None
        self._waiting = WaitingRequests(files, library)
        # The version of the heads that `read_ready` knows, and by the size of a request the one it knows.
        self._heads_version = -1
        self._known: dict[int, RequestHead] = {}
        self._known_bytes = 0
        # The last head that was taken. Heads of one caller differ in the size of the body only.
        self._head_taken: RequestHead | None = None
        self._epoll: select.epoll | None = None
        self._watched: set[int] = set()
        batcher.take_turns(self)

    def __len__(self) -> int:
        return self._waiting.numbers[reads.WAITING]

    def close(self) -> None:
        """Watch nothing any more."""
        if self._epoll is not None:
            self._server.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    # Connections, by the number of their file

    def begin(self, file: int, connection: FastConnection) -> None:
        """Note a new connection."""
        self._waiting.make_file(file)
        self._connections[file] = connection
        self._unsent.discard(file)

    def end(self, file: int) -> None:
        """Forget a connection, and its request."""
        self.end_watch(file)
        if self.holds(file):
            self.give_back(file)
        self._unsent.discard(file)
        self._connections.pop(file, None)

    def holds(self, file: int) -> bool:
        """Whether a request of this connection waits here."""
        return self._waiting.states[file] == reads.WAITS

    def answered_s(self, file: int) -> float:
        """Returns when this connection's last answer left, in seconds of the loop's clock; 0 if none did."""
        return self._waiting.answered[file]

    def note_written(self, file: int) -> None:
        """Note that this connection's transport may hold bytes that are not sent."""
        self._unsent.add(file)

    def watch(self, file: int, caller: bytes) -> bool:
        """Read this connection of this caller from now on. Its transport must have stopped. Returns False if it fails.

        A connection is of one caller.
        """
        if self._epoll is None:
            if not hasattr(select, "epoll"):
                return False
            self._epoll = select.epoll()
            self._waiting.numbers[reads.EPOLL] = self._epoll.fileno()
            self._server.loop.add_reader(self._epoll.fileno(), self._read_ready)
        try:
            self._epoll.register(file, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        except OSError:
            return False
        self._waiting.callers[file] = self._number_of(caller)
        self._watched.add(file)
        return True

    def end_watch(self, file: int) -> bool:
        """Read this connection no more. Returns whether it was watched."""
        if file not in self._watched:
            return False
        self._watched.discard(file)
        self._waiting.callers[file] = NOBODY
        if self._epoll is not None:
            with suppress(OSError):
                self._epoll.unregister(file)
        return True

    def _number_of(self, caller: bytes) -> int:
        return self._caller_numbers.setdefault(caller, len(self._caller_numbers))

    # Requests in

    def take(self, file: int, data: bytes) -> RequestHead | None:
        """Take one read of a connection on which nothing waits. Returns the request's head if it was taken."""
        head = self._heads.usual(data)
        if head is None:
            return None
        self._look_at_heads()
        if not self:
            self._find_room()
        if len(self) >= self._room or head.caller != self._caller:
            return None
        if not self._waiting.add(file, data, head.content_length, time.perf_counter()):
            return None
        self._learn(data, head)
        self._head_taken = head
        self._batcher.wake()
        return head

    def _find_room(self) -> None:
        """Find out how many requests may wait, and whose. None may if the next chunk would not be usual."""
        is_usual = self._was_usual or self._whole.is_ready
        self._room = self._batcher.room() if is_usual and not self._server.draining else 0
        if not self and self._caller != self._batcher.last_caller:
            self._caller = self._batcher.last_caller
            self._forget_heads()
            self._waiting.numbers[reads.CALLER] = self._number_of(self._caller)

    def _read_ready(self) -> None:
        """Read the watched connections that have bytes, and answer a chunk."""
        self._look_at_heads()
        if not self:
            self._find_room()
        waiting = self._waiting
        waiting.numbers[reads.ROOM] = self._room
        others = reads.read_ready(waiting.frame.address, time.perf_counter())
        if others:
            self._hand_over(others)
        if self:
            self._batcher.answer()

    def _hand_over(self, count: int) -> None:
        """Give reads that are not usual to their connections."""
        at = 0
        for file, size, ends_watch in self._waiting.others[:count].tolist():
            data = b""
            if size > 0:
                data = self._waiting.others_data[at : at + size].tobytes()
                at += size
            if (connection := self._connections.get(file)) is None:
                continue
            try:
                connection.take_over(data, ends_watch=ends_watch == 1)
            except Exception as error:  # noqa: BLE001 - a bug with one connection must not lose the reads of the others
                self._bugs.note(error, "taking over a read")
                connection.abort()

    def _look_at_heads(self) -> None:
        """Forget the known heads if they may no longer be known: tokens have changed, say."""
        version = self._heads.version()
        if version != self._heads_version:
            self._forget_heads()
            self._heads_version = version

    def _learn(self, data: bytes, head: RequestHead) -> None:
        """Let `read_ready` know the head of a request."""
        size = len(data)
        if self._known.get(size) is head or size >= reads.READ_BYTES:
            return
        head_bytes = data[: size - head.content_length]
        if self._known_bytes + len(head_bytes) > KNOWN_HEADS_BYTES:
            self._forget_heads()
        self._known[size] = head
        self._waiting.put_head(size, head_bytes, self._known_bytes)
        self._known_bytes += len(head_bytes)

    def _forget_heads(self) -> None:
        self._known.clear()
        self._known_bytes = 0
        self._waiting.forget_heads()

    def give_back(self, file: int) -> tuple[bytes, float]:
        """Forget the request of a connection. Returns it, and when it arrived."""
        place = self._waiting.place_of(file)
        request = self._requests(place + 1)[place]
        self._waiting.take_out(place, 1, 0.0)
        return request.data, request.arrived

    # Answers out

    def answer(self, began: float) -> int:
        """See batcher.FastRequests."""
        waiting, results = self._waiting, None
        chunk = WaitingChunk(waiting, min(len(self), self._chunk), self._caller)
        count = len(chunk)
        if began - waiting.arrivals[0] <= self._deadline_s and not self._server.draining:
            results = self._decide(chunk, began)
        self._was_usual = results is IN_RECORDS
        if self._was_usual:
            self._send(count)
            return count
        requests = self._requests(count)
        self._take_out(count)
        if results is None:
            for request in requests:
                request.connection.read_again(request.data, request.arrived)
            return 0
        calls = [self._call_of(request) for request in requests]
        self._batcher.give(calls, [1] * len(calls), results)
        return count

    def _call_of(self, request: _Request) -> Call:
        assert self._head_taken is not None, "a request was taken"
        return request.connection.begin_call(self._head_taken, request.data[-request.body_bytes :], request.arrived)

    def _requests(self, count: int) -> list[_Request]:
        """Returns the first requests that wait."""
        return [
            _Request(self._connections[file], data, body_bytes, arrived)
            for file, data, body_bytes, arrived in self._waiting.listed(count)
        ]

    def _take_out(self, count: int) -> None:
        """Take out the first requests, whose connections are answered now."""
        self._waiting.take_out(0, count, self._server.loop.time())
        if self:
            self._find_room()

    def _decide(self, chunk: WaitingChunk, began: float) -> Sequence[bytes | Refusal] | None:
        stages = self._batcher.stages
        if stages.is_timed:
            for arrived in self._waiting.arrivals[: len(chunk)].tolist():
                stages.wait(began - arrived)
        try:
            return self._whole.decide(chunk, self._batcher.now_ms())
        except Exception as error:  # noqa: BLE001 - the ordinary way tries again, and finds the request that has the bug
            self._bugs.note(error, "scoring a chunk")
            return None

    def _send(self, count: int) -> None:
        """Send the responses that are in the records."""
        head = self._begun()
        if head is not self._head:
            self._take_head(head)
        if self._seconds.slots is not self._counted_slots:
            self._take_counters()
        writer = self._whole.writer
        if (written := len(writer.arrays["out"])) != self._written_bytes:
            self._make_room(written)
        files = self._files[:count].tolist() if self._unsent else ()
        for number, file in enumerate(files):
            if file in self._unsent:
                if self._connections[file].has_unsent():
                    self._files[number] = loop.NO_FILE
                else:
                    self._unsent.discard(file)
        stages = self._batcher.stages
        unfinished = loop.send_answers(self._frame.address, writer.frame_at, count, time.perf_counter())
        answered = self._waiting.files_of(count) if unfinished else ()
        self._take_out(count)
        if unfinished:
            self._send_rests(answered)
        if stages.is_timed:
            stages.lap("answer", count)

    def _send_rests(self, files: Sequence[int]) -> None:
        begun, ends, sent = 0, self._arrays["ends"].tolist(), self._arrays["sent"].tolist()
        for file, end, taken in zip(files, ends, sent, strict=False):
            if begun + taken < end:
                self._connections[file].write(self._arrays["out"][begun + taken : end].tobytes())
            begun = end

    def _make_room(self, written: int) -> None:
        """Make room for the answers of a chunk whose records, and therefore responses, have at most these bytes."""
        self._written_bytes = written
        self._arrays["out"] = np.zeros(written + ROWS_MAX * (_HEAD_BYTES_MAX + loop.OVERHEAD_BYTES), dtype=np.uint8)
        self._frame.put("out", self._arrays["out"])

    def _take_head(self, head: bytes) -> None:
        """Take the beginning of answers, which changes every second."""
        self._head = head
        self._arrays["head"][: len(head)] = np.frombuffer(head, dtype=np.uint8)
        self._numbers[loop.HEAD_SIZE] = len(head)

    def _take_counters(self) -> None:
        """Take the addresses of the metrics' slots."""
        self._counted_slots = self._seconds.slots
        self._numbers[loop.ANSWERED] = self._counted.requests[200].address
        self._numbers[loop.BUCKETS], self._numbers[loop.SUM] = self._seconds.addresses
