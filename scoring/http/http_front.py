"""Serves a scoring worker's HTTP/1.1 listeners: takes requests to `MicroBatcher`, and answers back in order.

    socket ─► HttpConnection ─ RequestReader ─► HttpCall ─► MicroBatcher ─► HttpCall ─ one write ─► socket

1. A connection submits every request to `MicroBatcher` when its last byte has arrived. The answers to all requests of
   one turn of the loop leave in one write, in the order of the requests. The front itself answers health and metrics.
2. No connection can block the others. A request must be complete within `request_timeout_ms`. The front does not read
   from a caller that does not read its answers (back-pressure). Beyond `pipelined_max` unanswered requests, further
   ones wait, in order, while other connections get their turn. One timer per server checks all connections.
3. Everything has a limit: connections, head, headers, body, batch, unread answers.
4. If a request breaks the protocol, the front answers it and closes the connection, since nobody knows where the next
   request begins. If it is merely wrong (route, token, content type, values), the connection stays open.
5. To close, the front shuts down its sending half and discards the bytes that arrive for `linger_ms`. Closing at once
   would make the kernel send a reset, which can destroy the answer before the caller has read it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable

from paywarden.schemas.errors import PaywardenError
from paywarden.scoring.engine.batching.batcher import INTERNAL, UNAVAILABLE, MicroBatcher
from paywarden.scoring.engine.bugs import BugLog
from paywarden.scoring.http.answers import AnswerHeads
from paywarden.scoring.http.heads import Heads, Route, RouteAnswer
from paywarden.scoring.http.http_connection import HttpCall, HttpConnection
from paywarden.scoring.http.http_reader import HeldBytes
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.http.refusals import TOO_MANY_SCRAPES, status_of
from paywarden.scoring.metrics.shared_metrics import CONTENT_TYPE as METRICS_TEXT
from paywarden.scoring.metrics.worker_metrics import ROUTES, HttpMetrics
from paywarden.scoring.net.connections import Connections
from paywarden.scoring.net.listeners import accept
from paywarden.scoring.net.tls import HTTP_1_1, Tls
from paywarden.scoring.net.tokens import Tokens
from paywarden.scoring.requests.json_form import JSON, render_error

_JSON = JSON.content_type
# The seconds of a worker that a connection costs from its beginning to its end (refusal_budget.py).
_CONNECTION_S = 100e-6
# Answers to /metrics that one process gives. An answer has some 100 kB: sending them without end would take the time of
# payments.
_SCRAPES_PER_SECOND_MAX = 50
# How long callers of a host that was taken over have for a request whose answer says that the connection closes. A way
# back between two versions may have to wait for that, and is to take less than a second in all.
_FAREWELL_MS = 600
_FAREWELL_LOOK_S = 0.02


class HttpServer:
    """Serves one process's listeners. `metrics_text` returns the body of /metrics; without `tokens` anyone may call.

    Without `batcher` it serves health and metrics only (scoring/server/admin.py); `readiness` names the missing parts.
    """

    def __init__(
        self,
        batcher: MicroBatcher | None,
        settings: HttpSettings,
        *,
        metrics: HttpMetrics,
        metrics_text: Callable[[], bytes],
        tokens: Tokens | None = None,
        metrics_need_token: bool = False,
        readiness: Callable[[], list[str]] | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.settings = settings
        self.draining = self._is_taken_over = False
        self.loop: asyncio.AbstractEventLoop
        self._batcher = batcher
        if readiness is None:
            assert batcher is not None, "something must know whether the server is ready"
            readiness = batcher.scorer.readiness
        self._readiness = readiness
        self._counted = {route: metrics.of_route(route) for route in ROUTES}
        self._metrics_text = metrics_text
        self._now_ms = now_ms
        deadline_ms = 1 if batcher is None else batcher.settings.deadline_ms
        self.heads = Heads(self._routes(metrics_need_token), settings, deadline_ms=deadline_ms, tokens=tokens)
        self.arriving = HeldBytes(settings.arriving_bytes_max)
        self._scrapes_left, self._scrapes_second = 0, 0
        self._answers = AnswerHeads(now_ms())
        self.render = self._answers.render
        self.connections: Connections[HttpConnection] = Connections(
            settings.connections_max,
            metrics.connections,
            is_idle=lambda: batcher is None or not batcher.queued_payments,
            sweep=self._look,
            sweep_s=min(
                *(settings.idle_timeout_ms, settings.request_timeout_ms),
                *(settings.write_timeout_ms, settings.linger_ms, 2_000),
            )
            / 4000,
        )
        self._bugs = BugLog()

    def _routes(self, metrics_need_token: bool) -> dict[bytes, Route]:
        scoring = [
            (b"/v1/score", Route("score", (b"POST",))),
            (b"/v1/score:batch", Route("score_batch", (b"POST",), is_batch=True)),
        ]
        routes = [
            *(scoring if self._batcher is not None else ()),
            (b"/livez", Route("livez", (b"GET", b"HEAD"), answer=self._livez, needs_token=False)),
            (b"/readyz", Route("readyz", (b"GET", b"HEAD"), answer=self._readyz, needs_token=False)),
            (
                b"/metrics",
                Route("metrics", (b"GET", b"HEAD"), answer=self._render_metrics, needs_token=metrics_need_token),
            ),
        ]
        return dict(routes)

    async def start(self, listener: socket.socket, tls: Tls | None = None) -> None:
        """Accept connections from `listener`, which now belongs to this server. Call it once for each listener."""
        self.loop = asyncio.get_running_loop()
        settings = self.settings
        acceptor = await accept(
            lambda: HttpConnection(self),
            listener,
            may_go_on=self._has_time,
            backlog=settings.backlog,
            tls=tls,
            protocol=HTTP_1_1,
            linger_ms=settings.linger_ms,
        )
        self.connections.acceptors.append(acceptor)

    async def stop(self, *, is_taken_over: bool = False) -> None:
        """Answer the requests in flight, then close. Connections still open after `stop_timeout_ms` are aborted.

        `is_taken_over`: another process accepts from the same listeners. This one accepts nothing from now on, and its
        connections have 0.6 s for one more request, whose answer says that they close.
        """
        self.draining, self._is_taken_over = True, is_taken_over
        if is_taken_over:
            await self._bid_farewell()
        elif self.settings.drain_delay_ms:
            await asyncio.sleep(self.settings.drain_delay_ms / 1000)
        self.connections.close_listeners()
        await self.connections.end(HttpConnection.finish, self.settings.stop_timeout_ms / 1000)

    async def _bid_farewell(self) -> None:
        """Accept nothing more, and wait until no connection is left, for as long as callers have at most.

        If all callers are busy, that takes some milliseconds. Then this host can take over again.
        """
        self.connections.close_listeners()
        until = self.loop.time() + max(self.settings.drain_delay_ms, _FAREWELL_MS) / 1000
        while self.loop.time() < until and (self.connections.count or self.connections.are_coming):
            await asyncio.sleep(_FAREWELL_LOOK_S)

    def _look(self) -> None:
        now = self.loop.time()
        for connection in self.connections:
            connection.check_timeouts(now)
        self._answers.set_time(self._now_ms())

    # For connections

    def submit(self, call: HttpCall) -> None:
        """Have a call answered, now or later. Never raises: nothing above it could answer the request."""
        head = call.head
        if head.refusal is not None:
            call.refuse_as(head.refusal)
            return
        assert head.route is not None, "without a route there is a refusal"
        if head.route.answer is None:
            assert self._batcher is not None, "without it there is no route to score"
            self._batcher.submit(call)
            return
        call.give(*self._answer_of(head.route.name, head.route.answer))

    def is_overloaded(self) -> bool:
        """Return whether more is asked than can be answered."""
        return self._batcher is not None and self._batcher.is_overloaded

    def _has_time(self) -> bool:
        return self._batcher is None or self._batcher.has_time_for_connection(_CONNECTION_S)

    def is_too_late(self, waited_s: float) -> bool:
        """Return whether a call that has waited unread for `waited_s` is too late."""
        return self._batcher is None or self._batcher.is_too_late(waited_s)

    def count(self, call: HttpCall, now: float) -> None:
        """Count an answer that leaves; `now` is in seconds of `time.perf_counter`."""
        route = call.head.route
        counted = self._counted["none" if route is None else route.name]
        counted.requests[call.status].add(1)
        if counted.seconds is not None:
            counted.seconds.observe(now - call.arrived)

    def _answer_of(self, route: str, answer: Callable[[], RouteAnswer]) -> RouteAnswer:
        try:
            return answer()
        except PaywardenError as error:
            return _error(UNAVAILABLE, str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one route must not end the worker for all others
            self._bugs.note(error, f"answering {route}")
            return _error(INTERNAL, "internal error")

    # Routes that the front answers itself

    def _livez(self) -> RouteAnswer:
        return 200, _JSON, b'{"live":true}'

    def _readyz(self) -> RouteAnswer:
        # Where another process has taken over, the host is as ready as it was.
        is_stopping = self.draining and not self._is_taken_over
        missing = self._readiness() + (["the worker is stopping"] if is_stopping else [])
        body = json.dumps({"ready": not missing, "missing": missing}).encode()
        return (503 if missing else 200), _JSON, body

    def _render_metrics(self) -> RouteAnswer:
        second = int(time.monotonic())
        if second != self._scrapes_second:
            self._scrapes_second, self._scrapes_left = second, _SCRAPES_PER_SECOND_MAX
        if self._scrapes_left == 0:
            refusal = TOO_MANY_SCRAPES
            return refusal.status, _JSON, render_error(refusal.code, refusal.message)
        self._scrapes_left -= 1
        return 200, METRICS_TEXT, self._metrics_text()


def _error(code: str, message: str) -> RouteAnswer:
    return status_of(code), _JSON, render_error(code, message)
