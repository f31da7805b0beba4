"""The settings of `paywarden traces`."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class TracingSettings:
    """The collector of spans. Without one there is nothing to run."""

    # The address of the collector, such as http://127.0.0.1:4318.
    collector: str = ""
    group_id: str = "paywarden-traces"
    batch_max: int = 500
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.collector and not self.collector.startswith(("http://", "https://")):
            raise Misconfigured(f"[tracing] collector: wanted http://… or https://…, got {self.collector!r}")
        if self.batch_max < 1:
            raise Misconfigured(f"[tracing] batch_max: wanted at least 1, got {self.batch_max}")
        if self.timeout_s <= 0:
            raise Misconfigured(f"[tracing] timeout_s: wanted more than 0, got {self.timeout_s:g}")
