"""A hostile client that holds many connections to a server, and comes again whenever one ends."""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from tests.patience import PATIENCE_S


class Flood:
    """Connections that say nothing, half of a head, or the head of a POST to `path` without its body.

    `made`: how many it has opened so far.
    """

    def __init__(self, host: str, port: int, path: str, count: int) -> None:
        self._address, self._count = (host, port), count
        post = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: 1000\r\n"
        post += "content-type: application/x-www-form-urlencoded\r\n\r\nname="
        self._heads = (b"", b"GET / HTTP/1.1\r\nhost: ", post.encode())
        self.made = 0
        self.stop = threading.Event()

    def run(self) -> None:
        """Hold the connections until `stop` is set."""
        with selectors.DefaultSelector() as selector:
            for _ in range(self._count):
                self._open(selector)
            while not self.stop.is_set():
                for key, events in selector.select(0.1):
                    self._go_on(selector, key.fileobj, events)  # type: ignore[arg-type]
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    def _open(self, selector: selectors.BaseSelector) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        assert connection.connect_ex(self._address) in (0, errno.EINPROGRESS)
        selector.register(connection, selectors.EVENT_WRITE)
        self.made += 1

    def _go_on(self, selector: selectors.BaseSelector, connection: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                connection.send(self._heads[self.made % 3])
                selector.modify(connection, selectors.EVENT_READ)
                return
            if connection.recv(4096):
                return
        except OSError:
            pass
        selector.unregister(connection)
        connection.close()
        self._open(selector)


@contextmanager
def flooded(address: str, path: str, count: int) -> Iterator[Flood]:
    """Yields a flood of a server at `http://host:port`, which goes on while the block runs."""
    url = urllib.parse.urlsplit(address)
    flood = Flood(url.hostname or "", url.port or 80, path, count)
    thread = threading.Thread(target=flood.run, daemon=True)
    thread.start()
    try:
        yield flood
    finally:
        flood.stop.set()
        thread.join(PATIENCE_S)
