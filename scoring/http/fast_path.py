"""The fast path of single payments in protobuf: from their bytes to the sockets without Python objects for each.

    data_received ─ take ─► three lists ─ once a turn ─► OneCall.decide ─► send_answers ─► sockets
                      └─ not usual ─► RequestReader        └─ not usual ─► the reader again, as if just read

Between reading a request and sending its answer a worker made a call, queued it, took bytes out of the records, put a
head in front of them, and gave the result to the event loop's transport. That took longer than the system calls.

1. `take` accepts the bytes of one read if they are exactly one request: a known head that would be scored, in
   protobuf, with the server's own deadline, and its whole body. Nothing of its connection may be waiting: no earlier
   request, no unsent answer. Only one caller may be there, because several take turns in the batcher's queues.
2. The batcher has the fast path answer a chunk at a time (`MicroBatcher.take_turns`). Payments that wait here count for
   admission like those that wait there.
3. `OneCall.decide` leaves the responses where the records are. `send_answers` (scoring/http/send_call.py) puts a head
   in front of each, and sends it with one system call.
4. Bytes that a socket does not take go to the connection's transport, which waits for the socket.
5. If anything else happens to a connection meanwhile (more bytes, its end, a stop), `give_back` comes first: its
   request is then read again in the ordinary way. The same happens to all requests of a chunk that the one call leaves
   to the scorer, that is late, or that waits when the server stops.

The answers have the same bytes either way.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.scoring.engine.batching.batcher import Call, MicroBatcher, Refusal
from paywarden.scoring.engine.bugs import BugLog
from paywarden.scoring.engine.one_call import IN_RECORDS, OneCall
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.http import send_call as loop
from paywarden.scoring.http.heads import RequestHead
from paywarden.scoring.metrics.worker import RouteMetrics

_HEAD_BYTES_MAX = 512


class FastPathServer(Protocol):
    """The part of the server that the fast path uses."""

    draining: bool
    loop: asyncio.AbstractEventLoop


class FastConnection(Protocol):
    """A connection with one request in the fast path. Each of its methods ends that."""

    def read_again(self) -> None:
        """Take the ordinary way with the request."""

    def begin_call(self) -> Call:
        """Returns a call for the request, which is scored."""

    def begin_answer(self, now: float) -> int:
        """Returns the file to send the answer to, or NO_FILE: then it goes to `write`. `now` is the loop's time."""

    def write(self, data: bytes) -> None:
        """Send bytes after all that was not sent so far."""


class FastPath:
    """The requests of all connections of a server that wait in the fast path. See the module. Not thread-safe."""

    def __init__(
        self,
        server: FastPathServer,
        batcher: MicroBatcher,
        whole: OneCall,
        *,
        usual: Callable[[bytes], RequestHead | None],
        begun: Callable[[], bytes],
        counted: RouteMetrics,
    ) -> None:
        """`usual` returns the head of a read that is exactly one request for the fast path, else None.

        `begun` returns the beginning of each answer up to its size. `counted` is the route of single payments.
        """
        self._server, self._batcher, self._whole = server, batcher, whole
        self._usual, self._begun, self._counted = usual, begun, counted
        self._chunk = min(batcher.settings.chunk_payments, ROWS_MAX)
        self._deadline_s = batcher.settings.deadline_ms / 1000
        self._connections: list[FastConnection] = []
        self._bodies: list[bytes] = []
        self._arrivals: list[float] = []
        self.arrived = 0.0
        """When the last request that was taken arrived, in seconds of `time.perf_counter`."""
        self.caller = b""
        """The caller of all requests that wait."""
        # How many may wait.
        self._room = 0
        self._bugs = BugLog()
        seconds = counted.seconds
        assert seconds is not None, "the times of single payments are measured"
        self._seconds = seconds
        self._arrays: dict[str, NDArray[Any]] = {
            "numbers": np.zeros(loop.NUMBER_COUNT, dtype=np.int64),
            "head": np.zeros(_HEAD_BYTES_MAX, dtype=np.uint8),
            "files": np.zeros(ROWS_MAX, dtype=np.int64),
            "bounds": np.array(seconds.bounds),
            "unit": np.array([seconds.per_unit]),
            "out": np.zeros(1, dtype=np.uint8),
            "ends": np.zeros(ROWS_MAX, dtype=np.int64),
            "sent": np.zeros(ROWS_MAX, dtype=np.int64),
        }
        self._frame = Frame(loop.SLOT, self._arrays)
        self._numbers, self._files = self._arrays["numbers"].data, self._arrays["files"].data
        self._numbers[loop.SEND] = ctypes.cast(ctypes.CDLL(None).send, ctypes.c_void_p).value or 0
        # Where there is no MSG_NOSIGNAL, Python ignores the signal.
        self._numbers[loop.FLAGS] = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
        # The objects that the frame points at.
        self._head: bytes | None = None
        self._written_bytes = 0
        self._counted_slots: memoryview | None = None
        batcher.take_turns(self)

    def __len__(self) -> int:
        return len(self._bodies)

    def take(self, connection: FastConnection, data: bytes) -> RequestHead | None:
        """Take one read of a connection on which nothing waits. Returns the request's head if it was taken."""
        head = self._usual(data)
        if head is None:
            return None
        bodies = self._bodies
        if not bodies:
            self._find_room()
        if len(bodies) >= self._room or head.caller != self.caller:
            return None
        if not bodies:
            self._batcher.wake()
        self.arrived = arrived = time.perf_counter()
        self._connections.append(connection)
        bodies.append(data[-head.content_length :])
        self._arrivals.append(arrived)
        return head

    def _find_room(self) -> None:
        """Find out how many requests may wait, and whose. None may if the next chunk would not be usual."""
        self._room = self._batcher.room() if self._whole.is_ready and not self._server.draining else 0
        if not self._bodies:
            self.caller = self._batcher.last_caller

    def give_back(self, connection: FastConnection) -> None:
        """Forget the request of a connection."""
        place = self._connections.index(connection)
        del self._connections[place], self._bodies[place], self._arrivals[place]

    def answer(self, began: float) -> int:
        """See batcher.FastRequests."""
        count = self._chunk
        connections, bodies, arrivals = self._connections, self._bodies, self._arrivals
        self._connections, self._bodies, self._arrivals = connections[count:], bodies[count:], arrivals[count:]
        del connections[count:], bodies[count:], arrivals[count:]
        caller, results = self.caller, None
        if self._bodies:
            self._find_room()
        if began - arrivals[0] <= self._deadline_s and not self._server.draining:
            results = self._decide(bodies, arrivals, [caller] * len(bodies) if caller else (), began)
        if results is None:
            for connection in connections:
                connection.read_again()
            return 0
        if results is IN_RECORDS:
            self._send(connections, len(bodies))
        else:
            calls = [connection.begin_call() for connection in connections]
            self._batcher.give(calls, [1] * len(calls), results)
        return len(bodies)

    def _decide(
        self, bodies: Sequence[bytes], arrivals: Sequence[float], callers: Sequence[bytes], began: float
    ) -> Sequence[bytes | Refusal] | None:
        stages = self._batcher.stages
        if stages.is_timed:
            for arrived in arrivals:
                stages.wait(began - arrived)
        try:
            return self._whole.decide(bodies, self._batcher.now_ms(), (), arrivals, callers)
        except Exception as error:  # noqa: BLE001 - the ordinary way tries again, and finds the request that has the bug
            self._bugs.note(error, "scoring a chunk")
            return None

    def _send(self, connections: Sequence[FastConnection], count: int) -> None:
        """Send the responses that are in the records."""
        head = self._begun()
        if head is not self._head:
            self._take_head(head)
        if self._seconds.slots is not self._counted_slots:
            self._take_counters()
        writer = self._whole.writer
        if (written := len(writer.arrays["out"])) != self._written_bytes:
            self._make_room(written)
        files, now = self._files, self._server.loop.time()
        for number, connection in enumerate(connections):
            files[number] = connection.begin_answer(now)
        stages = self._batcher.stages
        if loop.send_answers(self._frame.address, writer.frame_at, count, time.perf_counter()):
            self._send_rests(connections)
        if stages.is_timed:
            stages.lap("answer", count)

    def _send_rests(self, connections: Sequence[FastConnection]) -> None:
        begun, ends, sent = 0, self._arrays["ends"].tolist(), self._arrays["sent"].tolist()
        for connection, end, taken in zip(connections, ends, sent, strict=False):
            if begun + taken < end:
                connection.write(self._arrays["out"][begun + taken : end].tobytes())
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
