"""Health and metrics of a process over HTTP.

    GET /livez    200 while the process can do its work, else 503   {"live": true}
    GET /readyz   200 while it does its work, else 503 and why      {"ready": false, "missing": ["…"]}
    GET /metrics  Prometheus' text format

A process serves them from a thread (streams/health/server.py).
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
    """The state of a process. Any thread or the event loop may call both methods: they must not block."""

    def live(self) -> bool:
        """Returns whether the process can still do its work."""

    def problems(self) -> Sequence[str]:
        """Returns why the process is not ready; empty if it is."""


def livez(health: HealthReport) -> tuple[int, dict[str, Any]]:
    """Returns the status and the JSON body."""
    live = health.live()
    return (200 if live else 503), {"live": live}


def readyz(health: HealthReport) -> tuple[int, dict[str, Any]]:
    """Returns the status and the JSON body."""
    missing = list(health.problems())
    return (503 if missing else 200), {"ready": not missing, "missing": missing}


def metrics_registry() -> CollectorRegistry:
    """Returns a registry with the metrics of the process: memory, CPU, files, garbage collection, versions."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def address_of(host: str, port: int) -> str:
    """Returns the URL of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def cannot_listen(section: str, host: str, port: int, error: Exception) -> Misconfigured:
    """Returns the error to raise from `error` when a section's http_host and http_port cannot be used."""
    reason = getattr(error, "strerror", None) or error
    return Misconfigured(f"[{section}] http_host, http_port: cannot listen on {host}:{port}: {reason}")
