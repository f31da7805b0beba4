"""A second `paywarden serve` takes the ports of the first one over, and no call is refused.

    new ── "listeners" ──► old parent
    new ◄── the very sockets (SCM_RIGHTS) ── of its ports (places.py)
    new workers accept from them, beside the old ones
    new ── "ready" ──────► old parent: its workers accept no more, answer what is in flight, and end

1. A listening socket has a queue of connections that are not accepted yet. Therefore the sockets themselves are
   handed over: one queue, whose connections the new workers accept.
2. Until "ready" nothing has changed for the old host. If the new one dies before, the old one goes on.
3. Both hosts share the decision cache, so a payment that is asked for again gets its decision from either. Each has
   outboxes of its own: the new workers take other numbers than the old ones.
4. Callers' connections are not handed over. Each is closed after its next answer, or when it was idle for 0.6 s.
   The old host ends with the last of them.
5. The new host may have another feature catalogue, if it has a mirror and no deployment file names another one.

The socket is RUNTIME/take-over.sock, in a folder of this user alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.private_files import require_not_planted

_log = logging.getLogger(__name__)

_NAME = "take-over.sock"
_ASK, _READY = b"listeners", b"ready"
_VERSION = 1
# The kernel passes at most 253 descriptors in a message. A worker has two listeners.
_FDS_MAX = 200
_MESSAGE_MAX = 1 << 16
# The old parent answers in its next turn, or has loaded a release before.
_TIMEOUT_S = 10.0
HTTP, GRPC = "http", "grpc"


@dataclass(frozen=True)
class Taken:
    """The sockets and numbers that the earlier host handed over. `sockets`: its listening sockets by kind."""

    sockets: Mapping[str, list[socket.socket]]
    admin_port: int
    # The numbers that the earlier host's workers may have.
    earlier: range
    connection: socket.socket
    # The digest of the earlier host's feature catalogue; "" if it does not say.
    catalogue: str = ""

    def port_of(self, kind: str) -> int | None:
        """Returns the port of a kind's listeners; None if there are none."""
        found = self.sockets.get(kind)
        return found[0].getsockname()[1] if found else None

    def first_worker(self, count: int) -> int:
        """Returns the number of the first new worker: no number is used by both hosts at a time."""
        return 0 if count <= self.earlier.start else self.earlier.stop

    def ready(self) -> None:
        """Report to the earlier host that all new workers accept."""
        with contextlib.suppress(OSError):
            self.connection.send(_READY)
        self.connection.close()


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
                return Taken(sockets, told["admin_port"], earlier, connection, str(told.get("catalogue", "")))
    except (OSError, ValueError, KeyError) as error:
        connection.close()
        raise TemporaryFailure(f"the host that runs does not hand its ports over: {error}") from error


def name_after(name: str, first_worker: int) -> str:
    """Returns the name of a process's file of metrics: no two hosts of a machine write the same one."""
    return f"{name}-{first_worker}" if first_worker else name


class HandOverDesk:
    """The old parent's side. It takes part in the supervisor's loop: `files` are polled, then `turn` is called."""

    def __init__(
        self,
        runtime: Path,
        *,
        listeners: Callable[[], Iterable[tuple[str, socket.socket]]],
        admin_port: int,
        workers: range,
        catalogue: str,
        hand_over: Callable[[], object],
    ) -> None:
        """`listeners`: those of the host, with their kinds. `workers`: the numbers that its workers may have.

        `hand_over` is called when the new host is ready. Raises Misconfigured if the socket cannot be made.
        """
        self._listeners, self._admin_port, self._workers = listeners, admin_port, workers
        self._catalogue, self._hand_over = catalogue, hand_over
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
        """Handle each socket that is ready. It does not wait."""
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
        elif asked.startswith(_READY):
            _log.info("another host has taken the ports over: the workers of this one end")
            self._hand_over()
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
        given = [(kind, listener.fileno()) for kind, listener in self._listeners()]
        try:
            for first in range(0, len(given), _FDS_MAX):
                part = given[first : first + _FDS_MAX]
                told = {
                    "version": _VERSION,
                    "kinds": [kind for kind, _ in part],
                    "is_last": first + _FDS_MAX >= len(given),
                    "admin_port": self._admin_port,
                    "first_worker": self._workers.start,
                    "workers": len(self._workers),
                    "catalogue": self._catalogue,
                }
                socket.send_fds(self._caller, [json.dumps(told).encode()], [fd for _, fd in part])
        except OSError as error:
            _log.error("the ports cannot be handed over: %s", error.strerror)
            self._caller.close()
            self._caller = None


@contextmanager
def _short(folder: Path, name: str = _NAME) -> Iterator[str]:
    """Give a path to a file of the folder that is short enough for a socket, however deep the folder lies."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
