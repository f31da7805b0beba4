"""Opens the listeners of a host: a TCP port that its workers share.

parent: reserve_port, bound_socket (SO_REUSEPORT) ─ fork ─► worker: accept; the kernel spreads connections
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.net.tls import Tls

_log = logging.getLogger(__name__)

# Connections accepted in one turn of the loop: payments of other callers come in between.
_ACCEPTS_PER_TURN = 8
# How long connections wait when one could not be accepted, or the front has refused one.
_ACCEPT_PAUSE_S = 0.1
# How long they wait when an overloaded worker has no time for further ones.
_PACE_S = 0.01
_PENDING_PLAIN_MAX = 4096


def reserve_port(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Returns a bound socket that does not listen. It reserves the port for the workers that listen later.

    The parent of the workers keeps it until they have ended. If `port` is 0, `getsockname()[1]` is the port that was
    found. Raises Misconfigured when the port is taken. SO_REUSEPORT alone would let a second server of the same user
    share the port unnoticed, and each would get half of the connections. `is_shared`: there is such a server, which
    hands its port over.
    """
    free_port = port
    if not is_shared:
        with _bound(host, port, reuse_port=False) as probe:
            free_port = probe.getsockname()[1]
    held = _bound(host, free_port, reuse_port=True)
    # It was bound with SO_REUSEADDR, so that it may follow a server that has just ended. Without SO_REUSEADDR from now
    # on, it makes another parent's probe fail.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return held


def bound_socket(host: str, port: int) -> socket.socket:
    """Returns a socket on a reserved port, on which nobody listens yet (`accept`). Raises Misconfigured."""
    return _bound(host, port, reuse_port=True)


def open_listener(host: str, port: int, *, backlog: int) -> socket.socket:
    """Returns a listening socket on a reserved port. The kernel spreads connections over all listeners."""
    listener = _bound(host, port, reuse_port=True)
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


class Acceptor:
    """Accepts the connections of one listening socket until `close`. Use it in the event loop.

    asyncio's and uvloop's own servers close a listener for good when `accept` fails once, for example for want of a
    file descriptor. This one leaves further connections in the kernel's queue, and tries again after a moment.
    """

    def __init__(
        self,
        listener: socket.socket,
        connect: Callable[[socket.socket], Coroutine[None, None, object]],
        *,
        may_go_on: Callable[[], bool],
        pending_max: int,
    ) -> None:
        """`connect` makes a connection of an accepted socket. At most `pending_max` at a time: the oldest is cut.

        `may_go_on` is asked after each connection. If there is no time for more, they wait in the kernel's queue.
        """
        self._loop = asyncio.get_running_loop()
        self._listener, self._connect, self._pending_max = listener, connect, pending_max
        self._may_go_on = may_go_on
        # In order of their arrival. Both also keep the tasks from being collected.
        self._pending: dict[asyncio.Task[None], socket.socket] = {}
        self._cut: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._trouble = ""
        self._listen()

    @property
    def is_busy(self) -> bool:
        """Whether a connection was accepted that is not made yet: its TLS handshake goes on."""
        return bool(self._pending)

    def rest(self, pause_s: float = _ACCEPT_PAUSE_S) -> None:
        """Accept nothing for a moment, since the front has no room. To refuse connections costs more than calls."""
        if self._pause is None and self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(pause_s, self._listen)

    def close(self) -> None:
        """Accept nothing more. Connections that were accepted go on."""
        if self._listener.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if self._pause is not None:
                return
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._wait(error)
                return
            self._begin(connection)
            if not self._may_go_on():
                self.rest(_PACE_S)

    def _begin(self, connection: socket.socket) -> None:
        self._trouble = ""
        connection.setblocking(False)
        if len(self._pending) >= self._pending_max:
            self._cut_oldest()
        task = self._loop.create_task(self._run(connection))
        self._pending[task] = connection
        task.add_done_callback(self._forget)

    def _cut_oldest(self) -> None:
        task, connection = next(iter(self._pending.items()))
        del self._pending[task]
        self._cut.add(task)
        # Its handshake fails then, and its descriptor becomes free.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._pending.pop(task, None)
        self._cut.discard(task)

    async def _run(self, connection: socket.socket) -> None:
        try:
            await self._connect(connection)
        except OSError:
            # The caller has gone, or its TLS handshake failed.
            connection.close()

    def _wait(self, error: OSError) -> None:
        if (trouble := error.strerror or str(error)) != self._trouble:
            _log.error("cannot accept connections, and tries again: %s", trouble)
        self._trouble = trouble
        # Otherwise the loop would report the waiting connection again at once, for ever.
        self.rest()


async def accept(
    factory: Callable[[], asyncio.Protocol],
    listener: socket.socket,
    *,
    may_go_on: Callable[[], bool],
    backlog: int,
    tls: Tls | None,
    protocol: str,
    linger_ms: int,
) -> Acceptor:
    """Serve the connections of a listening socket; with TLS if `tls` is given.

    `protocol` is the one that TLS offers by ALPN. For `may_go_on` see Acceptor.
    """
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    listener.listen(backlog)
    if tls is None:
        # A plain connection takes one turn of the loop, so few are ever pending.
        return Acceptor(
            listener,
            lambda one: loop.connect_accepted_socket(factory, one),
            may_go_on=may_go_on,
            pending_max=_PENDING_PLAIN_MAX,
        )
    return Acceptor(
        listener,
        lambda one: loop.connect_accepted_socket(
            factory,
            one,
            ssl=tls.context(protocol),
            ssl_handshake_timeout=tls.settings.handshake_timeout_ms / 1000,
            # A caller who never ends TLS properly must not keep a closed connection.
            ssl_shutdown_timeout=linger_ms / 1000,
        ),
        may_go_on=may_go_on,
        pending_max=tls.settings.handshakes_max,
    )


def _bound(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except UnicodeError as error:
        # "a..b", or a part of more than 63 letters.
        raise Misconfigured(f"cannot listen on {host}:{port}: {host!r} is no name of a host") from error
    except OSError as error:
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        who = ": `ss -ltnp` shows the process that has it" if error.errno == errno.EADDRINUSE else ""
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}{who}") from error
    return bound
