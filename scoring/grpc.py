"""The gRPC front of a scoring worker: HTTP/2 from a socket in, calls to `Turns`, answers out.

    socket ─► GrpcConnection ─► Session (HTTP/2) ─► ScoreCall ─► Turns ─► answer ─ one write per connection and turn

The library that speaks HTTP/2 is behind a narrow seam (`scoring/http2.py`). Beside scoring there are gRPC's standard
health and reflection services (`scoring/grpc_services.py`). One timer per server looks at all connections;
none has its own. Nothing grows without a limit, and every limit has a name in `GrpcSettings`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from schemas.errors import Misconfigured
from scoring.connections import Connections
from scoring.grpc_calls import Kind, Method
from scoring.grpc_connection import GrpcConnection
from scoring.grpc_messages import CODES
from scoring.grpc_metrics import GrpcMetrics
from scoring.grpc_services import HEALTH, REFLECTIONS, SCORING, Health, Reflection
from scoring.http2 import Receiver, Session, SessionBounds
from scoring.listeners import accept
from scoring.metrics import Counter
from scoring.tls import HTTP_2, Tls
from scoring.turns import Refusal, Turns

LIBRARIES = ("ngh2", "h2")


@dataclass(frozen=True)
class GrpcSettings:
    """What speaks HTTP/2, and every limit of the gRPC front, per connection unless it says more."""

    enabled: bool = True
    host: str = "127.0.0.1"
    # 0 takes a free one.
    port: int = 8081
    # Also listened on where it is set, without TLS.
    unix_socket: str = ""
    # "ngh2" (libnghttp2) or "h2" (hyper-h2, some twenty times slower).
    library: str = "ngh2"
    backlog: int = 1024
    # Per worker.
    connections_max: int = 1024
    # Calls not yet answered. Clients queue what is more; one read then brings at most a few chunks.
    streams_max: int = 128
    # A payment of longest ids is 1.5 kB; the rest is for fields of newer clients.
    message_bytes_max: int = 16 * 1024
    # 256 payments, each a few times larger than usual.
    batch_bytes_max: int = 512 * 1024
    # Names of services and symbols.
    service_message_bytes_max: int = 4 * 1024
    # Per worker: requests of which a part has come. Bounds memory whatever the connections and streams.
    arriving_bytes_max: int = 64 * 1024 * 1024
    # As HTTP/2 counts, 32 bytes a field more than their text. Told to clients, who keep to it or end the connection.
    header_bytes_max: int = 16 * 1024
    header_count_max: int = 64
    # A block of headers within `header_bytes_max` fits into one frame; some clients cut it smaller.
    continuation_frames_max: int = 8
    # Flow control: as large as a batch, so that a large one does not wait for a round trip.
    stream_window_bytes: int = 512 * 1024
    connection_window_bytes: int = 1024 * 1024
    # Answers that wait for the caller's window; more calls are refused meanwhile. A dozen of the largest batches, as
    # clients open 64 KiB at first.
    unread_bytes_max: int = 1024 * 1024
    watches_max: int = 8
    # PING, SETTINGS, WINDOW_UPDATE, empty DATA: Go's client sends up to one PING and two updates an answer.
    idle_frames_burst: int = 1000
    idle_frames_per_second: int = 100
    idle_frames_per_answer: int = 4
    # Calls that are reset before they are answered: a burst of all streams, several times over, is a client that
    # gives up for good reasons; more is CVE-2023-44487. An answered call allows one more.
    resets_burst: int = 1000
    resets_per_second: int = 100
    # Without a call. Longer than clients and proxies keep connections unused.
    idle_timeout_ms: int = 300_000
    # From a call's headers to its last byte; also from connecting to the first SETTINGS.
    request_timeout_ms: int = 5_000
    # How long a caller may leave answers unread.
    write_timeout_ms: int = 5_000
    # Silence, with calls open (a Watch), after which the caller is asked whether he is there; and his time to say so.
    keepalive_ms: int = 60_000
    keepalive_timeout_ms: int = 10_000
    # After our last byte, for the caller to read it and close.
    linger_ms: int = 1_000
    # Between NOT_SERVING and GOAWAY, so that a load balancer can take the worker out first.
    drain_delay_ms: int = 0
    # What is in flight at a stop may take this long.
    stop_timeout_ms: int = 10_000

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting."""
        if self.library not in LIBRARIES:
            raise Misconfigured(f"[grpc] library: wanted {' or '.join(LIBRARIES)}, got {self.library!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("port", "drain_delay_ms", "continuation_frames_max") else 1
            if type(value) is int and value < least:
                raise Misconfigured(f"[grpc] {field.name}: wanted at least {least}, got {value}")


class GrpcServer:
    """Serves one worker's listener. `authorise` decides by a call's `authorization` metadata; None lets all in."""

    def __init__(
        self,
        turns: Turns,
        *,
        settings: GrpcSettings,
        metrics: GrpcMetrics,
        authorise: Callable[[bytes | None], bool] | None = None,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.turns, self.settings, self.now_s = turns, settings, now_s
        self.authorise = authorise or (lambda _: True)
        self.deadline_s = turns.settings.deadline_ms / 1000
        self.arriving_bytes = 0
        self.health = Health(self._is_serving)
        self.methods = self._make_methods(metrics)
        self._metrics = metrics
        self._open_session = _session_class(settings.library)
        self._session_limits = SessionBounds(
            streams_max=settings.streams_max,
            header_bytes_max=settings.header_bytes_max,
            header_count_max=settings.header_count_max,
            stream_window_bytes=settings.stream_window_bytes,
            connection_window_bytes=settings.connection_window_bytes,
            continuation_frames_max=settings.continuation_frames_max,
        )
        self._draining = False
        self._connections: Connections[GrpcConnection] = Connections(settings.connections_max)
        self.admit, self.forget = self._connections.admit, self._connections.forget
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket, tls: Tls | None = None) -> None:
        """Accept connections from `listener`, which now belongs to this server. May be called for several.

        Over TLS a connection that does not agree on "h2" is cut.
        """
        if self._sweeper is None:
            self._sweep()
        settings = self.settings
        server = await accept(
            self._accept, listener, backlog=settings.backlog, tls=tls, protocol=HTTP_2, linger_ms=settings.linger_ms
        )
        self._servers.append(server)

    async def stop(self) -> None:
        """Say that we go, answer what is in flight, close. What is open after `stop_timeout_ms` is cut."""
        self._draining = True
        self._look_at_connections()
        if self.settings.drain_delay_ms:
            await asyncio.sleep(self.settings.drain_delay_ms / 1000)
        for server in self._servers:
            server.close()
        await self._connections.end(GrpcConnection.drain, self.settings.stop_timeout_ms / 1000)
        if self._sweeper is not None:
            self._sweeper.cancel()

    # For connections

    def open_session(self, receiver: Receiver) -> Session:
        """The HTTP/2 of a new connection."""
        return self._open_session(receiver, self._session_limits)

    def count(self, method: str, code: str) -> None:
        """Count a call that was refused before it became one."""
        self._metrics.requests[method, code].add(1)

    def _accept(self) -> GrpcConnection:
        return GrpcConnection(self)

    def _is_serving(self) -> bool:
        return not self._draining and not self.turns.scorer.readiness()

    def _sweep(self) -> None:
        settings = self.settings
        self._look_at_connections()
        shortest_ms = min(
            *(settings.idle_timeout_ms, settings.request_timeout_ms, settings.write_timeout_ms),
            *(settings.linger_ms, settings.keepalive_ms, settings.keepalive_timeout_ms, 2_000),
        )
        self._sweeper = asyncio.get_running_loop().call_later(shortest_ms / 4000, self._sweep)

    def _look_at_connections(self) -> None:
        now = self.now_s()
        for connection in self._connections:
            connection.look(now)

    def _make_methods(self, metrics: GrpcMetrics) -> dict[bytes, Method]:
        settings, reflection = self.settings, Reflection()
        small = settings.service_message_bytes_max

        def counts(name: str) -> dict[str, Counter]:
            return {code: metrics.requests[name, code] for code in CODES}

        def scoring(name: str, bytes_max: int, *, is_batch: bool) -> Method:
            return Method(name, Kind.SCORE, counts(name), bytes_max, is_batch=is_batch, seconds=metrics.seconds[name])

        def health(name: str, kind: Kind, handle: Callable[[bytes], bytes | Refusal] | None) -> Method:
            # Open: load balancers have no tokens.
            return Method(name, kind, counts(name), small, is_open=True, handle=handle)

        reflect = Method(
            "ServerReflectionInfo", Kind.EACH, counts("ServerReflectionInfo"), small, handle=reflection.answer
        )
        by_path = {
            f"/{SCORING}/Score": scoring("Score", settings.message_bytes_max, is_batch=False),
            f"/{SCORING}/ScoreBatch": scoring("ScoreBatch", settings.batch_bytes_max, is_batch=True),
            f"/{HEALTH}/Check": health("Check", Kind.ONE, self.health.check),
            f"/{HEALTH}/List": health("List", Kind.ONE, self.health.list_all),
            f"/{HEALTH}/Watch": health("Watch", Kind.WATCH, None),
            **{f"/{name}/ServerReflectionInfo": reflect for name in REFLECTIONS},
        }
        return {path.encode(): method for path, method in by_path.items()}


def _session_class(library: str) -> Callable[[Receiver, SessionBounds], Session]:
    """The library is imported only where it is used."""
    if library == "h2":
        from scoring.http2_hyper import HyperSession

        return HyperSession
    from scoring.http2_ngh2 import Ngh2Session

    return Ngh2Session
