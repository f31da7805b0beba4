"""What the stream's process says about itself over HTTP, on Faust's web server: health and metrics, nothing else.

GET /livez    200 while the process and what it supervises live
GET /readyz   200 when it does its work, else 503; why not, in both cases, as JSON
GET /metrics  Prometheus' text format
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from aiohttp import web
from faust.web.drivers.aiohttp import Web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from schemas.errors import Misconfigured

# A client that does not take its answer must not hold up the end of the process.
_CLOSE_TIMEOUT_S = 1.0


def metrics_registry() -> CollectorRegistry:
    """A registry that already shows the process itself: memory, CPU, files, garbage collection, versions."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class Health(Protocol):
    """What the views ask. Called in the event loop: neither may block."""

    def live(self) -> bool:
        """Whether the process can still do its work."""

    def problems(self) -> Sequence[str]:
        """Why it is not ready; empty when it is."""


class HealthWeb(Web):
    """Faust's web server without Faust's own pages (tables, router, graph, statistics, index).

    `announce` is given the address once it listens. Raises Misconfigured at start when it cannot listen there.
    """

    default_blueprints: ClassVar = ()
    production_blueprints: ClassVar = ()
    debug_blueprints: ClassVar = ()
    optional_blueprints: ClassVar = ()
    logger = logging.getLogger("faust.services")

    def __init__(
        self,
        app: Any,
        *,
        health: Health,
        registry: CollectorRegistry,
        host: str,
        port: int,
        announce: Callable[[str], object],
    ) -> None:
        super().__init__(app)
        self._health, self._registry = health, registry
        self._host, self._port, self._announce = host, port, announce
        self._runner = web.AppRunner(self.web_app, access_log=None, shutdown_timeout=_CLOSE_TIMEOUT_S)

    def init_server(self) -> None:
        """Our paths instead of Faust's blueprints."""
        for path, view in (("/livez", self._livez), ("/readyz", self._readyz), ("/metrics", self._metrics)):
            self.web_app.router.add_get(path, view)

    async def start_server(self) -> None:
        """Listen, and say where."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise Misconfigured(
                f"[stream] http_host, http_port: cannot listen on {self._host}:{self._port}: {reason}"
            ) from error
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._announce(f"http://{host}:{self._runner.addresses[0][1]}")

    async def _livez(self, _: web.Request) -> web.Response:
        live = self._health.live()
        return web.json_response({"live": live}, status=200 if live else 503)

    async def _readyz(self, _: web.Request) -> web.Response:
        missing = list(self._health.problems())
        return web.json_response({"ready": not missing, "missing": missing}, status=503 if missing else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
