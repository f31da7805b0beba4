"""Run the console's web server in this process, and end it within a time limit.

    SIGTERM ─► no new connections; background work ends ─► after 3 s requests that still run are cut off ─► the end

A handler that waits for Kafka or for a query goes on in its thread, and the end does not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from paywarden.ops.console.connections import PROVE, Connections
from paywarden.ops.console.settings import ConsoleSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.rare_line import RareLine
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_BACKLOG = 512
# Accepted between two looks at what clients have sent: in a flood, requests are read before a hundred newer connections
# have come.
_ACCEPTED_AT_ONCE = 16
# A browser that keeps its connection open must not hold up the end.
_GRACE_S = 3
_KEEP_ALIVE_S = 15
_HEAD_BYTES_MAX = 32 * 1024
# A client that opens connections and says nothing gives way to others (connections.py), and ends after this time.
_HEAD_S = 15.0


def served(source: Source, settings: ConsoleSettings, stop: threading.Event, announce: Callable[[str], object]) -> None:
    """Serve the pages until `stop` is set. `announce` gets the address. Raises Misconfigured."""
    from paywarden.ops.console.assembly import console

    listener = _listener(settings)
    address = _address(listener)
    with listener, console(source, settings, address, stop) as made:
        announce(made.shell.url)
        serve(made.app, listener, stop, proxies=settings.proxies)


def serve(
    app: ASGIApp,
    listener: socket.socket,
    stop: threading.Event,
    *,
    grace_s: int = _GRACE_S,
    proxies: Sequence[str] = (),
) -> None:
    """Serve an application until `stop` is set. Requests then have `grace_s` to end, and are cut off after that.

    `proxies`: who may name a client in X-Forwarded-For, beside this machine itself.
    """
    connections = Connections()
    config = uvicorn.Config(
        app,
        # uvloop takes the wake-up pipe of signals for itself: ProcessEnd would never hear of SIGTERM.
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        # Not from the environment: a proxy that may name the client has as many tries to log in as addresses.
        proxy_headers=True,
        forwarded_allow_ips=["127.0.0.1", "::1", *proxies],
        date_header=True,
        # It bounds the head of a request; that of httptools grows until the memory is full.
        http=partial(_Connection, connections),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=grace_s,
        timeout_keep_alive=_KEEP_ALIVE_S,
        h11_max_incomplete_event_size=_HEAD_BYTES_MAX,
        backlog=_ACCEPTED_AT_ONCE,
    )
    server = _Server(config)

    def end() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=end, name="console-end", daemon=True).start()
    lines = _RareWarnings()
    logger = logging.getLogger("uvicorn.error")
    logger.addFilter(lines)
    try:
        server.run(sockets=[listener])
    finally:
        logger.removeFilter(lines)


class _RareWarnings(logging.Filter):
    """Lets a warning of uvicorn through once a minute: it has one for each request that is none."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[str, RareLine] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        count = self._lines.setdefault(str(record.msg), RareLine()).due(time.monotonic())
        record.msg = f"{record.msg} ({count} since the last such line)"
        return bool(count)


class _Connection(H11Protocol):
    """A connection that ends if the head of its first request does not come in time, or gives way to a newer one.

    uvicorn itself waits for ever. Between requests it has a limit of its own, `timeout_keep_alive`, which the first
    byte of the next head ends: the same clock runs from there.
    """

    _head: asyncio.TimerHandle | None = None

    def __init__(self, held: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._held = held
        # The shell calls it when it knows who has sent a request.
        self.app_state = {**self.app_state, PROVE: self._prove}

    @property
    def waits_for_client(self) -> bool:
        """See Held."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def give_way(self) -> None:
        """See Held."""
        self.transport.abort()

    def _prove(self, person: str) -> None:
        """Note who has sent a request here. Any thread may call it."""
        self.loop.call_soon_threadsafe(self._held.prove, self, person)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._held.admit(self, self.client[0] if self.client else ""):
            transport.abort()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._head is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._held.forget(self)
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(_HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn without handlers of signals of its own: ProcessEnd has them."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            # asyncio took the number of connections that it accepts at once for the length of the queue, too.
            listener.listen(_BACKLOG)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


def _listener(settings: ConsoleSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise Misconfigured(f"[console] cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
