"""Serve health and metrics (streams/health/health.py) from threads, for a process without an event loop.

No client can disturb the work of the process:

- A connection has one request, one thread and a deadline, at which the server cuts it.
- At most 8 connections are open. A new one makes the server cut the oldest, so hanging clients keep no probe out.

It does not use http.server.HTTPServer, which asks the name service for its own name at the start.
"""

from __future__ import annotations

import json
import logging
import math
import selectors
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from paywarden.streams.health.health import HealthReport, address_of, cannot_listen, livez, readyz

_log = logging.getLogger(__name__)

# Enough for a scraper and a few probes. Each is a thread that competes with the worker for the interpreter.
CONNECTIONS_MAX = 8
# The deadline of a connection, from its acceptance to the last byte of the answer.
CONNECTION_S_MAX = 5.0
# Without a free file descriptor a connection stays in the queue. The server pauses before it tries again.
_ACCEPT_PAUSE_S = 0.5


@dataclass(frozen=True)
class ConnectionLimits:
    """The time limit of a connection, and of a new one's wait for a free thread, in seconds."""

    connection_s: float = CONNECTION_S_MAX
    room_timeout_s: float = 1.0


@contextmanager
def serving_health(
    health: HealthReport,
    registry: CollectorRegistry,
    *,
    host: str,
    port: int,
    section: str,
    limits: ConnectionLimits | None = None,
) -> Iterator[str]:
    """Serve inside the block; yields the address.

    `section` names the settings of host and port. Raises Misconfigured when the server cannot listen there.
    """
    try:
        server = _Server(health, registry, host, port, limits or ConnectionLimits())
    except (OSError, OverflowError) as error:
        raise cannot_listen(section, host, port, error) from error
    thread = threading.Thread(target=server.serve_until_stopped, name="health", daemon=True)
    thread.start()
    try:
        yield address_of(host, server.server_address[1])
    finally:
        server.stop()
        thread.join()
        server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    # A flood that fills it makes the kernel drop a probe, which comes again after a second.
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False
    # `handle_request` is called when there is a connection.
    timeout = 0

    def __init__(
        self, health: HealthReport, registry: CollectorRegistry, host: str, port: int, limits: ConnectionLimits
    ) -> None:
        self.health, self.registry, self._limits = health, registry, limits
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # The open connections with their deadlines, oldest first. One that was cut has no further deadline.
        self._open: dict[Any, float] = {}
        self._changed = threading.Condition()
        self._stops, self._stop = socket.socketpair()
        try:
            super().__init__((host, port), _Handler)
        except BaseException:
            self._close_stop()
            raise

    def serve_until_stopped(self) -> None:
        """Accept connections, and cut overdue ones. Without a connection it sleeps: nothing wakes it.

        `serve_forever` of the base class would look for a stop again and again.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            selector.register(self._stops, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(self._overdue_in_s())]
                if self._stops in ready:
                    return
                if ready:
                    self.handle_request()
                self._cut_overdue()

    def stop(self) -> None:
        """End `serve_until_stopped`. Any thread may call it."""
        self._stop.send(b"s")

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(_ACCEPT_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            if len(self._open) >= CONNECTIONS_MAX:
                _cut(next(iter(self._open)))
                self._changed.wait_for(lambda: len(self._open) < CONNECTIONS_MAX, self._limits.room_timeout_s)
            has_room = len(self._open) < CONNECTIONS_MAX
            if has_room:
                self._open[request] = time.monotonic() + self._limits.connection_s
        if has_room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        # Before it closes: a closed connection must not be cut, because its descriptor may belong to another by then.
        with self._changed:
            self._open.pop(request, None)
            self._changed.notify_all()
        super().shutdown_request(request)

    def _overdue_in_s(self) -> float | None:
        """Returns in how many seconds the next connection is overdue; None without one."""
        with self._changed:
            cut_at = min(self._open.values(), default=math.inf)
        return None if cut_at == math.inf else max(0.0, cut_at - time.monotonic())

    def _cut_overdue(self) -> None:
        now = time.monotonic()
        with self._changed:
            for request, cut_at in self._open.items():
                if now >= cut_at:
                    _cut(request)
                    # Its thread may need a while to notice.
                    self._open[request] = math.inf

    def server_close(self) -> None:
        super().server_close()
        self._close_stop()
        with self._changed:
            for request in self._open:
                _cut(request)

    def _close_stop(self) -> None:
        self._stops.close()
        self._stop.close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a bug. The base class calls this inside an exception handler. A client that has gone is not logged."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("a request for health or metrics could not be answered")


def _cut(request: Any) -> None:
    """Shut down both directions: the thread that waits for this client wakes up and closes it."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CONNECTION_S_MAX

    def do_GET(self) -> None:
        """Answer one of the three paths."""
        path = self.path.partition("?")[0]
        if path == "/livez":
            self._answer_json(*livez(self.server.health))
        elif path == "/readyz":
            self._answer_json(*readyz(self.server.health))
        elif path == "/metrics":
            self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer with one line of text: http.server's own page would repeat the client's input."""
        # http.server answers 501 for every method without a function here.
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._answer(status, "text/plain; charset=utf-8", f"{status.value}: {status.phrase}\n".encode())

    def version_string(self) -> str:
        """Returns a name without the versions of Python and of the server."""
        return "paywarden"

    def log_message(self, *_: object) -> None:
        """Log nothing: probes come every second."""

    def _answer_json(self, status: int, body: dict[str, Any]) -> None:
        self._answer(status, "application/json; charset=utf-8", json.dumps(body).encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
