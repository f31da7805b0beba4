"""The settings of `paywarden serve`. Other processes read from them which bundle is served, and in which folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal


@dataclass(frozen=True)
class ServeSettings:
    """Settings of `paywarden serve`: the bundles that it serves, and limits of its workers."""

    bundle: str = "bundle"
    # The bundle that scores while the first cannot: the previous one. Empty: rules and flags decide then.
    fallback_bundle: str = ""
    # From "not ready" (/readyz, gRPC's health) to the end of accepting, so that a gateway can remove the worker first.
    drain_delay_ms: int = 0
    # A worker whose event loop stands still for this long is killed and replaced. A heart beats twice a second.
    hang_timeout_s: int = internal(10)
    # Where health and metrics are served apart from payments. The address is on stdout after the others.
    admin_host: str = "127.0.0.1"
    # 0 takes a free port.
    admin_port: int = 0
    # The deployment file, and bundles made ready for a change while the workers run. Libraries are loaded from there:
    # the file system must allow code, which /dev/shm often does not (`noexec`).
    runtime: str = ".paywarden/serve"
    # Counts of all workers; on a memory file system, see scoring/metrics/shared_metrics.py.
    metrics: str = "/dev/shm/paywarden/metrics" if Path("/dev/shm").is_dir() else ".paywarden/metrics"

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if self.drain_delay_ms < 0:
            raise Misconfigured(f"[serve] drain_delay_ms: wanted at least 0, got {self.drain_delay_ms}")
