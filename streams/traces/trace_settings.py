"""The settings of `paywarden traces`."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal


@dataclass(frozen=True)
class TracingSettings:
    """The collector of spans. Without one there is nothing to run."""

    # The address of the collector, such as http://127.0.0.1:4318.
    collector: str = ""
    # Behind the prefix of the topics: deployments that share a cluster have a group each.
    group_id: str = internal("paywarden-traces")
    batch_max: int = internal(500)
    timeout_s: float = internal(10.0)

    def __post_init__(self) -> None:
        if self.collector and not self.collector.startswith(("http://", "https://")):
            raise Misconfigured(f"[tracing] collector: wanted http://… or https://…, got {self.collector!r}")
