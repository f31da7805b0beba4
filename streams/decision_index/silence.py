"""Ends the wait for a server that says nothing.

`statement_timeout` is kept by the server. A server that is frozen, or behind a network that drops everything, never
answers: its client would wait without end, and with it the page of an analyst.

    begin ──► answer within `limit_s` ──► end           nothing happens
    begin ──► silence ──► the socket is shut down ──► the client's wait ends with an error: `Silent`

One thread looks after all connections of a database, from the first wait on.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOOK_S = 0.25
_SHUT_DOWN = -1


class Silent(Exception):
    """The server said nothing for too long."""


class SilenceWatch:
    """Shuts down the sockets of those who wait too long. Thread-safe. `close` it."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        # By thread: until when it waits, and on which socket. A socket of -1 was shut down.
        self._waits: dict[int, tuple[float, int]] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def waiting(self, fileno: int) -> Iterator[None]:
        """While the block runs, its socket is watched. Afterwards the socket may be closed. Raises Silent."""
        name = threading.get_ident()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="postgres-silence", daemon=True)
                self._thread.start()
            self._waits[name] = time.monotonic() + self.limit_s, fileno
        try:
            yield
        except Exception as error:
            if self._ended(name):
                raise Silent(f"it said nothing for {self.limit_s:.0f} s") from error
            raise
        finally:
            self._ended(name)

    def _ended(self, name: int) -> bool:
        """Forget a wait; returns whether it took too long."""
        with self._lock:
            _, fileno = self._waits.pop(name, (0.0, 0))
            return fileno == _SHUT_DOWN

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            now = time.monotonic()
            # No wait ends meanwhile, so the number is that of the socket still.
            with self._lock:
                for name, (until_s, fileno) in self._waits.items():
                    if until_s < now and fileno != _SHUT_DOWN:
                        self._waits[name] = until_s, _SHUT_DOWN
                        with suppress(OSError), socket.socket(fileno=os.dup(fileno)) as own:
                            own.shutdown(socket.SHUT_RDWR)
