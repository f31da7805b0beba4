"""Run the console's web server in this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import uvicorn

from paywarden.ops.console.settings import ConsoleSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

_BACKLOG = 512
# A browser that keeps its connection open must not hold up the end.
_GRACE_S = 3
_KEEP_ALIVE_S = 15
_CONCURRENCY_MAX = 200


def served(source: Source, settings: ConsoleSettings, stop: threading.Event, announce: Callable[[str], object]) -> None:
    """Serve the pages until `stop` is set. `announce` gets the address. Raises Misconfigured."""
    from paywarden.ops.wiring.console import console

    listener = _listener(settings)
    address = _address(listener)
    with listener, console(source, settings, address) as made:
        config = uvicorn.Config(
            made.app,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=_GRACE_S,
            timeout_keep_alive=_KEEP_ALIVE_S,
            limit_concurrency=_CONCURRENCY_MAX,
            h11_max_incomplete_event_size=32 * 1024,
        )
        server = _Server(config)

        def end() -> None:
            stop.wait()
            server.should_exit = True

        threading.Thread(target=end, name="console-end", daemon=True).start()
        announce(made.shell.url)
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
