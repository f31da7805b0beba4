"""A one-node Aerospike server for tests: enough of it for the official client, and faults on demand.

    with StandIn() as server:
        client = aerospike.client({"hosts": [("127.0.0.1", server.port)]})
        server.faults.add(Fault.refuse(18), times=2)

How it works: one thread accepts, one thread per connection reads a frame and answers it. An info frame is
answered from a table of what the client asks while it tends the cluster; faults never touch those, so that
the client keeps seeing a healthy node. A message frame first meets the oldest fault that is left.
"""

from __future__ import annotations

import base64
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from types import TracebackType

from tests.standin.aerospike_records import OK, PARTITION_COUNT, Records
from tests.standin.aerospike_wire import (
    ADMIN_KIND,
    FIELD_BATCH,
    FIELD_DIGEST,
    FRAME_HEADER_BYTES,
    INFO1_BATCH,
    INFO3_LAST,
    INFO_KIND,
    MESSAGE_KIND,
    Request,
    batch_count,
    decode_batch,
    decode_message,
    encode_message,
    frame,
    frame_header,
)

NODE_NAME = "BB9000000000001"
# No claim to be a released server: high enough for batch writes and partition queries (6.0).
BUILD = "7.0.0.0"
# Says how a login ended: 52 is what a server without security answers, 65 a wrong password.
SECURITY_NOT_ENABLED = 52
_JOIN_SECONDS_MAX = 5.0
# Below where systems take the ports of outgoing connections from: a client that keeps trying a stopped
# stand-in must not be given that very port as its own, connect to itself, and keep the stand-in from it.
_LOWEST_PORT, _HIGHEST_PORT = 15_000, 30_000
_PORT_ATTEMPT_COUNT = 50


@dataclass(frozen=True)
class Fault:
    """What happens to one message from the client. Made by the class methods."""

    delay_s: float = 0.0
    drop_before: bool = False
    drop_after: bool = False
    silence: bool = False
    refusal: int = OK
    record_refusal: int = OK
    positions: frozenset[int] | None = None

    @classmethod
    def delay(cls, seconds: float) -> Fault:
        """Answered rightly, but late."""
        return cls(delay_s=seconds)

    @classmethod
    def drop(cls) -> Fault:
        """The connection closes and nothing was done."""
        return cls(drop_before=True)

    @classmethod
    def drop_answer(cls) -> Fault:
        """Everything was done, and the connection closes instead of an answer."""
        return cls(drop_after=True)

    @classmethod
    def never_answer(cls) -> Fault:
        """Nothing is done and the connection stays open and silent."""
        return cls(silence=True)

    @classmethod
    def refuse(cls, code: int) -> Fault:
        """The whole message ends in a result code, and nothing was done."""
        return cls(refusal=code)

    @classmethod
    def refuse_records(cls, code: int, positions: frozenset[int] | None = None) -> Fault:
        """Records at these positions of a batch (all, when None) end in a result code; the others are done."""
        return cls(record_refusal=code, positions=positions)


class Faults:
    """Faults still to come, in order. Each meets one message."""

    def __init__(self) -> None:
        self._left: deque[Fault] = deque()
        self._lock = Lock()

    def add(self, fault: Fault, *, times: int = 1) -> None:
        """The next `times` messages meet this fault, after those added before."""
        with self._lock:
            self._left.extend([fault] * times)

    def clear(self) -> None:
        """The server is well again."""
        with self._lock:
            self._left.clear()

    def take(self) -> Fault:
        """The fault the next message meets, or one that does nothing."""
        with self._lock:
            return self._left.popleft() if self._left else Fault()


@dataclass
class StandIn:
    """A server on 127.0.0.1 from `start` (or `with`) to `stop`; it keeps port and records in between.

    `record_counts` holds for each message about records (not for info requests) how many records it was about:
    1 may be a batch of one, which the client sends as a plain command. `scans` holds the request for each page.
    """

    namespace: str = "test"
    clock: Callable[[], float] = time.time
    login_result: int = SECURITY_NOT_ENABLED
    port: int = 0
    record_counts: list[int] = field(default_factory=list)
    scans: list[Request] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    # Answers to info requests that differ from a healthy server's, by name.
    info: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.records = Records(self.namespace, self.clock)
        self._listener: socket.socket | None = None
        self._stopping = Event()
        self._threads: list[Thread] = []
        self._connections: set[socket.socket] = set()
        self._lock = Lock()

    @property
    def address(self) -> str:
        """`host:port`, once started."""
        return f"127.0.0.1:{self.port}"

    @property
    def is_connected(self) -> bool:
        """Whether any client holds a connection."""
        with self._lock:
            return bool(self._connections)

    def __enter__(self) -> StandIn:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listens: on a free port the first time, on the same one after that."""
        self._stopping.clear()
        self._listener = self._listen()
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept, self._listener)

    def stop(self) -> None:
        """Closes every connection and refuses new ones; what was written stays."""
        self._stopping.set()
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener = None
        with self._lock:
            for connection in self._connections:
                _shut(connection)
        for thread in list(self._threads):
            thread.join(_JOIN_SECONDS_MAX)
        self._threads.clear()

    def _listen(self) -> socket.socket:
        if self.port:
            return socket.create_server(("127.0.0.1", self.port), backlog=128)
        for _ in range(_PORT_ATTEMPT_COUNT):
            port = random.randint(_LOWEST_PORT, _HIGHEST_PORT)
            try:
                return socket.create_server(("127.0.0.1", port), backlog=128)
            except OSError:
                continue
        raise RuntimeError(f"no free port found between {_LOWEST_PORT} and {_HIGHEST_PORT}")

    def _spawn(self, target: Callable[[socket.socket], None], connection: socket.socket) -> None:
        thread = Thread(target=target, args=(connection,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while not self._stopping.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with self._lock:
                    self._connections.add(connection)
                self._spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while not self._stopping.is_set() and self._serve_frame(connection):
                    pass
            except OSError:
                # The client hung up, as it does after a timeout, or `stop` did.
                pass
            finally:
                with self._lock:
                    self._connections.discard(connection)

    def _serve_frame(self, connection: socket.socket) -> bool:
        """Whether the connection is still good for another frame."""
        header = _receive(connection, FRAME_HEADER_BYTES)
        if header is None:
            return False
        kind, size = frame_header(header)
        body = _receive(connection, size)
        if body is None:
            return False
        if kind == INFO_KIND:
            connection.sendall(frame(INFO_KIND, self._info(body.decode()).encode()))
            return True
        if kind == ADMIN_KIND:
            connection.sendall(frame(ADMIN_KIND, struct.pack(">BB14x", 0, self.login_result)))
            return True
        return self._serve_message(connection, decode_message(body))

    def _serve_message(self, connection: socket.socket, request: Request) -> bool:
        fault = self.faults.take()
        self._note(request)
        if fault.silence:
            self._stopping.wait()
            return False
        self._stopping.wait(fault.delay_s)
        if fault.drop_before:
            return False
        answer = self._answer(request, fault)
        if fault.drop_after:
            return False
        connection.sendall(frame(MESSAGE_KIND, answer))
        return True

    def _note(self, request: Request) -> None:
        with self._lock:
            if request.info1 & INFO1_BATCH:
                self.record_counts.append(batch_count(request.fields[FIELD_BATCH]))
            elif FIELD_DIGEST in request.fields:
                self.record_counts.append(1)
            else:
                self.scans.append(request)

    def _answer(self, request: Request, fault: Fault) -> bytes:
        last = encode_message(info3=INFO3_LAST, result=fault.refusal)
        if request.info1 & INFO1_BATCH:
            return (b"" if fault.refusal else self._answer_batch(request, fault)) + last
        if FIELD_DIGEST in request.fields:
            return self.records.answer(request, fault.refusal or fault.record_refusal)
        return (b"" if fault.refusal else b"".join(self.records.scan(request))) + last

    def _answer_batch(self, request: Request, fault: Fault) -> bytes:
        answers = []
        for position, one in enumerate(decode_batch(request.fields[FIELD_BATCH])):
            hit = fault.positions is None or position in fault.positions
            answers.append(self.records.answer(one, fault.record_refusal if hit else OK))
        return b"".join(answers)

    def _info(self, asked: str) -> str:
        every_partition = base64.b64encode(b"\xff" * (PARTITION_COUNT // 8)).decode()
        known = {
            "node": NODE_NAME,
            "build": BUILD,
            "namespaces": self.namespace,
            "partitions": str(PARTITION_COUNT),
            "partition-generation": "1",
            "rebalance-generation": "1",
            "peers-generation": "1",
            "peers-clear-std": f"1,{self.port},[]",
            "peers-clear-alt": f"1,{self.port},[]",
            "service-clear-std": self.address,
            "replicas": f"{self.namespace}:0,1,{every_partition};",
            "rack-ids": f"{self.namespace}:0;",
            "features": "batch-any;pquery",
            **self.info,
        }
        names = asked.split("\n")
        return "".join(f"{name}\t{known.get(name, '')}\n" for name in names if name)


def _receive(connection: socket.socket, size: int) -> bytes | None:
    """Exactly `size` bytes, or None when the other side closed before."""
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # Closed by the other side in the same moment.
        return
