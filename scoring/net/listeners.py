"""Where a host listens: a TCP port that its workers share, and a Unix domain socket that they inherit.

A port is reserved by the parent and listened on by each worker with a socket of its own: the kernel spreads
connections over them. A Unix domain socket has no such thing: the parent listens, and every worker accepts from the
socket it has inherited.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.net.tls import Tls

# The owner and its group: a gateway on the host is put into the group, strangers stay out.
_UNIX_MODE = 0o660


def reserve_port(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen: it holds the port for workers that `open_listener` it later.

    For the parent of the workers, who keeps it until they are gone; its `getsockname()[1]` is the port that
    port 0 found. Raises Misconfigured when the port is taken. SO_REUSEPORT alone would let a second server of
    the same user share the port unseen, and each would get half of the connections.
    """
    with _bound(host, port, reuse_port=False) as probe:
        free_port = probe.getsockname()[1]
    held = _bound(host, free_port, reuse_port=True)
    # Bound with SO_REUSEADDR it may follow a server that has just ended; without it, from now on, it is in
    # the way of another parent's probe.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return held


def open_listener(host: str, port: int, *, backlog: int) -> socket.socket:
    """A listening socket on a reserved port; the kernel spreads connections over all that listen on it."""
    listener = _bound(host, port, reuse_port=True)
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


async def accept(
    factory: Callable[[], asyncio.Protocol],
    listener: socket.socket,
    *,
    backlog: int,
    tls: Tls | None,
    protocol: str,
    linger_ms: int,
) -> asyncio.Server:
    """Serve what connects to a listening socket, over TLS if that is given and it is a port's.

    `protocol` is what TLS offers by ALPN.
    """
    loop = asyncio.get_running_loop()
    if listener.family == socket.AF_UNIX:
        return await loop.create_unix_server(factory, sock=listener, backlog=backlog)
    if tls is None:
        return await loop.create_server(factory, sock=listener, backlog=backlog)
    return await loop.create_server(
        factory,
        sock=listener,
        backlog=backlog,
        ssl=tls.context([protocol]),
        ssl_handshake_timeout=tls.settings.handshake_timeout_ms / 1000,
        # A caller who does not say goodbye must not keep a connection that is closed.
        ssl_shutdown_timeout=linger_ms / 1000,
    )


@contextmanager
def unix_listener(path: str, *, backlog: int) -> Iterator[socket.socket]:
    """A listening Unix domain socket, for its owner and group; the file is removed at the end.

    For the parent of the workers, who inherit it. A socket file that nobody listens on is taken to be left over
    and replaced. Raises Misconfigured when somebody listens there, or something else is there.
    """
    _remove_left_over(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(path)
            # Nobody can connect before `listen`, so nobody meets the mode that `bind` gave it.
            os.chmod(path, _UNIX_MODE)
            listener.listen(backlog)
        except OSError as error:
            raise _refused(path, error.strerror or str(error)) from error
        listener.setblocking(False)
        inode = os.stat(path).st_ino
        yield listener
    finally:
        listener.close()
    # Only our own: another server may have taken the place of a file that was removed by hand.
    with suppress(FileNotFoundError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


def _remove_left_over(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise _refused(path, "there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as error:
            raise _refused(path, error.strerror or str(error)) from error
        else:
            raise _refused(path, "another process listens there")


def _refused(path: str, why: str) -> Misconfigured:
    return Misconfigured(f"[http] unix_socket: cannot listen on {path}: {why}")


def _bound(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return bound
