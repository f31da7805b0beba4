"""Serve the health and metrics of `paywarden stream` inside Faust's life cycle, without Faust's own web server.

The server is the one of streams/health/server.py, with its limits: hanging and slow clients keep no probe out. Faust's
server bounds neither connections nor the time of a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

from faust.web.drivers.aiohttp import Web
from prometheus_client import CollectorRegistry

from paywarden.streams.health.health import HealthReport
from paywarden.streams.health.server import serving_health


class HealthWeb(Web):
    """The web service of a Faust app: our server in place of Faust's, and none of Faust's pages.

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
        self._serving = ExitStack()

    def init_server(self) -> None:
        """Add none of Faust's pages."""

    async def start_server(self) -> None:
        """Listen, and announce the address."""
        serving = serving_health(self._health, self._registry, host=self._host, port=self._port, section="stream")
        self._announce(self._serving.enter_context(serving))

    async def stop_server(self) -> None:
        """Stop listening, and cut the connections that are open."""
        # Its thread may be taking a connection, which may wait a second for room.
        await asyncio.to_thread(self._serving.close)
