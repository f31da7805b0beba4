"""A relay between a client and a host that lets bytes of the host through one at a time, or all at once.

It does to TLS what a host cannot do: a record arrives byte by byte, or two records arrive together.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_RECEIVE_BYTES = 65536
_DRIP_S = 0.01


class SlowRelay:
    """Relays to a port of this machine until the block ends.

    While `is_slow` says so, what the host sends goes on byte by byte. While `gathers` says so, it waits, and then goes
    on all together.
    """

    def __init__(
        self, port: int, *, is_slow: Callable[[], bool] = lambda: False, gathers: Callable[[], bool] = lambda: False
    ) -> None:
        self._to, self._is_slow, self._gathers = port, is_slow, gathers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._is_ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(caller,), daemon=True).start()

    def _relay(self, caller: socket.socket) -> None:
        with caller, socket.create_connection(("127.0.0.1", self._to)) as host, contextlib.suppress(OSError):
            while not self._is_ending.is_set():
                for ready in select.select([caller, host], [], [], 0.1)[0]:
                    while ready is host and self._gathers() and not self._is_ending.is_set():
                        time.sleep(_DRIP_S)
                    data = ready.recv(_RECEIVE_BYTES)
                    if not data:
                        return
                    if ready is caller:
                        host.sendall(data)
                    elif not self._is_slow():
                        caller.sendall(data)
                    else:
                        self._drip(caller, data)

    def _drip(self, caller: socket.socket, data: bytes) -> None:
        for place in range(len(data)):
            if self._is_ending.is_set():
                return
            caller.sendall(data[place : place + 1])
            time.sleep(_DRIP_S)
