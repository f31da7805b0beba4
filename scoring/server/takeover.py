"""A second `paywarden serve` takes the ports of the first one over, and no call is refused.

    new ── "listeners" ──► old parent ── asks ──► its workers
    new ◄── the very sockets (SCM_RIGHTS) ◄────── their listening sockets
    new workers accept from them, beside the old ones
    new ── "ready" ──────► old parent: its workers accept no more, answer what is in flight, and end

1. A listening socket has a queue of connections that nobody has accepted yet. With SO_REUSEPORT each worker has a queue
   of its own, and a worker that closes its socket drops the connections that wait there. Therefore the sockets
   themselves are handed over: one queue, whose connections the new workers accept.
2. Until "ready" nothing has changed for the old host. If the new one dies before, the old one goes on.
3. Both hosts share the decision cache, so a payment that is asked for again gets its decision from either. Each has
   outboxes of its own: the new workers take other numbers than the old ones.
4. Callers' connections are not handed over. Each is closed after its next answer, or when it was idle for 0.6 s.
   The old host ends with the last of them.

The socket is RUNTIME/take-over.sock, in a folder of this user alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.private_files import require_not_planted

_log = logging.getLogger(__name__)

_NAME = "take-over.sock"
_ASK, _READY, _YIELD = b"listeners", b"ready", b"yield"
_VERSION = 1
# The kernel passes at most 253 descriptors in a message. A worker has two listeners.
_FDS_MAX = 200
_MESSAGE_MAX = 1 << 16
# A worker answers in its next turn; the old parent has to answer within this time.
_WORKER_TIMEOUT_S = 2.0
_TIMEOUT_S = 10.0
HTTP, GRPC, HTTP_UNIX, GRPC_UNIX = "http", "grpc", "http_unix", "grpc_unix"


@dataclass(frozen=True)
class Taken:
    """The sockets and numbers that the earlier host handed over. `sockets`: its listening sockets by kind."""

    sockets: Mapping[str, list[socket.socket]]
    admin_port: int
    # The numbers of the earlier host's workers: the first number, and how many workers there are.
    earlier: range
    connection: socket.socket
    # Whether the earlier host asks for the catalogue of the new host.
    asks_for_catalogue: bool = False

    def port_of(self, kind: str) -> int | None:
        """Returns the port of a kind's listeners; None if there are none."""
        found = self.sockets.get(kind)
        return found[0].getsockname()[1] if found else None

    def unix(self, kind: str) -> socket.socket | None:
        """Returns the listener of a Unix domain socket; None if there is none."""
        found = self.sockets.get(kind)
        return found[0] if found else None

    def first_worker(self, count: int) -> int:
        """Returns the number of the first new worker: no number is used by both hosts at a time."""
        return 0 if count <= self.earlier.start else self.earlier.stop

    def ready(self, catalogue: str) -> None:
        """Tell the earlier host that all new workers accept, and keep no listener here any more.

        `catalogue`: the digest of the new host's feature catalogue.
        """
        with contextlib.suppress(OSError):
            self.connection.send(_READY + b" " + catalogue.encode() if self.asks_for_catalogue else _READY)
        self.connection.close()
        for kind in (HTTP, GRPC):
            for listener in self.sockets.get(kind, ()):
                listener.close()


def take_over(runtime: Path) -> Taken | None:
    """Ask the host of this folder for its listening sockets; None if there is no such host.

    Raises TemporaryFailure if it does not answer, Misconfigured if it answers something else.
    """
    require_not_planted(runtime)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(_TIMEOUT_S)
    try:
        with _short(runtime) as path:
            connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        raise Misconfigured(f"[serve] runtime: cannot reach {runtime / _NAME}: {error.strerror}") from error
    sockets: dict[str, list[socket.socket]] = {}
    try:
        connection.send(_ASK)
        while True:
            message, fds, _, _ = socket.recv_fds(connection, _MESSAGE_MAX, _FDS_MAX)
            told: Any = json.loads(message or b"{}")
            if told.get("version") != _VERSION:
                raise Misconfigured("the host that runs cannot be taken over by this release: restart it")
            for kind, fd in zip(told["kinds"], fds, strict=True):
                sockets.setdefault(kind, []).append(socket.socket(fileno=fd))
            if told["is_last"]:
                earlier = range(told["first_worker"], told["first_worker"] + told["workers"])
                return Taken(sockets, told["admin_port"], earlier, connection, bool(told.get("asks_for_catalogue")))
    except (OSError, ValueError, KeyError) as error:
        connection.close()
        raise TemporaryFailure(f"the host that runs does not hand its ports over: {error}") from error


def name_after(name: str, first_worker: int) -> str:
    """Returns the name of a process's file of metrics: no two hosts of a machine write the same one."""
    return f"{name}-{first_worker}" if first_worker else name


def close_taken(taken: Taken | None) -> None:
    """Close the listeners that were handed over, in a process that accepts from none of them."""
    if taken is not None:
        for listener in itertools.chain.from_iterable(taken.sockets.values()):
            listener.close()


class HandOverDesk:
    """The old parent's side. It takes part in the supervisor's loop: `files` are polled, then `turn` is called."""

    def __init__(
        self,
        runtime: Path,
        *,
        controls: Sequence[socket.socket],
        running: Callable[[], Sequence[int]],
        shared: Mapping[str, socket.socket],
        admin_port: int,
        workers: range,
        hand_over: Callable[[str], object],
    ) -> None:
        """`controls`: by place, the socket to each worker's `Control`; `running`: the places of those that run.

        `shared`: listeners that the parent itself holds, by kind. `hand_over` is called when the new host is ready,
        with the digest of its feature catalogue; "" if it does not say.
        Raises Misconfigured if the socket cannot be made.
        """
        self._controls, self._running, self._shared = controls, running, shared
        self._admin_port, self._workers, self._hand_over = admin_port, workers, hand_over
        self._caller: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._path = runtime / _NAME
        unfinished = runtime / f"{_NAME}.{os.getpid()}"
        try:
            with _short(runtime, unfinished.name) as path:
                self._listener.bind(path)
            self._listener.listen(1)
            os.replace(unfinished, self._path)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            self._listener.close()
            raise Misconfigured(f"[serve] runtime: cannot listen on {self._path}: {error.strerror}") from error

    @property
    def files(self) -> list[socket.socket]:
        return [self._listener, *([self._caller] if self._caller is not None else [])]

    def turn(self) -> None:
        """Handle each socket that is ready. It waits two seconds at most, for workers."""
        with contextlib.suppress(BlockingIOError):
            caller, _ = self._listener.accept()
            if self._caller is not None:
                # An earlier process that asked is given up: it may be gone, or hang.
                self._caller.close()
            caller.setblocking(False)
            self._caller = caller
        if self._caller is None:
            return
        try:
            asked = self._caller.recv(256)
        except BlockingIOError:
            return
        except OSError:
            asked = b""
        if asked == _ASK:
            self._give()
        elif asked.partition(b" ")[0] == _READY:
            _log.info("another host has taken the ports over: the workers of this one end")
            for place in self._running():
                with contextlib.suppress(OSError):
                    self._controls[place].send(_YIELD)
            self._hand_over(asked.partition(b" ")[2].decode(errors="replace"))
        else:
            self._caller.close()
            self._caller = None

    def close(self) -> None:
        """Listen no more. The file is left alone if another host has replaced it."""
        for file in self.files:
            file.close()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _give(self) -> None:
        assert self._caller is not None
        kinds, fds = self._collected()
        kinds += list(self._shared)
        given = [*fds, *(listener.fileno() for listener in self._shared.values())]
        try:
            for first in range(0, len(given), _FDS_MAX):
                told = {
                    "version": _VERSION,
                    "kinds": kinds[first : first + _FDS_MAX],
                    "is_last": first + _FDS_MAX >= len(given),
                    "admin_port": self._admin_port,
                    "first_worker": self._workers.start,
                    "workers": len(self._workers),
                    "asks_for_catalogue": True,
                }
                socket.send_fds(self._caller, [json.dumps(told).encode()], given[first : first + _FDS_MAX])
        except OSError as error:
            _log.error("the ports cannot be handed over: %s", error.strerror)
            self._caller.close()
            self._caller = None
        finally:
            for fd in fds:
                os.close(fd)

    def _collected(self) -> tuple[list[str], list[int]]:
        """Returns the listeners of all workers that answer: kinds and descriptors, which the caller closes."""
        kinds: list[str] = []
        fds: list[int] = []
        waiting = {}
        for place in self._running():
            control = self._controls[place]
            # The answer of a worker that was too late, or has died since.
            while received := _received(control):
                for fd in received[1]:
                    os.close(fd)
            with contextlib.suppress(OSError):
                control.send(_ASK)
                waiting[control.fileno()] = control
        deadline = time.monotonic() + _WORKER_TIMEOUT_S
        poll = select.poll()
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                if received := _received(waiting[fd]):
                    kinds += json.loads(received[0])
                    fds += received[1]
                    poll.unregister(fd)
                    del waiting[fd]
        if waiting:
            _log.warning("%d workers do not hand their listeners over in time", len(waiting))
        return kinds, fds


class Control:
    """A worker's side: gives its listeners to the parent, and learns that another host takes over."""

    def __init__(self, control: socket.socket, yielded: Callable[[], object]) -> None:
        """`yielded` is called when another host has taken over. `control` does not block."""
        self._control, self._yielded = control, yielded
        self._listeners: list[tuple[str, socket.socket]] = []
        self.is_taken_over = False

    @property
    def file(self) -> socket.socket:
        return self._control

    def add(self, kind: str, listener: socket.socket) -> None:
        """Note a listener of this worker."""
        self._listeners.append((kind, listener))

    def turn(self) -> None:
        """Answer the parent."""
        while received := _received(self._control):
            if received[0] == _YIELD:
                self.is_taken_over = True
                self._yielded()
            elif received[0] == _ASK:
                # A listener that is closed has no descriptor.
                found = [(kind, each.fileno()) for kind, each in self._listeners if each.fileno() >= 0]
                with contextlib.suppress(OSError):
                    socket.send_fds(
                        self._control, [json.dumps([kind for kind, _ in found]).encode()], [fd for _, fd in found]
                    )


def control_pairs(count: int) -> list[tuple[socket.socket, socket.socket]]:
    """Returns for each worker the parent's and the worker's end, which do not block. Make them before the fork."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
    for pair in pairs:
        for end in pair:
            end.setblocking(False)
    return pairs


def _received(control: socket.socket) -> tuple[bytes, list[int]] | None:
    try:
        message, fds, _, _ = socket.recv_fds(control, _MESSAGE_MAX, 8)
    except OSError:
        return None
    return (message, fds) if message else None


@contextmanager
def _short(folder: Path, name: str = _NAME) -> Iterator[str]:
    """Give a path to a file of the folder that is short enough for a socket, however deep the folder lies."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
