"""Serve the health and metrics of `paywarden stream` on Faust's web server, without Faust's pages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

from aiohttp import web
from faust.web.drivers.aiohttp import Web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from paywarden.streams.health.health import HealthReport, address_of, cannot_listen, livez, readyz

# A client that does not read its answer must not hold up the end of the process.
_CLOSE_TIMEOUT_S = 1.0


class HealthWeb(Web):
    """Faust's web server without Faust's own pages (tables, router, graph, statistics, index).

    Calls `announce` with the address once it listens. Raises Misconfigured at start if it cannot listen there.
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
        health: HealthReport,
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
        """Serve our paths instead of Faust's blueprints."""
        for path, view in (("/livez", self._livez), ("/readyz", self._readyz), ("/metrics", self._metrics)):
            self.web_app.router.add_get(path, view)

    async def start_server(self) -> None:
        """Listen, and announce the address."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            raise cannot_listen("stream", self._host, self._port, error) from error
        self._announce(address_of(self._host, self._runner.addresses[0][1]))

    async def _livez(self, _: web.Request) -> web.Response:
        status, body = livez(self._health)
        return web.json_response(body, status=status)

    async def _readyz(self, _: web.Request) -> web.Response:
        status, body = readyz(self._health)
        return web.json_response(body, status=status)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
