"""What a process says about itself over HTTP: health and metrics, nothing else.

    GET /livez    200 while it can do its work, else 503            {"live": true}
    GET /readyz   200 when it does its work, else 503; and why not  {"ready": false, "missing": ["…"]}
    GET /metrics  Prometheus' text format

`paywarden stream` serves it on Faust's web server (streams/faust/web.py), a process without an event loop from a thread
(streams/health/server.py). Importing this imports neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from paywarden.schemas.errors import Misconfigured


class HealthReport(Protocol):
    """What is asked. Called in the event loop or another thread: neither may block."""

    def live(self) -> bool:
        """Whether the process can still do its work."""

    def problems(self) -> Sequence[str]:
        """Why it is not ready; empty when it is."""


def livez(health: HealthReport) -> tuple[int, dict[str, Any]]:
    """Status and JSON body."""
    live = health.live()
    return (200 if live else 503), {"live": live}


def readyz(health: HealthReport) -> tuple[int, dict[str, Any]]:
    """Status and JSON body."""
    missing = list(health.problems())
    return (503 if missing else 200), {"ready": not missing, "missing": missing}


def metrics_registry() -> CollectorRegistry:
    """A registry that already shows the process itself: memory, CPU, files, garbage collection, versions."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def address_of(host: str, port: int) -> str:
    """The URL of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def cannot_listen(section: str, host: str, port: int, error: Exception) -> Misconfigured:
    """The error to raise from `error` when http_host and http_port of this section cannot be used."""
    reason = getattr(error, "strerror", None) or error
    return Misconfigured(f"[{section}] http_host, http_port: cannot listen on {host}:{port}: {reason}")
