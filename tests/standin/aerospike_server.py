"""An Aerospike server for tests, one node: enough of it for the official client, and faults on demand.

    with StandIn() as server:
        client = aerospike.client({"hosts": [("127.0.0.1", server.port)]})
        server.faults.add(Fault.refuse(18), times=2)

How it works: one thread accepts, and one thread per connection reads a frame and answers it. A message frame first
meets the oldest remaining fault. An info frame is answered from a table of the names that the client requests while it
tends the cluster, and any other name by an error, as real servers do. Faults never touch those answers, so the client
keeps seeing a healthy node. Requests that only a caller makes (statistics of the server, a namespace or a set) meet
faults of their own, `info_faults`.
"""

from __future__ import annotations

import base64
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from threading import Event, Lock, Thread
from types import TracebackType

from tests.services.ports import free_port
from tests.standin.aerospike_records import OK, PARTITION_COUNT, Copies, Records, partition_of
from tests.standin.aerospike_wire import (
    ADMIN_KIND,
    FIELD_BATCH,
    FIELD_DIGEST,
    FRAME_HEADER_BYTES,
    INFO1_BATCH,
    INFO2_DELETE,
    INFO2_WRITE,
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
EVERY_PARTITION = frozenset(range(PARTITION_COUNT))
# The newest version that does not know the name `release`.
BUILD = "8.1.0.3"
# The first that does.
_RELEASE_SINCE = (8, 1, 1)
# From 7.1 on; earlier servers answer nothing.
_UNRECOGNIZED = "ERROR:4:unrecognized command"
# The result of a login: a server without security answers 52, and 65 means a wrong password.
SECURITY_NOT_ENABLED = 52
_JOIN_SECONDS_MAX = 5.0
# A scan is answered in frames, so that half an answer can arrive. The real server splits frames by size.
_SCAN_FRAME_RECORD_COUNT = 4
_PORT_ATTEMPT_COUNT = 50
# The server counts milliseconds from 2010-01-01 UTC.
_EPOCH_S = 1_262_304_000


@dataclass(frozen=True)
class Fault:
    """The fault that one message from the client meets. Made by the class methods."""

    delay_s: float = 0.0
    drop_before: bool = False
    drop_after: bool = False
    drop_amid: bool = False
    silence: bool = False
    refusal: int = OK
    record_refusal: int = OK
    positions: frozenset[int] | None = None
    partitions: frozenset[int] = frozenset()

    @classmethod
    def delay(cls, seconds: float) -> Fault:
        """The answer is right, but late."""
        return cls(delay_s=seconds)

    @classmethod
    def drop(cls) -> Fault:
        """The connection closes and nothing is done."""
        return cls(drop_before=True)

    @classmethod
    def drop_answer(cls) -> Fault:
        """The request is carried out, and the connection closes instead of an answer."""
        return cls(drop_after=True)

    @classmethod
    def drop_midway(cls) -> Fault:
        """Half of the answer arrives (half of the frames of a scan), and the connection closes."""
        return cls(drop_amid=True)

    @classmethod
    def never_answer(cls) -> Fault:
        """Nothing is done and the connection stays open and silent."""
        return cls(silence=True)

    @classmethod
    def refuse(cls, code: int) -> Fault:
        """The whole message gets a result code, and nothing is done."""
        return cls(refusal=code)

    @classmethod
    def refuse_records(cls, code: int, positions: frozenset[int] | None = None) -> Fault:
        """Records at these positions of a batch (all, when None) get a result code. The others are done."""
        return cls(record_refusal=code, positions=positions)

    @classmethod
    def unavailable(cls, partitions: frozenset[int]) -> Fault:
        """A scan learns that these partitions are not available here. The others are answered."""
        return cls(partitions=partitions)


class Faults:
    """The faults to come, in order. Each meets one message."""

    def __init__(self) -> None:
        self._left: deque[Fault] = deque()
        self._lock = Lock()

    def add(self, fault: Fault, *, times: int = 1) -> None:
        """Let the next `times` messages meet this fault, after those added before."""
        with self._lock:
            self._left.extend([fault] * times)

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._left.clear()

    def take(self) -> Fault:
        """Returns the fault for the next message, or one that does nothing."""
        with self._lock:
            return self._left.popleft() if self._left else Fault()


@dataclass
class StandIn:
    """A server on 127.0.0.1 from `start` (or `with`) to `stop`; it keeps port and records in between.

    `record_counts` holds the number of records of each message (not of info requests). A 1 may be a batch of one, which
    the client sends as a plain command. `scans` holds the request for each page. `statistics_asked` holds the requested
    names that meet `info_faults`. `done_count` counts the messages that were carried out, also those whose answer came
    late or never. `batch_count` counts the batches.
    """

    namespace: str = "test"
    clock: Callable[[], float] = time.time
    node_name: str = NODE_NAME
    # The records of a cluster's other nodes, if this server is part of a cluster.
    shared_records: Records | None = None
    login_result: int = SECURITY_NOT_ENABLED
    cluster_name: str = "null"
    # How many nodes the namespace says the cluster has, and how many copies a record; by default one on every node.
    node_count: int = 1
    copy_count: int | None = None
    port: int = 0
    record_counts: list[int] = field(default_factory=list)
    scans: list[Request] = field(default_factory=list)
    statistics_asked: list[str] = field(default_factory=list)
    batch_count: int = 0
    done_count: int = 0
    faults: Faults = field(default_factory=Faults)
    info_faults: Faults = field(default_factory=Faults)
    # The partitions whose scans this node answers. It reports the others as not available.
    partitions: frozenset[int] = field(default=EVERY_PARTITION, repr=False)
    build: str = BUILD
    # Answers to info requests that differ from a healthy server's, by name.
    info: dict[str, str] = field(default_factory=dict)
    # Settings of the namespace and of the node that differ from those of a well configured one.
    namespace_config: dict[str, str] = field(default_factory=dict)
    service_config: dict[str, str] = field(default_factory=dict)
    # This node's versions of records that were written while it was away.
    copies: Copies = field(default_factory=dict, repr=False)
    # Copies that have yet to move, besides `copies`.
    moving_count: int = 0
    # Partitions of which a write reaches no second copy: their master writes its own copy and does not answer. It does
    # answer a write that it refuses.
    unanswered: frozenset[int] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        self.records = self.shared_records or Records(self.namespace, self.clock)
        self._listener: socket.socket | None = None
        self._stopping = Event()
        self._threads: list[Thread] = []
        self._connections: set[socket.socket] = set()
        self._lock = Lock()

    @property
    def address(self) -> str:
        """The `host:port`, once started."""
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
        """Listen: on a free port the first time, on the same one after that."""
        self._stopping.clear()
        self._listener = self._listen()
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept, self._listener)

    def stop(self) -> None:
        """Close every connection and refuse new ones. The records stay."""
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
            # Nobody else of the run gets this port while the stand-in is stopped.
            port = free_port()
            try:
                return socket.create_server(("127.0.0.1", port), backlog=128)
            except OSError:
                continue
        raise RuntimeError(f"no port stayed free in {_PORT_ATTEMPT_COUNT} attempts")

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
                # The client closed the connection, as after a timeout, or `stop` did.
                pass
            finally:
                with self._lock:
                    self._connections.discard(connection)

    def _serve_frame(self, connection: socket.socket) -> bool:
        """Answer one frame. Returns whether the connection can serve another."""
        header = _receive(connection, FRAME_HEADER_BYTES)
        if header is None:
            return False
        kind, size = frame_header(header)
        body = _receive(connection, size)
        if body is None:
            return False
        if kind == INFO_KIND:
            return self._serve_info(connection, body.decode())
        if kind == ADMIN_KIND:
            connection.sendall(frame(ADMIN_KIND, struct.pack(">BB14x", 0, self.login_result)))
            return True
        return self._serve_message(connection, decode_message(body))

    def _serve_info(self, connection: socket.socket, asked: str) -> bool:
        names = [name for name in asked.split("\n") if name]
        # The client asks for the other names by itself, all the time.
        statistics = [name for name in names if _is_statistics(name)]
        with self._lock:
            self.statistics_asked += statistics
        fault = self.info_faults.take() if statistics else Fault()
        return self._send(connection, fault, lambda: [frame(INFO_KIND, self._info(names).encode())])

    def _serve_message(self, connection: socket.socket, request: Request) -> bool:
        fault = self.faults.take()
        self._note(request)
        cut = {partition_of(digest) for digest in _written(request)} & self.unanswered
        if not cut <= self.partitions:
            # Passed on to the node that is cut off.
            return False
        written_before = self.records.write_count
        return self._send(
            connection,
            fault,
            lambda: self._carry_out(request, fault),
            keeps_silent=lambda: bool(cut) and self.records.write_count > written_before,
        )

    def _send(
        self,
        connection: socket.socket,
        fault: Fault,
        answer: Callable[[], list[bytes]],
        keeps_silent: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Carry out a message and answer it, as the fault allows. Returns whether the connection can serve another."""
        if fault.silence:
            self._stopping.wait()
            return False
        self._stopping.wait(fault.delay_s)
        if fault.drop_before:
            return False
        frames = answer()
        if fault.drop_after or keeps_silent():
            return False
        if fault.drop_amid:
            half = frames[: len(frames) // 2] or [frames[0][: len(frames[0]) // 2]]
            connection.sendall(b"".join(half))
            return False
        connection.sendall(b"".join(frames))
        return True

    def _note(self, request: Request) -> None:
        with self._lock:
            if request.info1 & INFO1_BATCH:
                self.batch_count += 1
                self.record_counts.append(batch_count(request.fields[FIELD_BATCH]))
            elif FIELD_DIGEST in request.fields:
                self.record_counts.append(1)
            else:
                self.scans.append(request)

    def _carry_out(self, request: Request, fault: Fault) -> list[bytes]:
        frames = self._answer(request, fault)
        with self._lock:
            self.done_count += 1
        return frames

    def _answer(self, request: Request, fault: Fault) -> list[bytes]:
        """Returns the frames of an answer: several for a scan, otherwise one."""
        last = encode_message(info3=INFO3_LAST, result=fault.refusal)
        if request.info1 & INFO1_BATCH:
            return [frame(MESSAGE_KIND, (b"" if fault.refusal else self._answer_batch(request, fault)) + last)]
        if FIELD_DIGEST in request.fields:
            refusal = fault.refusal or fault.record_refusal
            return [frame(MESSAGE_KIND, self.records.answer(request, refusal, self.copies))]
        here = self.partitions - fault.partitions
        found = [] if fault.refusal else list(self.records.scan(request, here.__contains__, self.copies))
        step = _SCAN_FRAME_RECORD_COUNT
        bodies = [b"".join(found[start : start + step]) for start in range(0, len(found), step)]
        return [frame(MESSAGE_KIND, body) for body in [*bodies, last]]

    def _answer_batch(self, request: Request, fault: Fault) -> bytes:
        answers = []
        for position, one in enumerate(decode_batch(request.fields[FIELD_BATCH])):
            hit = fault.positions is None or position in fault.positions
            answers.append(self.records.answer(one, fault.record_refusal if hit else OK, self.copies))
        return b"".join(answers)

    def _info(self, names: list[str]) -> str:
        known = {
            "node": self.node_name,
            "build": self.build,
            "cluster-name": self.cluster_name,
            "namespaces": self.namespace,
            "partitions": str(PARTITION_COUNT),
            "partition-generation": "1",
            "rebalance-generation": "1",
            "peers-generation": "1",
            "peers-clear-std": f"1,{self.port},[]",
            "peers-clear-alt": f"1,{self.port},[]",
            "service-clear-std": self.address,
            "replicas": f"{self.namespace}:0,1,{partition_bitmap(EVERY_PARTITION)};",
            "rack-ids": f"{self.namespace}:0;",
            "features": "batch-any;pquery",
            "status": "ok",
            "edition": self._edition,
            "get-config:context=service": _joined({"min-cluster-size": "1", **self.service_config}),
        }
        if tuple(map(int, self.build.split("."))) >= _RELEASE_SINCE:
            known["release"] = f"edition={self._edition};version={self.build}"
        for name in names:
            if name.startswith("truncate:"):
                self.records.truncate(dict(pair.split("=") for pair in name.partition(":")[2].split(";"))["set"])
                known[name] = "ok"
            elif name not in known:
                known[name] = self._statistics(name) if _is_statistics(name) else _UNRECOGNIZED
        return "".join(f"{name}\t{self.info.get(name, known[name])}\n" for name in names)

    @property
    def _edition(self) -> str:
        return f"Aerospike {'Enterprise' if self.records.is_enterprise else 'Community'} Edition"

    def _config(self) -> dict[str, str]:
        """Returns the settings of the namespace: those that `doctor --only store` wants, with this node's changes."""
        resolution = "generation" if self.records.resolves_by_generation else "last-update-time"
        return {
            "nsup-period": "120" if self.records.expiry_allowed else "0",
            "allow-ttl-without-nsup": "false",
            "conflict-resolution-policy": resolution,
            "disable-write-dup-res": "false",
            "evict-sys-memory-pct": "0",
            "evict-indexes-memory-pct": "0",
            "max-record-size": str(self.records.record_bytes_max),
            "read-consistency-level-override": "off",
            "write-commit-level-override": "off",
            "strong-consistency": str(self.records.strong_consistency).lower(),
            "storage-engine": "device",
            "storage-engine.device[0]": "/dev/nvme0n1",
            "storage-engine.evict-used-pct": "0",
            **self.namespace_config,
        }

    def _statistics(self, name: str) -> str:
        """Returns the statistics of the server, its namespace or one of its sets: the part that a caller reads."""
        kind, _, about = name.partition("/")
        namespace, _, set_name = about.partition("/")
        if kind == "statistics":
            return f"cluster_size=1;uptime=1;batch_index_initiate={self.batch_count}"
        if kind == "namespace":
            if namespace != self.namespace:
                return "type=unknown"
            statistics = namespace_statistics(
                node_count=self.node_count, copy_count=self.copy_count, clock_skewed=self.records.clock_skewed
            )
            moving = f"migrate_rx_partitions_remaining={len(self.copies) + self.moving_count}"
            plain = f"client_write_success={len(self.record_counts) - self.batch_count}"
            return f"{statistics};{moving};{plain};{_joined(self._config())}"
        if kind == "sets" and namespace != self.namespace:
            return "ns_type=unknown"
        if kind == "sets" and not set_name:
            counts = self.records.set_counts().items()
            return "".join(f"ns={namespace}:set={name}:{self._set_statistics(name, count)}" for name, count in counts)
        count = self.records.set_count(set_name) if kind == "sets" else 0
        # A server does not know a set before its first record.
        return self._set_statistics(set_name, count) if count else ""

    def _set_statistics(self, name: str, count: int) -> str:
        until_s = self.records.truncated_until_s.get(name)
        until = "" if until_s is None else f"truncate_lut={int((until_s - _EPOCH_S) * 1000)}:"
        limit = self.records.count_limits.get(name, 0)
        return f"objects={count}:tombstones=0:{until}truncating=false:stop-writes-count={limit};"


def namespace_statistics(*, node_count: int, copy_count: int | None = None, clock_skewed: bool = False) -> str:
    """Returns a node's statistics of its namespace. By default, every node has a copy of every record."""
    copy_count = node_count if copy_count is None else copy_count
    switches = f"clock_skew_stop_writes={str(clock_skewed).lower()};stop_writes=false"
    return f"ns_cluster_size={node_count};effective_replication_factor={copy_count};{switches}"


def _joined(settings: dict[str, str]) -> str:
    return ";".join(f"{name}={value}" for name, value in settings.items())


@cache
def partition_bitmap(partitions: frozenset[int]) -> str:
    """Returns a node's partitions as the client gets them: one bit each, the first in the highest bit of its byte."""
    bits = bytearray(PARTITION_COUNT // 8)
    for partition in partitions:
        bits[partition // 8] |= 0x80 >> partition % 8
    return base64.b64encode(bits).decode()


def _written(request: Request) -> list[bytes]:
    """Returns the digests of the records that a message changes."""
    one = [request] if FIELD_DIGEST in request.fields else []
    each = list(decode_batch(request.fields[FIELD_BATCH])) if request.info1 & INFO1_BATCH else one
    return [record.digest for record in each if record.info2 & (INFO2_WRITE | INFO2_DELETE)]


def _is_statistics(name: str) -> bool:
    return name.partition("/")[0] in ("statistics", "namespace", "sets")


def _receive(connection: socket.socket, size: int) -> bytes | None:
    """Returns exactly `size` bytes, or None if the other side closed before."""
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
        # The other side closed it at the same moment.
        return
