"""Runs the HTTP front without sockets, in the event loop of the test."""

from __future__ import annotations

import asyncio
from typing import Any

from paywarden.scoring.engine.batching.batcher import MicroBatcher
from paywarden.scoring.http.http_connection import HttpConnection
from paywarden.scoring.http.http_front import HttpServer
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import HttpMetrics
from tests.worlds.endpoint.http_world import NOW_MS, UNHURRIED, FakeScorer
from tests.worlds.endpoint.payments import euro_intake


class FakeTransport(asyncio.Transport):
    """A transport that keeps the written bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.ended
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.ended = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class MemoryWorld:
    """A server and its connections. Create it in a running event loop."""

    def __init__(self, settings: HttpSettings) -> None:
        self.scorer = FakeScorer()
        batcher = MicroBatcher(
            self.scorer,
            intake=euro_intake(),
            settings=UNHURRIED,
            now_ms=lambda: NOW_MS,
        )
        metrics = HttpMetrics.declare(MetricsRegistry())
        self.server = HttpServer(
            batcher, settings, metrics=metrics, metrics_text=lambda: b"m" * 50, now_ms=lambda: NOW_MS
        )
        self.server.loop = asyncio.get_running_loop()

    def connect(self) -> tuple[HttpConnection, FakeTransport]:
        """Open a connection; returns it with its transport."""
        connection, transport = HttpConnection(self.server), FakeTransport()
        connection.connection_made(transport)
        return connection, transport
