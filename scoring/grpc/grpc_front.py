"""Serves a scoring worker's gRPC listeners: reads HTTP/2, submits calls to `MicroBatcher`, writes their answers.

    socket ─► GrpcConnection ─► Session (HTTP/2) ─► ScoreCall ─► MicroBatcher
    socket ◄─ one write per connection and turn ◄─ Session ◄─ ScoreCall ◄─┘

1. A connection gives the bytes of a read to its session. The session (`scoring/grpc/http2.py`) speaks HTTP/2.
2. A complete Score or ScoreBatch call goes to `MicroBatcher`. gRPC's standard health and reflection services
   (`scoring/grpc/services.py`) answer at once.
3. One timer per server checks the timeouts of all connections; no connection has a timer of its own.
4. Everything has a limit, and every limit has a name in `GrpcSettings`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.scoring.engine.batching.batcher import MicroBatcher, Refusal
from paywarden.scoring.grpc.calls import CallKind, Method
from paywarden.scoring.grpc.grpc_connection import GrpcConnection
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.grpc.messages import CODES
from paywarden.scoring.grpc.metrics import GrpcMetrics
from paywarden.scoring.grpc.services import HEALTH, REFLECTIONS, SCORING, GrpcHealth, Reflection
from paywarden.scoring.metrics.shared_metrics import Counter
from paywarden.scoring.net.connections import Connections
from paywarden.scoring.net.listeners import accept
from paywarden.scoring.net.tls import HTTP_2, Tls

# The seconds of a worker that a connection costs from its beginning to its end (refusal_budget.py).
_CONNECTION_S = 400e-6


class GrpcServer:
    """Serves one worker's listeners.

    `caller_of` gets a call's `authorization` metadata. It returns the caller's name, or None for a stranger.
    Without it all callers may call, and have no names. `fields` are those of a request, which reflection shows.
    """

    def __init__(
        self,
        batcher: MicroBatcher,
        *,
        settings: GrpcSettings,
        metrics: GrpcMetrics,
        caller_of: Callable[[bytes | None], bytes | None] | None = None,
        fields: PaymentFields = TABLE_ALONE,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.batcher, self.settings, self.now_s, self.caller_of = batcher, settings, now_s, caller_of
        self._fields = fields
        self.deadline_s = batcher.settings.deadline_ms / 1000
        self.arriving_bytes = 0
        self.health = GrpcHealth(self._is_serving)
        self.methods = self._make_methods(metrics)
        self._metrics = metrics
        self._draining = False
        self.connections: Connections[GrpcConnection] = Connections(
            settings.connections_max,
            metrics.connections,
            is_idle=lambda: not batcher.queued_payments,
            sweep=self._look_at_connections,
            sweep_s=min(
                *(settings.idle_timeout_ms, settings.request_timeout_ms, settings.write_timeout_ms),
                *(settings.linger_ms, settings.keepalive_ms, settings.keepalive_timeout_ms, 2_000),
            )
            / 4000,
        )

    async def start(self, listener: socket.socket, tls: Tls | None = None) -> None:
        """Accept connections from `listener`, which now belongs to this server. Call it once for each listener.

        A TLS connection that does not agree on "h2" is aborted.
        """
        settings = self.settings
        acceptor = await accept(
            lambda: GrpcConnection(self),
            listener,
            may_go_on=lambda: self.batcher.has_time_for_connection(_CONNECTION_S),
            backlog=settings.backlog,
            tls=tls,
            protocol=HTTP_2,
            linger_ms=settings.linger_ms,
        )
        self.connections.acceptors.append(acceptor)

    async def stop(self, *, is_taken_over: bool = False) -> None:
        """Announce the end with GOAWAY, answer the calls in flight, close. Abort after `stop_timeout_ms`.

        `is_taken_over`: another process accepts from the same listeners, so the host goes on serving.
        """
        if not is_taken_over:
            self._draining = True
            self._look_at_connections()
            if self.settings.drain_delay_ms:
                await asyncio.sleep(self.settings.drain_delay_ms / 1000)
        self.connections.close_listeners()
        await self.connections.end(GrpcConnection.drain, self.settings.stop_timeout_ms / 1000)

    # For connections

    def count(self, method: str, code: str) -> None:
        """Count a request that was refused before it became a call."""
        self._metrics.requests[method, code].add(1)

    def _is_serving(self) -> bool:
        return not self._draining and not self.batcher.scorer.readiness()

    def _look_at_connections(self) -> None:
        now = self.now_s()
        for connection in self.connections:
            connection.look(now)

    def _make_methods(self, metrics: GrpcMetrics) -> dict[bytes, Method]:
        settings, reflection = self.settings, Reflection(self._fields)
        small = settings.service_message_bytes_max

        def counts(name: str) -> dict[str, Counter]:
            return {code: metrics.requests[name, code] for code in CODES}

        def scoring(name: str, bytes_max: int, *, is_batch: bool) -> Method:
            return Method(
                name, CallKind.SCORE, counts(name), bytes_max, is_batch=is_batch, seconds=metrics.seconds[name]
            )

        def health(name: str, kind: CallKind, handle: Callable[[bytes], bytes | Refusal] | None) -> Method:
            # These need no token, because load balancers have none.
            return Method(name, kind, counts(name), small, is_open=True, handle=handle)

        reflect = Method(
            "ServerReflectionInfo", CallKind.EACH, counts("ServerReflectionInfo"), small, handle=reflection.answer
        )
        by_path = {
            f"/{SCORING}/Score": scoring("Score", settings.message_bytes_max, is_batch=False),
            f"/{SCORING}/ScoreBatch": scoring("ScoreBatch", settings.batch_bytes_max, is_batch=True),
            f"/{HEALTH}/Check": health("Check", CallKind.ONE, self.health.check),
            f"/{HEALTH}/List": health("List", CallKind.ONE, self.health.list_all),
            f"/{HEALTH}/Watch": health("Watch", CallKind.WATCH, None),
            **{f"/{name}/ServerReflectionInfo": reflect for name in REFLECTIONS},
        }
        return {path.encode(): method for path, method in by_path.items()}
