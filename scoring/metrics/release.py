"""The metrics of releases: which bundle and policy each worker serves, and how the swaps of its host went."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from paywarden.models.bundle.version import Version
from paywarden.scoring.metrics.shared_metrics import Counter, Gauge, MetricsRegistry

CHECK, TAKE_UP = "check", "take_up"


def swap_failures(registry: MetricsRegistry, step: str) -> Counter:
    """Returns the counter of swaps that failed at a step, CHECK or TAKE_UP."""
    return registry.counter(
        "paywarden_swap_failures_total",
        "Swaps of bundle or policy that were not made, by step: the present release goes on.",
        ("step",),
        (step,),
    )


@dataclass(frozen=True)
class SwapMetrics:
    """Counts of a host's swaps, of those whose new workers failed, and the time of the last swap."""

    swaps: Counter
    failures: Counter
    time: Gauge

    @classmethod
    def declare(cls, registry: MetricsRegistry) -> SwapMetrics:
        return cls(
            registry.counter("paywarden_swaps_total", "Swaps of the release by a new generation of workers."),
            swap_failures(registry, TAKE_UP),
            registry.gauge(
                "paywarden_swap_timestamp_seconds",
                "Time of a host's last swap of the release, in seconds since the epoch.",
            ),
        )


class ShownRelease(NamedTuple):
    """A release that a worker has in memory. `role`: "active", "previous" or "candidate"."""

    role: str
    version: Version


class ReleaseInfo:
    """Shows the releases of a worker as `paywarden_bundle_info`, in a file of their own: their labels change."""

    def __init__(self, directory: Path, worker: str) -> None:
        self._directory, self._name = directory, f"{worker}-release"
        self._registry = MetricsRegistry()

    def show(self, releases: Iterable[ShownRelease]) -> None:
        """Show these releases and no other. Writes a file. Raises Misconfigured."""
        self._registry.close()
        self._registry = MetricsRegistry()
        declare_info(self._registry, releases)
        self._registry.open(self._directory, self._name)

    def close(self) -> None:
        self._registry.close()


def declare_info(registry: MetricsRegistry, releases: Iterable[ShownRelease]) -> None:
    """Declare a series for each release."""
    for release in releases:
        registry.gauge(
            "paywarden_bundle_info",
            "1 for each bundle and policy that a worker has in memory; only the active one decides.",
            ("role", "digest", "policy", "version"),
            (release.role, release.version.bundle, release.version.policy, release.version.model),
        ).set(1)
