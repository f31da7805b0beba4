"""Serves health and metrics of a scoring host on a port of their own, from a process of their own.

    [serve] admin_port ─► HttpServer without payments ─► /livez, /readyz, /metrics

1. To render the metrics of all workers takes milliseconds. Here no payment waits for it.
2. The scoring ports answer the same three paths. But a flood of connections or payments there cannot keep a probe or a
   scraper out here.
3. The parent starts this process like a worker, and starts it again when it ends. Without it payments are scored all
   the same.
4. `/readyz` is that of the host: ready while any worker is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace

import uvloop

from paywarden.schemas.errors import PaywardenError
from paywarden.scoring.http.http_front import HttpServer
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.metrics.exposition import MetricsRenderer
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry, totals
from paywarden.scoring.metrics.worker_metrics import READY_METRIC, HttpMetrics, ready_gauge
from paywarden.scoring.net.listeners import open_listener
from paywarden.scoring.server.context import Endpoints, ServerContext
from paywarden.scoring.server.worker import RETIRE

_log = logging.getLogger(__name__)

ADMIN_NAME = "admin"
# A few probes and scrapers; more connections are a mistake. The oldest gives way to a new one.
_LIMITS = HttpSettings(connections_max=64, body_bytes_max=4096, idle_timeout_ms=75_000, stop_timeout_ms=1_000)
# A flood that fills it makes the kernel drop a probe, which comes again after a second.
_BACKLOG = 512
# How often it looks for its parent and for changed tokens.
_LOOK_S = 0.5
_STOPS = (signal.SIGTERM, signal.SIGINT, RETIRE)


def admin_main(
    host: ServerContext, endpoints: Endpoints, parent: int, beat: Callable[[], object], name: str = ADMIN_NAME
) -> int:
    """Run the admin process that the process `parent` has forked. It calls `beat` as long as its loop turns.

    `name` is that of its file of metrics. Returns its exit code.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(host, endpoints, parent, beat, name))
    except PaywardenError as error:
        _log.error("admin: %s", error)
        return 1
    except Exception:  # noqa: BLE001 - the top of the process: a bug is logged whole, then the parent restarts it
        _log.exception("admin: a bug ended it")
        return 70
    return 0


async def _serve(host: ServerContext, endpoints: Endpoints, parent: int, beat: Callable[[], object], name: str) -> None:
    loop, stopped, registry = asyncio.get_running_loop(), asyncio.Event(), MetricsRegistry()
    metrics = HttpMetrics.declare(registry)
    # While no worker runs, nobody else would say that none is ready.
    ready = ready_gauge(registry)
    registry.open(host.metrics_directory, name)
    ready.set(0)
    server = HttpServer(
        None,
        replace(_LIMITS, host=host.admin_host),
        metrics=metrics,
        metrics_text=MetricsRenderer(host.metrics_directory).text,
        tokens=endpoints.tokens,
        metrics_need_token=host.auth.metrics_need_token,
        readiness=lambda: _missing(host),
    )
    for number in _STOPS:
        loop.add_signal_handler(number, stopped.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    await server.start(open_listener(host.admin_host, endpoints.admin_port, backlog=_BACKLOG))
    while not stopped.is_set() and os.getppid() == parent:
        endpoints.refresh()
        beat()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), _LOOK_S)
    await server.stop()
    registry.close()


def _missing(host: ServerContext) -> list[str]:
    """Returns a line if no worker is ready for payments, else nothing."""
    found = totals(host.metrics_directory).items()
    is_ready = any(slots[0] > 0 for series, slots in found if series.name == READY_METRIC)
    return [] if is_ready else ["no worker is ready: ask /readyz of the scoring port why"]
