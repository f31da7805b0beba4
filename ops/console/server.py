"""Run the console's web server in this process, and end it within a time limit.

    SIGTERM ─► no new connections; background work ends ─► after 3 s requests that still run are cut off ─► the end

A handler that waits for Kafka or for a query goes on in its thread, and the end does not wait for it. The proxy that
ends TLS in front of the console also ends slow, silent and too many connections.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import uvicorn
from starlette.types import ASGIApp

from paywarden.ops.console.assembly import console
from paywarden.ops.console.console_settings import ConsoleSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

_BACKLOG = 512
# A browser that keeps its connection open must not hold up the end.
_GRACE_S = 3
_HEAD_BYTES_MAX = 32 * 1024


def served(source: Source, settings: ConsoleSettings, stop: threading.Event, announce: Callable[[str], object]) -> None:
    """Serve the pages until `stop` is set. `announce` gets the address. Raises Misconfigured."""
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
        # It bounds the head of a request; that of httptools grows until the memory is full.
        http="h11",
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=grace_s,
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=_HEAD_BYTES_MAX,
        backlog=_BACKLOG,
    )
    server = _Server(config)

    def end() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=end, name="console-end", daemon=True).start()
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn without handlers of signals of its own: ProcessEnd has them."""

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
