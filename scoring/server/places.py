"""The listening sockets of a host: one for each port and each place of a worker.

    parent   place 0: http, grpc │ place 1: http, grpc │ …      bound, with SO_REUSEPORT
      │ fork                 │ fork
      ▼                      ▼
    worker of place 0      its successor         both listen on the very same socket: one queue of connections

1. The kernel spreads new connections over the sockets that listen. A socket has a queue of connections that no worker
   has accepted yet. The queue is lost with the socket's last descriptor. The parent therefore holds each socket: the
   next worker of the place, or another parent, accepts whatever waits in its queue.
2. Nobody can connect to a socket before its worker calls `listen`, when it is ready for calls.
3. If a worker dies without a successor, the parent closes the sockets of its place: the others take its connections.
4. A child keeps the sockets of its own place and closes all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from socket import socket

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.net.listeners import bound_socket
from paywarden.scoring.server.takeover import Taken


class Places:
    """The sockets by place and kind. The parent makes it before it forks."""

    def __init__(self, count: int, ports: Mapping[str, tuple[str, int]], taken: Taken | None = None) -> None:
        """`ports`: host and reserved port of each kind. The sockets that another host handed over are spread."""
        self._ports = ports
        self._sockets: list[dict[str, list[socket]]] = [{} for _ in range(count)]
        for kind, found in ({} if taken is None else taken.sockets).items():
            for number, each in enumerate(found):
                if kind in ports:
                    self._sockets[number % count].setdefault(kind, []).append(each)
                else:
                    each.close()

    def open(self, place: int) -> None:
        """Bind a socket for each port of a place that has none. Raises Misconfigured."""
        if place < len(self._sockets):
            for kind, (host, port) in self._ports.items():
                if kind not in self._sockets[place]:
                    self._sockets[place][kind] = [bound_socket(host, port)]

    def lose(self, place: int) -> None:
        """Close the sockets of a place whose worker has died, and bind others for the next one."""
        if place < len(self._sockets):
            _close(self._sockets[place])
            # Otherwise `open` raises it, when the next worker is to start.
            with suppress(Misconfigured):
                self.open(place)

    def keep(self, place: int | None) -> None:
        """In a child: close the sockets of all other places; of all, if `place` is None."""
        for number, sockets in enumerate(self._sockets):
            if number != place:
                _close(sockets)

    def close(self) -> None:
        """Close all of them. Workers that run have their own descriptors."""
        self.keep(None)

    def of(self, place: int, kind: str) -> list[socket]:
        """Returns the sockets on which the worker of a place listens."""
        return self._sockets[place].get(kind, [])

    def __iter__(self) -> Iterator[tuple[str, socket]]:
        """Yields every socket with its kind."""
        for sockets in self._sockets:
            for kind, found in sockets.items():
                for each in found:
                    yield kind, each


def _close(sockets: dict[str, list[socket]]) -> None:
    for found in sockets.values():
        for each in found:
            each.close()
    sockets.clear()
